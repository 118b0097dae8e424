"""Local training: a model, a client's examples and a seed in, the same bits out on any process like this one.

Pure but for `step`, which runs the user's own code. Bit for bit holds for one version of torch, one device and one
number of threads.
"""

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.sgd import sgd

from shared import user_code
from shared.catalog.training import CustomTrain, Sgd, TrainSpec
from shared.errors import BadInput, Stale

METRICS = 64  #: that a client may report: they travel in an event
EVALUATED = 2048  #: examples looked at in one batch


def shuffle_seed(seed: int, client: str, number: int, epoch: int) -> int:
    """The seed of one epoch's order of examples: a stable hash in [0, 2^63), not Python's, which each process salts."""
    digest = hashlib.sha256(f"{seed}/{client}/{number}/{epoch}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def train(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    spec: TrainSpec,
    *,
    seed: int,
    client: str,
    number: int,
    stopped: Callable[[], bool] = lambda: False,
) -> dict[str, float]:
    """Trains `model` in place on x (n, …) and y (n,): the local epochs of FedAvg (McMahan et al. 2017, ClientUpdate).

    Cross-entropy and SGD, whose momentum starts anew in each round. Returns `train_loss`, the mean over the last
    epoch; raises `Stale` between two batches once `stopped()`.
    """
    assert isinstance(spec.optimizer, Sgd)  # noqa: S101
    optimizer = _SGD(model, spec.optimizer)
    model.train()
    total = torch.zeros((), device=x.device)
    with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
        for epoch in range(spec.epochs):
            epoch_seed = shuffle_seed(seed, client, number, epoch)
            torch.manual_seed(epoch_seed)  # for layers that draw, such as dropout
            order = torch.randperm(len(y), generator=torch.Generator().manual_seed(epoch_seed)).to(x.device)
            total.zero_()
            for batch in torch.split(order, spec.batch_size):
                if stopped():
                    raise Stale(f"round {number} is over")
                loss = functional.cross_entropy(model(x[batch]), y[batch])
                optimizer.step(loss)
                total += loss.detach() * len(batch)
    return {"train_loss": float(total) / len(y)}


class _SGD:
    """What `torch.optim.SGD` does, by torch's own function for it.

    The class would load torch's compiler, which nobody uses here: 150 MB and more than a second, in every slot.
    """

    def __init__(self, model: nn.Module, spec: Sgd) -> None:
        self._spec = spec
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._momenta: list[Tensor | None] = [None] * len(self._parameters)

    def step(self, loss: Tensor) -> None:
        found = torch.autograd.grad(loss, self._parameters, allow_unused=True)
        used = [place for place, gradient in enumerate(found) if gradient is not None]
        momenta = [self._momenta[place] for place in used]
        with torch.no_grad():
            sgd(
                [self._parameters[place] for place in used],
                [gradient for gradient in found if gradient is not None],
                momenta,
                lr=self._spec.lr,
                momentum=self._spec.momentum,
                weight_decay=self._spec.weight_decay,
                dampening=0,
                nesterov=False,
                maximize=False,
            )
        for place, momentum in zip(used, momenta, strict=True):
            self._momenta[place] = momentum


def evaluate(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, float]:
    """The mean cross-entropy `loss` and the `accuracy` on x (n, …) and y (n,)."""
    model.eval()
    loss, correct = 0.0, 0
    with torch.inference_mode():
        for start in range(0, len(y), EVALUATED):
            labels = y[start : start + EVALUATED]
            logits = model(x[start : start + EVALUATED])
            loss += float(functional.cross_entropy(logits, labels, reduction="sum"))
            correct += int((logits.argmax(1) == labels).sum())
    return {"loss": loss / len(y), "accuracy": correct / len(y)}


def step(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    spec: CustomTrain,
    *,
    seed: int,
    client: str,
    number: int,
    stopped: Callable[[], bool] = lambda: False,
) -> dict[str, float]:
    """The user's own local step, `step(model, x, y, *, client, round, seed, **args) -> dict[str, float]`.

    It trains `model` in place and returns its metrics. Where its signature names `stopped`, it gets a function that
    says whether the round is over, to be asked now and then.
    """
    function = user_code.find(spec.name, "train")
    given: dict[str, Any] = {"client": client, "round": number, "seed": seed}
    if user_code.takes(function, "stopped"):
        given["stopped"] = stopped
    model.train()
    metrics = function(model, x, y, **given, **spec.args)
    if stopped():
        raise Stale(f"round {number} is over")
    if not isinstance(metrics, Mapping):
        raise BadInput(f"train.name: {spec.name} gave a {type(metrics).__name__}; it gives its metrics as a dict")
    try:
        found = {str(name): float(value) for name, value in metrics.items()}
    except (TypeError, ValueError) as error:
        raise BadInput(f"train.name: {spec.name} gave a metric that is no number: {error}") from error
    if len(found) > METRICS or any(len(name) > 64 for name in found):
        raise BadInput(f"train.name: {spec.name} gave {len(found)} metrics; at most {METRICS}, of 64 characters each")
    return found
