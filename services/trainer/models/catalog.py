"""The models that a job file may name, and the way to the user's own."""

import itertools

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from services.trainer.models.feed_forward import Shape, cnn, lenet, mlp, resnet, softmax, vgg9, vgg11
from services.trainer.models.sequences import CharLstm, Transformer
from shared.errors import BadInput
from shared.job import user_code
from shared.job.catalog import models
from shared.job.catalog.models import CustomModel, ModelSpec

__all__ = ["build", "lenet"]


def build(spec: ModelSpec, shape: Shape, classes: int, seed: int) -> nn.Module:
    """A model for examples of `shape`, which gives logits (n, classes); its weights are drawn from `seed`.

    With adapters, where the job asks for them. What `spec.start` says is the caller's to load (`start.begin_with`).
    `BadInput` where the model cannot take the shape.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _named(spec, shape, classes, seed)
        if spec.adapters is not None:
            from services.trainer.models import adapters  # noqa: PLC0415 - seconds of imports, for who asks alone

            adapters.adapt(model, spec.adapters, spec.name)
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
            from services.trainer.models import vision  # noqa: PLC0415 - a second of imports, for who asks alone

            return vision.by_name(arch, shape, classes)
        case models.CharLstm(embedding=embedding, hidden=width, layers=layers):
            return CharLstm(shape, classes, embedding, width, layers)
        case models.Transformer():
            options = spec.model_dump(exclude={"name", "start", "adapters"})
            return Transformer(shape, classes, **options)
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
