"""The models that a job file may name, the user's own among them, and low-rank adapters around any of them.

Torchvision's models and the library peft are imported for jobs that ask for them alone: either takes a second or more.
"""

import difflib
import itertools
import re
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from services.trainer.models.feed_forward import Shape, cnn, image, lenet, mlp, resnet, softmax, vgg9, vgg11
from services.trainer.models.sequences import CharLstmNetwork, TransformerNetwork
from shared.errors import BadInput
from shared.job import user_code
from shared.job.catalog import models
from shared.job.catalog.models import CustomModel, Lora, ModelSpec

__all__ = ["build", "lenet"]

#: Targets of a model, as the paper has them; else every layer that would do.
_LORA_TARGETS = {"transformer": ("query", "value")}
_LISTED = 12
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_FUSED = (nn.MultiheadAttention, nn.TransformerEncoderLayer)


def build(spec: ModelSpec, shape: Shape, classes: int, seed: int) -> nn.Module:
    """A model for examples of `shape`, which gives logits (n, classes); its weights are drawn from `seed`.

    It has adapters if the job asks for them. The caller loads what `spec.start` says (`start.begin_with`).
    `BadInput` if the model cannot take the shape.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _named(spec, shape, classes, seed)
        if spec.adapters is not None:
            adapt(model, spec.adapters, spec.name)
    return model


def size(spec: ModelSpec, shape: Shape, classes: int) -> int:
    """The bytes of a model's tensors, counted before any is made, for the memory must hold them.

    They are the product of what an example, the classes and the job file give. Returns 0 for a model of torchvision,
    whose size is known, and for the user's own, which has to be built to be counted.
    """
    if isinstance(spec, models.Torchvision | CustomModel):
        return 0
    with torch.device("meta"):
        model = _named(spec, shape, classes, 0)
    return sum(tensor.nbytes for tensor in itertools.chain(model.parameters(), model.buffers()))


def _named(spec: ModelSpec, shape: Shape, classes: int, seed: int) -> nn.Module:  # noqa: C901, PLR0911 - a table
    match spec:
        case models.Softmax():
            return softmax(shape, classes)
        case models.Mlp(hidden=hidden):
            return mlp(shape, classes, hidden)
        case models.LeNet():
            return lenet(shape, classes)
        case models.Cnn(channels=channels, hidden=width):
            return cnn(shape, classes, channels, width)
        case models.ResNet(depth=depth, norm=norm):
            return resnet(shape, classes, depth, norm)
        case models.Vgg9():
            return vgg9(shape, classes)
        case models.Vgg11():
            return vgg11(shape, classes)
        case models.Torchvision(arch=arch):
            return from_torchvision(arch, shape, classes)
        case models.CharLstm(embedding=embedding, hidden=width, layers=layers):
            return CharLstmNetwork(shape, classes, embedding, width, layers)
        case models.Transformer():
            options = spec.model_dump(exclude={"name", "start", "adapters"})
            return TransformerNetwork(shape, classes, **options)
        case models.CustomModel():
            return _own(spec, shape, classes, seed)


def _own(spec: CustomModel, shape: Shape, classes: int, seed: int) -> nn.Module:
    function = user_code.find(spec.name, "model")
    model = user_code.call(function, spec.args, {"shape": shape, "classes": classes, "seed": seed})
    if not isinstance(model, nn.Module):
        raise BadInput(f"model.name: {spec.name} gave a {type(model).__name__}, not a torch.nn.Module")
    tensors = itertools.chain(model.named_parameters(), model.named_buffers())
    if unbuilt := [name for name, tensor in tensors if is_lazy(tensor)]:
        raise BadInput(
            f"model.name: {spec.name} gave a model whose {unbuilt[0]} is not built yet; let it take an example first, "
            "model(torch.zeros(2, *shape))"
        )
    return model


def from_torchvision(arch: str, shape: Shape, classes: int) -> nn.Module:
    """torchvision's `arch` with random weights and that many classes, for images of `shape`.

    Grey images are repeated to three channels, so that the network and the names and shapes of its tensors are those
    of its paper, and published weights fit as a start file. `BadInput` for a name that torchvision does not have as a
    classification model, and for images that the network has no way to take.
    """
    from torchvision import models as zoo  # type: ignore[import-untyped]  # noqa: PLC0415 - a second of imports

    known = zoo.list_models(module=zoo)
    if arch not in known:
        close = difflib.get_close_matches(arch, known, 3) or ["resnet18", "mobilenet_v3_small"]
        raise BadInput(f"model.arch: torchvision has no classification model {arch}; it has {', '.join(close)}")
    channels, height, width = image(f"torchvision ({arch})", shape)
    if channels not in (1, 3):
        raise BadInput(f"model.arch: {arch} takes images of 1 or 3 channels, not {channels}")
    try:
        model: nn.Module = zoo.get_model(arch, weights=None, num_classes=classes, **_options(arch, height, width))
        if channels == 1:
            model.register_forward_pre_hook(_repeated)
        model.eval()
        with torch.no_grad():
            model(torch.zeros(1, *shape))
    except (AssertionError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise BadInput(f"model.arch: {arch} does not take images of {height}×{width}: {reason}") from error
    return model.train()


def _options(arch: str, height: int, width: int) -> dict[str, Any]:
    if arch.startswith("vit_"):
        return {"image_size": height}
    if arch.startswith("maxvit_"):
        return {"input_size": (height, width)}
    # One output instead of three, and the initialization that torchvision warns to choose.
    if arch in ("googlenet", "inception_v3"):
        return {"aux_logits": False, "init_weights": True}
    return {}


def _repeated(_: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    """(n, 1, height, width) as (n, 3, height, width)."""
    return inputs[0].expand(-1, 3, -1, -1)


def adapt(model: nn.Module, spec: Lora, name: str) -> None:
    """Freezes `model` in place but for its last layer, and puts low-rank adapters around its targets (Hu et al. 2021).

    Targets are linear layers and convolutions below the last layer, by their names or the ends of these. The last one
    is trained in full: it is new for the data's classes. `BadInput` if there is no target, with those that would do.
    """
    try:
        import peft  # noqa: PLC0415 - seconds of imports
    except ModuleNotFoundError as error:
        if error.name != "peft":
            raise
        raise BadInput("model.adapters: this trainer has no module peft; install fedq[lora] there") from error
    layers = _layers(model)
    if not layers:
        raise BadInput(f"model.adapters: {name} has no linear layer and no convolution that lora could adapt")
    *below, last = layers
    wanted = spec.targets or _LORA_TARGETS.get(name)
    found = [layer for layer in below if wanted is None or any(f".{layer}".endswith(f".{end}") for end in wanted)]
    if not found:
        shown = ", ".join(below[:_LISTED]) + (f" and {len(below) - _LISTED} more" if len(below) > _LISTED else "")
        asked = f" called {', '.join(wanted)}" if wanted else ""
        would = f"these would do: {shown}" if below else "it has none below its last layer, which is trained as it is"
        raise BadInput(f"model.adapters.targets: {name} has no layer{asked} that lora can adapt; {would}")
    config = peft.LoraConfig(
        r=spec.rank,
        lora_alpha=spec.alpha,  # type: ignore[arg-type]  # any number: it is divided by the rank
        lora_dropout=spec.dropout,
        target_modules="|".join(map(re.escape, found)),  # one string is a pattern that the whole name must match
    )
    try:
        peft.inject_adapter_in_model(config, model)
    except (ValueError, NotImplementedError) as error:
        raise BadInput(f"model.adapters: peft cannot adapt {name}: {error}") from error
    model.get_submodule(last).requires_grad_(True)


def _layers(model: nn.Module) -> list[str]:
    """The names of the linear layers and convolutions, in order, that are called as modules.

    Not those of torch's own attention, which reads their weights past any adapter, and not grouped convolutions, which
    are small and need a rank that the groups divide.
    """
    apart = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, _FUSED))
    return [
        name
        for name, module in model.named_modules()
        if (isinstance(module, nn.Linear) or (isinstance(module, _CONVOLUTIONS) and module.groups == 1))
        and not name.startswith(apart)
    ]
