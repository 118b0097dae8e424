"""Local training: deterministic, stoppable, plain SGD when nobody else takes part, and what a job may ask for."""

import random
import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from services.trainer.models import catalog
from services.trainer.models.flat import FlatModel
from services.trainer.slot.client import Clients
from services.trainer.slot.client_state import ClientState
from services.trainer.training import loop
from shared.errors import BadInput, Stale
from shared.job import job_spec
from shared.job.catalog.models import LeNet
from shared.job.catalog.training import Adam, AdamW, Cosine, FedProx, OptimizerSpec, Sgd, TrainSpec

SPEC = TrainSpec(epochs=2, batch_size=7, optimizer=Sgd(lr=0.05, momentum=0.9, weight_decay=1e-4))


def examples(size: int = 40) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(size, 1, 8, 8, generator=generator), torch.randint(0, 10, (size,), generator=generator)


def trained(spec: TrainSpec = SPEC, *, seed: int = 1, client: str = "a", number: int = 3) -> tuple[Tensor, float]:
    model = catalog.build(LeNet(), (1, 8, 8), 10, seed=0)
    metrics = loop.train(model, *examples(), spec, seed=seed, client=client, number=number)
    return vector(model), metrics["train_loss"]


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
        "import test_training_loop\n"
        "print(test_training_loop.trained()[0].double().sum().item().hex())"
    )
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)

    assert found.stdout.strip() == trained()[0].double().sum().item().hex()


def test_dropout_is_deterministic_too() -> None:
    """Layers that draw numbers draw the same ones, whatever was drawn before, and leave that stream as it was."""
    x, y = examples()

    def once(process_seed: int) -> Tensor:
        torch.manual_seed(process_seed)
        following = torch.rand(1)
        torch.manual_seed(process_seed)
        model = nn.Sequential(catalog.build(LeNet(), (1, 8, 8), 10, seed=0), nn.Dropout(0.5))
        loop.train(model, x, y, SPEC, seed=1, client="a", number=1)
        assert torch.equal(torch.rand(1), following)
        return vector(model)

    assert torch.equal(once(1), once(2))


def test_one_client_with_all_the_data_is_central_sgd() -> None:
    """Rounds of FedAvg with a single client are SGD in one go, written here without our training code."""
    spec = TrainSpec(epochs=2, batch_size=8, optimizer=Sgd(lr=0.1))
    x, y = examples(100)
    federated = FlatModel(catalog.build(LeNet(), (1, 8, 8), 10, seed=4))
    base = federated.save()
    for number in range(1, 4):
        federated.load(base)
        loop.train(federated.model, x, y, spec, seed=5, client="only", number=number)
        update = federated.update(base)
        base = base.copy()
        federated.layout.flat(base)[:] += federated.layout.of_updates().flat(update)

    central = catalog.build(LeNet(), (1, 8, 8), 10, seed=4)
    for number in range(1, 4):
        for epoch in range(2):
            seed = loop.shuffle_seed(5, "only", number, epoch)
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


OPTIMIZERS: list[tuple[OptimizerSpec, Callable[..., torch.optim.Optimizer], dict[str, object]]] = [
    (Sgd(lr=0.05), torch.optim.SGD, {"lr": 0.05}),
    (
        Sgd(lr=0.05, momentum=0.9, weight_decay=1e-2),
        torch.optim.SGD,
        {"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-2},
    ),
    (Adam(), torch.optim.Adam, {"lr": 0.001, "betas": (0.9, 0.999), "eps": 1e-8}),
    (
        Adam(lr=0.01, beta_1=0.7, beta_2=0.8, eps=1e-3, weight_decay=0.1),
        torch.optim.Adam,
        {"lr": 0.01, "betas": (0.7, 0.8), "eps": 1e-3, "weight_decay": 0.1},
    ),
    (
        AdamW(lr=0.01, beta_1=0.7, beta_2=0.8, eps=1e-3, weight_decay=0.1),
        torch.optim.AdamW,
        {"lr": 0.01, "betas": (0.7, 0.8), "eps": 1e-3, "weight_decay": 0.1},
    ),
]


@pytest.mark.parametrize(("ours", "theirs", "options"), OPTIMIZERS)
def test_optimizers_are_those_of_torch(
    ours: OptimizerSpec, theirs: Callable[..., torch.optim.Optimizer], options: dict[str, object]
) -> None:
    """Bit for bit, with parameters that are frozen or not reached by the loss, which is the last epoch's mean."""
    x, y = examples()
    spec = TrainSpec(epochs=2, batch_size=7, optimizer=ours)
    model, other = mlp(), mlp()
    for one in (model, other):
        one.register_parameter("unused", nn.Parameter(torch.ones(2)))
        one[1].bias.requires_grad_(False)
    found = loop.train(model, x, y, spec, seed=1, client="a", number=1)

    optimizer = theirs(other.parameters(), **options)
    for epoch in range(spec.epochs):
        total = torch.zeros(())
        for batch in order(epoch, len(y)).split(spec.batch_size):
            optimizer.zero_grad()
            loss = functional.cross_entropy(other(x[batch]), y[batch])
            loss.backward()
            optimizer.step()
            total += loss.detach() * len(batch)
    assert found == {"train_loss": float(total) / len(y), "steps": 12}
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


def mlp() -> nn.Sequential:
    """The same at every call."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10))


def order(epoch: int, size: int, number: int = 1) -> Tensor:
    """That of client a, with the seed 1."""
    return torch.randperm(size, generator=torch.Generator().manual_seed(loop.shuffle_seed(1, "a", number, epoch)))


def vector(model: nn.Module) -> Tensor:
    return nn.utils.parameters_to_vector(model.parameters()).detach()


def moved(spec: TrainSpec, *, number: int = 1, rounds: int = 1) -> Tensor:
    """How far the same model goes when it is trained like that."""
    model = mlp()
    loop.train(model, *examples(), spec, seed=1, client="a", number=number, rounds=rounds)
    return vector(model) - vector(mlp())


def test_training_loads_no_compiler() -> None:
    """torch's would take 150 MB and more than a second in every slot."""
    code = (
        "import sys, torch; from torch import nn; from services.trainer.training import loop\n"
        "from shared.job.catalog.training import Adam, AdamW, FedProx, Sgd, TrainSpec\n"
        "for optimizer in (Sgd(momentum=0.5), Adam(), AdamW()):\n"
        "    spec = TrainSpec(optimizer=optimizer, clip_norm=1, fedprox=FedProx(), precision='mixed')\n"
        "    x, y = torch.zeros(4, 2), torch.zeros(4, dtype=torch.int64)\n"
        "    loop.train(nn.Linear(2, 2), x, y, spec, seed=0, client='a', number=1)\n"
        "print(sorted({'torch._dynamo', 'torch._inductor', 'sympy'} & sys.modules.keys()))"
    )
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)

    assert found.stdout.strip() == "[]"


def test_training_lowers_the_loss() -> None:
    """`train_loss` is the mean over the last epoch."""
    assert trained(TrainSpec(epochs=30, batch_size=8))[1] < trained(TrainSpec(epochs=1, batch_size=8))[1]


@pytest.mark.parametrize("steps", [1, 5, 6, 8, 12])
def test_steps_are_exactly_so_many_batches(steps: int) -> None:
    """Of 6 an epoch, shuffled as epochs are; the loss is the mean over the last pass, whole or not."""
    x, y = examples()
    spec = TrainSpec(steps=steps, epochs=99, batch_size=7, optimizer=Sgd(lr=0.1))
    model, other = mlp(), mlp()
    found = loop.train(model, x, y, spec, seed=1, client="a", number=1)

    batches = [(epoch, batch) for epoch in range(2) for batch in order(epoch, len(y)).split(7)][:steps]
    losses = []
    for epoch, batch in batches:
        loss = functional.cross_entropy(other(x[batch]), y[batch])
        gradients = torch.autograd.grad(loss, list(other.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(other.parameters(), gradients, strict=True):
                parameter.sub_(0.1 * gradient)
        losses.append((epoch, loss.item(), len(batch)))
    last = [(loss, size) for epoch, loss, size in losses if epoch == losses[-1][0]]
    assert torch.allclose(vector(model), vector(other), rtol=0, atol=1e-6)
    assert found["steps"] == steps
    assert found["train_loss"] == pytest.approx(
        sum(loss * size for loss, size in last) / sum(size for _, size in last), rel=1e-5
    )


def test_the_learning_rate_is_that_of_the_round() -> None:
    """One full batch of plain SGD moves the model by the learning rate times the same gradient."""
    spec = TrainSpec(batch_size=40, optimizer=Sgd(lr=0.5), schedule=Cosine(floor=0.1))

    assert torch.allclose(moved(spec, number=3, rounds=5), moved(spec, number=1, rounds=5) * 0.6, rtol=0, atol=1e-6)
    assert torch.allclose(moved(spec, number=5, rounds=5), moved(spec, number=1, rounds=5) * 0.2, rtol=0, atol=1e-6)


def test_fedprox_pulls_back_to_the_model_of_the_round() -> None:
    """The gradient of mu/2 · ‖w − w_round‖² is added to that of the loss, so a larger mu stays closer."""
    x, y = examples()
    spec = TrainSpec(epochs=3, batch_size=8, optimizer=Sgd(lr=0.1, momentum=0.5), fedprox=FedProx(mu=0.7))
    other = mlp()
    begin = [parameter.detach().clone() for parameter in other.parameters()]
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1, momentum=0.5)
    for epoch in range(3):
        for batch in order(epoch, len(y)).split(8):
            optimizer.zero_grad()
            pull = sum(((now - then) ** 2).sum() for now, then in zip(other.parameters(), begin, strict=True))
            (functional.cross_entropy(other(x[batch]), y[batch]) + 0.7 / 2 * pull).backward()
            optimizer.step()

    assert torch.allclose(moved(spec), vector(other) - vector(mlp()), rtol=0, atol=1e-6)
    far = [float(moved(spec.model_copy(update={"fedprox": FedProx(mu=mu)})).norm()) for mu in (1e-9, 0.1, 1, 5)]
    assert far == sorted(far, reverse=True)
    assert far[-1] < 0.7 * far[0]


def test_gradients_are_clipped_together() -> None:
    """To an L2 norm of all parameters, as torch's `clip_grad_norm_` does; a shorter one is left as it is."""
    x, y = examples()
    spec = TrainSpec(epochs=2, batch_size=8, optimizer=Sgd(lr=0.1), clip_norm=0.3)
    other = mlp()
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    norms = []
    for epoch in range(2):
        for batch in order(epoch, len(y)).split(8):
            optimizer.zero_grad()
            functional.cross_entropy(other(x[batch]), y[batch]).backward()
            norms.append(float(nn.utils.clip_grad_norm_(other.parameters(), 0.3)))
            optimizer.step()

    assert min(norms) > 0.3  # or nothing would be tested
    assert torch.allclose(moved(spec), vector(other) - vector(mlp()), rtol=0, atol=1e-6)
    unclipped = spec.model_copy(update={"clip_norm": None})
    assert torch.equal(moved(spec.model_copy(update={"clip_norm": 1e3})), moved(unclipped))
    once = TrainSpec(steps=1, batch_size=40, optimizer=Sgd(lr=1.0), clip_norm=0.3)
    assert float(moved(once).norm()) == pytest.approx(0.3, rel=1e-5)


def test_the_pull_of_fedprox_is_clipped_too() -> None:
    """It is a part of the client's objective, whose gradient never moves a parameter by more than lr · clip_norm."""
    spec = TrainSpec(batch_size=8, optimizer=Sgd(lr=0.1), fedprox=FedProx(mu=1e4), clip_norm=0.01)

    assert 0 < float(moved(spec).norm()) <= 5 * 0.1 * 0.01 * (1 + 1e-5)


def test_a_correction_is_added_unclipped_by_the_names_of_the_parameters() -> None:
    """Where the loss does not reach, the gradient is zero; what is frozen stays; what none is given for has none."""
    x, y = examples()
    spec = TrainSpec(steps=2, batch_size=40, optimizer=Sgd(lr=0.1), clip_norm=1e-9)
    model = nn.Sequential(*mlp(), nn.Linear(10, 2))
    model.forward = model[:-1].forward  # type: ignore[method-assign]
    model[1].weight.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    correction = {name: torch.full_like(tensor, 2.0) for name, tensor in before.items() if name != "3.bias"}
    loop.train(model, x, y, spec, seed=1, client="a", number=1, correction=correction)

    for name, tensor in model.state_dict().items():
        expected = 0.0 if name in ("1.weight", "3.bias") else -2 * 0.1 * 2.0
        assert torch.allclose(tensor - before[name], torch.tensor(expected), rtol=0, atol=1e-6), name


def test_what_an_optimizer_remembers_begins_anew() -> None:
    """With each client, so that one trained after another is trained as if it were the first."""
    spec = TrainSpec(batch_size=8, optimizer=Adam(lr=0.01))
    model = mlp()
    for _ in range(2):
        model.load_state_dict(mlp().state_dict())
        loop.train(model, *examples(), spec, seed=1, client="a", number=1)

    assert torch.equal(vector(model) - vector(mlp()), moved(spec))


def test_training_stops_between_two_batches() -> None:
    """When the round is over, within one batch."""
    asked = 0

    def stopped() -> bool:
        nonlocal asked
        asked += 1
        return asked > 3

    model = catalog.build(LeNet(), (1, 8, 8), 10, seed=0)
    with pytest.raises(Stale, match="round 3 is over"):
        loop.train(model, *examples(), SPEC, seed=1, client="a", number=3, stopped=stopped)
    assert asked == 4


def test_evaluation_is_the_mean_over_all_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    """However they are cut into batches."""
    model = catalog.build(LeNet(), (1, 8, 8), 10, seed=0)
    x, y = examples()
    logits = model(x)
    monkeypatch.setattr(loop, "EVALUATED", 7)
    found = loop.evaluate(model, x, y)

    assert found["loss"] == pytest.approx(functional.cross_entropy(logits, y).item(), rel=1e-5)
    assert found["accuracy"] == pytest.approx((logits.argmax(1) == y).float().mean().item())


def test_shuffle_seeds_are_what_they_always_were() -> None:
    """A job that is replayed next year must shuffle as it did."""
    assert loop.shuffle_seed(7, "client-03", 2, 1) == 7756393106385750254
    assert 0 <= loop.shuffle_seed(2**31 - 1, "x" * 63, 10**6, 10**4) < 2**63


# --- a batch of one before batch norm ---------------------------------------------------------


def normalised(*, image: bool = False) -> nn.Module:
    """A model with batch norm, of one value a channel in an example, or of an image of 8×8."""
    torch.manual_seed(5)
    if image:
        return nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(64, 10))
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.BatchNorm1d(6), nn.Dropout(0.2), nn.Linear(6, 10))


def batches_of(model: nn.Module, size: int, spec: TrainSpec) -> tuple[list[int], dict[str, float]]:
    """The sizes of the batches that a model in training is given, and what training it reports."""
    sizes: list[int] = []

    def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if module.training:
            sizes.append(len(inputs[0]))

    model.register_forward_pre_hook(look)
    return sizes, loop.train(model, *examples(size), spec, seed=1, client="a", number=1)


@pytest.mark.parametrize(
    ("spec", "sizes"),
    [
        (TrainSpec(epochs=2, batch_size=16), [16, 17, 16, 17]),
        (TrainSpec(epochs=1, batch_size=32), [33]),
        (TrainSpec(steps=3, batch_size=16), [16, 17, 16]),
        (TrainSpec(epochs=1, batch_size=2), [2] * 15 + [3]),
    ],
)
def test_a_last_example_that_batch_norm_cannot_take_joins_the_batch_before(spec: TrainSpec, sizes: list[int]) -> None:
    """No client is lost for having 33 examples; the steps that are told are those that were taken."""
    found, metrics = batches_of(normalised(), 33, spec)

    assert found == sizes
    assert metrics["steps"] == len(sizes)


@pytest.mark.parametrize("model", [normalised(image=True), nn.Sequential(nn.Flatten(), nn.Linear(64, 10))])
def test_who_can_take_it_alone_does(model: nn.Module) -> None:
    """Batch norm of an image has values enough in one, and a model without it needs none: all is as it ever was."""
    assert batches_of(model, 33, TrainSpec(epochs=1, batch_size=16))[0] == [16, 16, 1]


def test_to_look_whether_it_can_changes_nothing() -> None:
    """Neither the statistics nor what the layers draw, so that the same batches give the same bits."""
    looked, other = normalised(), normalised()
    state = torch.random.get_rng_state()
    assert loop.is_normalised_alone(looked, examples(1)[0])

    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(
        torch.equal(one, two)
        for one, two in zip(looked.state_dict().values(), other.state_dict().values(), strict=True)
    )
    assert looked.training


def test_batch_norm_without_statistics_is_not_left_alone_either() -> None:
    """It normalises by the batch where the others have their statistics, and so refuses one example there too."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.BatchNorm1d(10, track_running_stats=False))

    assert batches_of(model, 33, TrainSpec(batch_size=16))[0] == [16, 17]


@pytest.mark.parametrize(
    ("size", "batch_size", "words"),
    [
        (
            1,
            16,
            "a has one example to train on, and the model's batch norm cannot normalise one by itself; give it more",
        ),
        (1, 1, "a has one example to train on"),
        (5, 1, "train.batch_size is 1, and the model's batch norm cannot normalise one example; take 2 or more"),
    ],
)
def test_where_there_is_no_batch_to_join_the_reason_is_said_first(size: int, batch_size: int, words: str) -> None:
    """Before anything is trained, and by a word of what to do."""
    model = normalised()
    with pytest.raises(BadInput, match=f"^{words}"):
        batches_of(model, size, TrainSpec(batch_size=batch_size))
    assert model[2].num_batches_tracked == 0


@settings(deadline=None, max_examples=60)
@given(size=st.integers(1, 40), batch_size=st.integers(1, 12), steps=st.none() | st.integers(1, 9))
def test_no_batch_norm_is_given_one_value(size: int, batch_size: int, steps: int | None) -> None:
    """Whatever the sizes: every example is in each whole pass once, or the client is told why it cannot be trained."""
    spec = TrainSpec(batch_size=batch_size, **({"steps": steps} if steps else {"epochs": 1}))
    if size == 1 or batch_size == 1:
        with pytest.raises(BadInput, match="batch norm"):
            batches_of(normalised(), size, spec)
        return
    found, metrics = batches_of(normalised(), size, spec)

    assert min(found) > 1
    assert metrics["steps"] == len(found) == (steps or len(found))
    if steps is None:
        assert sum(found) == size


class Keeping(nn.Module):
    """A model that makes a tensor in its first pass and keeps it, as a table of positions or a mask."""

    table: Tensor | None = None

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        if self.table is None:
            self.table = torch.linspace(1, 2, 10)
        found: Tensor = self.head(x.flatten(1)) * self.table
        return found


def test_what_a_model_keeps_of_an_evaluation_can_be_trained_with() -> None:
    """A client's model is evaluated before it is trained."""
    model = Keeping()
    loop.evaluate(model, *examples())

    assert loop.train(model, *examples(), SPEC, seed=1, client="a", number=0)["steps"] == 12


def test_a_model_without_a_parameter_to_train_is_refused() -> None:
    """By a word of what it lacks."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).requires_grad_(False)
    with pytest.raises(BadInput, match="the model has no parameter with requires_grad"):
        loop.train(model, *examples(), SPEC, seed=1, client="a", number=0)


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (nn.Linear(64, 9), "gave 9 logits for each example, and there is a label 9, counted from 0"),
        (nn.Linear(64, 1), "gave 1 logits for each example"),
        (nn.Unflatten(1, (8, 8)), r"gave \[40, 8, 8\] for 40 examples; it gives logits, \[40, classes\]"),
        (nn.MultiheadAttention(64, 1), "gave a tuple for 40 examples"),
    ],
)
def test_a_model_that_gives_no_logits_is_refused(head: nn.Module, words: str) -> None:
    """By what it gave: an index that is out of bounds says nothing, and ends all that a GPU does."""

    class Model(nn.Module):
        def forward(self, x: Tensor) -> object:
            x = x.flatten(1)
            return head(x, x, x) if isinstance(head, nn.MultiheadAttention) else head(x)

    x, y = examples()
    y[0] = 9
    with pytest.raises(BadInput, match=words):
        loop.evaluate(Model(), x, y)


class Words(nn.Module):
    """Token ids (n, 64) of a vocabulary of 20, by the mean of their embeddings."""

    def __init__(self, *, sparse: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(20, 4, sparse=sparse)
        self.head = nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.words((x.flatten(1) * 19).long()).mean(1))
        return found


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": Adam(lr=0.01)},
        {"optimizer": Sgd(lr=0.1, momentum=0.9, weight_decay=0.1)},
        {"fedprox": FedProx(mu=0.5)},
        {"clip_norm": 0.1},
    ],
)
def test_a_sparse_gradient_trains_as_a_dense_one(changes: dict[str, object]) -> None:
    """Torch knows few operations of sparse tensors, and an embedding may be asked for them."""
    spec, found = SPEC.model_copy(update=changes), []
    for sparse in (True, False):
        model = Words(sparse=sparse)
        loop.train(model, *examples(), spec, seed=1, client="a", number=0)
        found.append(vector(model))

    assert torch.allclose(*found, atol=1e-6)


class Drawing(nn.Module):
    """Noise from numpy and from Python, where a layer of torch's would have its own."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 10)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(x.flatten(1)) * (np.random.random() + random.random())  # noqa: S311
        return found


def test_what_an_own_model_draws_is_its_clients() -> None:
    """The same on every trainer, whoever was trained there before, as with a local step of the user's own."""
    document = {
        "name": "drawing", "pool": "cpu", "model": {"name": "m:make"}, "data": {"name": "digits", "clients": 2},
        "train": {"epochs": 1}, "rounds": {"count": 2},
    }  # fmt: skip
    order, context = SimpleNamespace(spec=job_spec.parse(document), round=1), SimpleNamespace(stopped=lambda _: False)

    def found(client: str) -> Tensor:
        model = Drawing()
        clients = SimpleNamespace(_task=order, _context=context, _drift=None, _model=SimpleNamespace(model=model))
        Clients._learned(clients, *examples(), client, ClientState())  # type: ignore[arg-type]
        return model.head.weight.detach()

    first, other = found("a"), found("b")
    assert torch.equal(found("a"), first)
    assert not torch.equal(other, first)
