"""Local training: a model, a client's examples and a seed in, the same bits out on any process like this one.

Pure. Bit for bit holds for one version of torch, one device and one number of threads.

The last example of a pass may be a batch by itself, and batch norm cannot normalize one value. Then it joins the batch
before it. Nothing changes for models that can take it alone: those without batch norm, and those whose batch norm sees
images of more than a pixel.
"""

import hashlib
import itertools
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from services.trainer.training import gradients
from services.trainer.training.gradients import changes_of, corrections
from services.trainer.training.optimizers import Gradients, optimizer_of, rate
from shared.errors import BadInput, Stale
from shared.job import user_code
from shared.job.catalog.training import TrainSpec

EVALUATED = 2048  #: examples in a batch of an evaluation


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
    rounds: int = 1,
    correction: Mapping[str, Tensor] | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> dict[str, float]:
    """Trains `model` in place on x (n, …) and y (n,): the local epochs of FedAvg (McMahan et al. 2017, ClientUpdate).

    Cross-entropy, in round `number` of `rounds`, by which a schedule knows the learning rate. `correction` is added to
    the gradient of each batch, by the names of the parameters (see `strategy_steps.control_correction`). An epoch is a
    pass over the examples in a new order, its last batch what is left (see `batches_of`); `spec.steps` ends in the
    middle of one.

    Returns `train_loss`, the mean over the last pass, whole or not, and `steps`, how many batches there were; raises
    `Stale` between two batches once `stopped()`.
    """
    take = _Step(model, spec, rate(spec.schedule, spec.optimizer.lr, number, rounds), x.device, correction)
    model.train()
    total = torch.zeros((), device=x.device)
    joined = len(y) % spec.batch_size == 1 % spec.batch_size and is_normalised_alone(model, x[:1])
    if joined:
        check_last_example(client, len(y), spec.batch_size)
    done, steps = 0, spec.steps or spec.epochs * (-(-len(y) // spec.batch_size) - joined)
    with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
        for epoch in itertools.count():
            epoch_seed = shuffle_seed(seed, client, number, epoch)
            _seed_layers(epoch_seed, x.device)
            order = torch.randperm(len(y), generator=torch.Generator().manual_seed(epoch_seed)).to(x.device)
            total.zero_()
            batches = batches_of(order, spec.batch_size, joined=joined)[: steps - done]
            for batch in batches:
                if stopped():
                    raise Stale(f"round {number} is over")
                total += take(x[batch], y[batch]) * len(batch)
            done += len(batches)
            if done == steps:
                break
    return {"train_loss": float(total) / sum(map(len, batches)), "steps": float(steps)}


class _Step:
    """One step on a batch: its loss, the gradient, what the job does to that, and the optimizer."""

    def __init__(
        self,
        model: nn.Module,
        spec: TrainSpec,
        lr: float,
        device: torch.device,
        correction: Mapping[str, Tensor] | None,
    ) -> None:
        self._model = model
        named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        if not named:
            raise BadInput("the model has no parameter with requires_grad, and training needs one")
        self._parameters = list(named.values())
        self._changes = changes_of(
            spec, self._parameters, None if correction is None else corrections(named, correction)
        )
        self._optimizer = optimizer_of(spec.optimizer, lr, self._parameters)
        dtype = gradients.lower_precision(spec, device)
        self._autocast = gradients.autocast(dtype, device)
        self._scaled = gradients.ScaledLoss(self._parameters, device) if dtype == torch.float16 else None

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """The mean loss of the batch, shape (), before the step."""
        with self._autocast:
            loss = functional.cross_entropy(self._model(x), y)
        if self._scaled is not None:
            self._scaled(loss, self._take)
        else:
            self._take(torch.autograd.grad(loss, self._parameters, allow_unused=True))
        return loss.detach()

    @torch.no_grad()
    def _take(self, gradients: Gradients) -> None:
        # An embedding's gradient may be sparse, which few optimizers take, and FedProx cannot be added to it.
        gradients = [found.to_dense() if found is not None and found.is_sparse else found for found in gradients]
        for change in self._changes:
            gradients = change(gradients)
        self._optimizer.step(gradients)


def _seed_layers(seed: int, device: torch.device) -> None:
    """Seeds torch for layers that draw, such as dropout."""
    if device.type == "cpu":
        torch.default_generator.manual_seed(seed)  # gives the same stream; seeding all devices takes as long as a batch
    else:
        torch.manual_seed(seed)


def evaluate(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, float]:
    """The mean cross-entropy `loss` and the `accuracy` on x (n, …) and y (n,)."""
    model.eval()
    loss, correct = 0.0, 0
    with torch.no_grad():  # not inference mode: a model may keep a tensor of this pass and train with it
        for start in range(0, len(y), EVALUATED):
            labels = y[start : start + EVALUATED]
            with user_code.running():
                logits = model(x[start : start + EVALUATED])
            _check(logits, labels)
            loss += float(functional.cross_entropy(logits, labels, reduction="sum"))
            correct += int((logits.argmax(1) == labels).sum())
    return {"loss": loss / len(y), "accuracy": correct / len(y)}


def _check(logits: Any, y: Tensor) -> None:
    """`BadInput` if a model's output is no logits (n, classes) of the labels y (n,): a GPU would only crash."""
    if not isinstance(logits, Tensor):
        raise BadInput(f"the model gave a {type(logits).__name__} for {len(y)} examples; it gives logits (n, classes)")
    if logits.ndim != 2 or len(logits) != len(y):
        raise BadInput(
            f"the model gave {list(logits.shape)} for {len(y)} examples; it gives logits, [{len(y)}, classes]"
        )
    if (most := int(y.max())) >= logits.shape[1]:
        raise BadInput(
            f"the model gave {logits.shape[1]} logits for each example, and there is a label {most}, counted from 0; "
            "it gives one for each class of the data"
        )


def is_normalised_alone(model: nn.Module, x: Tensor) -> bool:
    """True if a batch norm layer of a model in training gets one value a channel of one example x, (1, *shape)."""
    layers = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.training]
    found: list[bool] = []

    def look(_layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        found.append(inputs[0].numel() == inputs[0].shape[1])

    hooks = [layer.register_forward_pre_hook(look) for layer in layers]
    try:
        model.eval()  # in training mode statistics would learn of the example, and layers would draw
        if layers:
            # Raised by a layer without running statistics, after the hook saw it.
            with torch.no_grad(), suppress(ValueError):
                model(x)
    finally:
        model.train()
        for hook in hooks:
            hook.remove()
    return any(found)


def check_last_example(client: str, examples: int, batch_size: int) -> None:
    """`BadInput` if there is no batch that the example could join."""
    if examples == 1:
        raise BadInput(
            f"{client} has one example to train on, and the model's batch norm cannot normalise one by itself; give it "
            "more, or take a model without batch norm"
        )
    if batch_size == 1:
        raise BadInput("train.batch_size is 1, and the model's batch norm cannot normalise one example; take 2 or more")


def batches_of(order: Tensor, batch_size: int, *, joined: bool) -> list[Tensor]:
    """The batches of a pass, of the examples' places in `order`, shape (n,)."""
    batches = list(torch.split(order, batch_size))
    if joined:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches
