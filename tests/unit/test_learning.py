"""Local training: deterministic, stoppable, and plain SGD when nobody else takes part."""

import subprocess
import sys
import types

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from services.trainer import learning
from services.trainer.models import catalog
from services.trainer.models.flat import FlatModel
from shared.catalog.models import LeNet
from shared.catalog.training import CustomTrain, Sgd, TrainSpec
from shared.errors import BadInput, Stale

SPEC = TrainSpec(epochs=2, batch_size=7, optimizer=Sgd(lr=0.05, momentum=0.9, weight_decay=1e-4))


def examples(size: int = 40) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(size, 1, 8, 8, generator=generator), torch.randint(0, 10, (size,), generator=generator)


def trained(spec: TrainSpec = SPEC, *, seed: int = 1, client: str = "a", number: int = 3) -> tuple[Tensor, float]:
    model = catalog.build(LeNet(), (1, 8, 8), 10, seed=0)
    metrics = learning.train(model, *examples(), spec, seed=seed, client=client, number=number)
    return nn.utils.parameters_to_vector(model.parameters()).detach(), metrics["train_loss"]


def test_the_same_seed_client_and_round_give_the_same_bits() -> None:
    """And each of the three matters."""
    torch.manual_seed(99)
    first, loss = trained()
    torch.manual_seed(1)
    again, same = trained()

    assert torch.equal(first, again)
    assert loss == same
    assert not torch.equal(first, trained(seed=2)[0])
    assert not torch.equal(first, trained(client="b")[0])
    assert not torch.equal(first, trained(number=4)[0])


def test_another_process_gives_the_same_bits() -> None:
    """So a client may be trained again, by anyone, when a trainer dies."""
    code = (
        f"import sys; sys.path.insert(0, {str(__file__.rpartition('/')[0])!r})\n"
        f"import torch; torch.set_num_threads({torch.get_num_threads()})\n"
        "import test_learning\n"
        "print(test_learning.trained()[0].double().sum().item().hex())"
    )
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)

    assert found.stdout.strip() == trained()[0].double().sum().item().hex()


def test_dropout_is_deterministic_too() -> None:
    """Layers that draw numbers draw the same ones."""
    x, y = examples()

    def once() -> Tensor:
        model = nn.Sequential(catalog.build(LeNet(), (1, 8, 8), 10, seed=0), nn.Dropout(0.5))
        learning.train(model, x, y, SPEC, seed=1, client="a", number=1)
        return nn.utils.parameters_to_vector(model.parameters()).detach()

    assert torch.equal(once(), once())


def test_one_client_with_all_the_data_is_central_sgd() -> None:
    """Rounds of FedAvg with a single client are SGD in one go, written here without our training code."""
    spec = TrainSpec(epochs=2, batch_size=8, optimizer=Sgd(lr=0.1))
    x, y = examples(100)
    federated = FlatModel(catalog.build(LeNet(), (1, 8, 8), 10, seed=4))
    base = federated.save()
    for number in range(1, 4):
        federated.load(base)
        learning.train(federated.model, x, y, spec, seed=5, client="only", number=number)
        update = federated.update(base)
        base = base.copy()
        federated.layout.flat(base)[:] += federated.layout.of_updates().flat(update)

    central = catalog.build(LeNet(), (1, 8, 8), 10, seed=4)
    for number in range(1, 4):
        for epoch in range(2):
            seed = learning.shuffle_seed(5, "only", number, epoch)
            order = torch.randperm(100, generator=torch.Generator().manual_seed(seed))
            for start in range(0, 100, 8):
                batch = order[start : start + 8]
                gradients = torch.autograd.grad(
                    functional.cross_entropy(central(x[batch]), y[batch]), list(central.parameters())
                )
                with torch.no_grad():
                    for parameter, gradient in zip(central.parameters(), gradients, strict=True):
                        parameter.sub_(0.1 * gradient)

    federated.load(base)
    for ours, theirs in zip(federated.model.parameters(), central.parameters(), strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-6)


def test_the_optimizer_is_that_of_torch() -> None:
    """Momentum and weight decay included, and parameters that the loss does not reach or that are frozen."""
    x, y = examples()
    ours, theirs = (catalog.build(LeNet(), (1, 8, 8), 10, seed=0) for _ in range(2))
    for model in (ours, theirs):
        model.unused = nn.Linear(2, 2)
        model.forward = model[:-1].forward  # type: ignore[index, method-assign]
        model[0].weight.requires_grad_(False)  # type: ignore[index]
    learning.train(ours, x, y, SPEC, seed=1, client="a", number=1)

    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    for epoch in range(SPEC.epochs):
        generator = torch.Generator().manual_seed(learning.shuffle_seed(1, "a", 1, epoch))
        for batch in torch.randperm(len(y), generator=generator).split(SPEC.batch_size):
            optimizer.zero_grad()
            functional.cross_entropy(theirs(x[batch]), y[batch]).backward()
            optimizer.step()
    for name, tensor in ours.state_dict().items():
        if not name.startswith("unused"):
            assert torch.equal(tensor, theirs.state_dict()[name]), name


def test_training_lowers_the_loss() -> None:
    """`train_loss` is the mean over the last epoch."""
    assert trained(TrainSpec(epochs=30, batch_size=8))[1] < trained(TrainSpec(epochs=1, batch_size=8))[1]


def test_training_stops_between_two_batches() -> None:
    """When the round is over, within one batch."""
    asked = 0

    def stopped() -> bool:
        nonlocal asked
        asked += 1
        return asked > 3

    model = catalog.build(LeNet(), (1, 8, 8), 10, seed=0)
    with pytest.raises(Stale, match="round 3 is over"):
        learning.train(model, *examples(), SPEC, seed=1, client="a", number=3, stopped=stopped)
    assert asked == 4


def test_evaluation_is_the_mean_over_all_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    """However they are cut into batches."""
    model = catalog.build(LeNet(), (1, 8, 8), 10, seed=0)
    x, y = examples()
    logits = model(x)
    monkeypatch.setattr(learning, "EVALUATED", 7)
    found = learning.evaluate(model, x, y)

    assert found["loss"] == pytest.approx(functional.cross_entropy(logits, y).item(), rel=1e-5)
    assert found["accuracy"] == pytest.approx((logits.argmax(1) == y).float().mean().item())


def test_shuffle_seeds_are_what_they_always_were() -> None:
    """A job that is replayed next year must shuffle as it did."""
    assert learning.shuffle_seed(7, "client-03", 2, 1) == 7756393106385750254
    assert 0 <= learning.shuffle_seed(2**31 - 1, "x" * 63, 10**6, 10**4) < 2**63


def test_own_step_trains_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told whom it trains, gets its args, and its metrics are numbers."""
    module = types.ModuleType("own_step")
    monkeypatch.setitem(sys.modules, "own_step", module)

    def step(
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        client: str,
        round: int,  # noqa: A002 - the keyword that the user's step is given
        seed: int,
        scale: float,
    ) -> dict[str, object]:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(scale * round + seed)
        return {"size": len(y), "client": 3}

    module.step = step  # type: ignore[attr-defined]
    module.chatty = lambda *_, **__: {str(number): 0 for number in range(65)}  # type: ignore[attr-defined]
    module.mute = lambda *_, **__: None  # type: ignore[attr-defined]
    model = nn.Linear(1, 1)
    spec = CustomTrain(name="own_step:step", args={"scale": 10})
    found = learning.step(model, *examples(4), spec, seed=1, client="a", number=2)

    assert found == {"size": 4.0, "client": 3.0}
    assert model.weight.item() == 21
    with pytest.raises(BadInput, match="own_step:mute gave a NoneType; it gives its metrics as a dict"):
        learning.step(model, *examples(4), CustomTrain(name="own_step:mute"), seed=1, client="a", number=2)
    with pytest.raises(BadInput, match="own_step:chatty gave 65 metrics; at most 64"):
        learning.step(model, *examples(4), CustomTrain(name="own_step:chatty"), seed=1, client="a", number=2)
