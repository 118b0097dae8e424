"""Tensors that are one under several names: weights that two layers share.

Names are those of a model's state. Such a tensor travels once, under the first name that is a trained parameter's, so
that it is encoded once and counts once in a norm; loaded, it is there under all of its names, as their memory is one.
"""

from collections.abc import Collection, Iterable, Mapping

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from shared.errors import BadInput

_WORK = 1_000_000  # steps that may be spent on finding out whether two views have an element in common


def tied(state: Mapping[str, Tensor], parameters: Collection[str] = ()) -> dict[str, str]:
    """The other names of tensors that have several, each with the name that the tensor goes by."""
    names: dict[tuple[object, ...], str] = {}
    found = {}
    for name in sorted(state, key=lambda name: name not in parameters):  # of equals, in the order of the state
        if state[name].numel():
            first = names.setdefault(_view(state[name]), name)
            if first != name:
                found[name] = first
    return found


def is_one(one: Tensor, other: Tensor) -> bool:
    """True where two tensors are the same memory, seen in the same way."""
    return _view(one) == _view(other)


def tie(model: nn.Module, names: Iterable[tuple[str, str]]) -> None:
    """Makes each first name one with the second again: moved to another device, a shared buffer becomes two."""
    tensors = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    for name, first in names:
        tensors[name].data = tensors[first].data


def refuse_overlaps(state: dict[str, Tensor], beside: dict[str, Tensor]) -> None:
    """`BadInput` where two tensors share a part of their memory, or see it in two ways, such as transposed.

    The mean of each would not be a mean of the other, and what is left out of one by an encoding is not of the other.
    Those that lie `beside` the state are put back for each client, and must not take the state along; whether they
    share memory among themselves does not matter.
    """
    before: list[tuple[int, str, Tensor]] = []  # those that may reach into the next one, with their ends
    for name, tensor in sorted((state | beside).items(), key=lambda item: item[1].data_ptr()):
        if not tensor.numel():
            continue
        before = [found for found in before if found[0] > tensor.data_ptr() and found[2].device == tensor.device]
        for _, other, earlier in before:
            if not {other, name} <= beside.keys() and _shares(earlier, tensor):
                how = "one of them is not persistent" if is_one(earlier, tensor) else "are not the same tensor"
                raise BadInput(
                    f"model: {other} and {name} share memory and {how}; let one module own it, and make the other of "
                    "it in forward, or clone it"
                )
        last = sum((side - 1) * stride for side, stride in zip(tensor.shape, tensor.stride(), strict=True))
        before.append((tensor.data_ptr() + (last + 1) * tensor.element_size(), name, tensor))


def refuse_expanded(tensors: Mapping[str, Tensor]) -> None:
    """`BadInput` where a tensor, of floats or not, has several values in one place: torch copies nothing into such."""
    for name, tensor in tensors.items():
        if any(side > 1 and not stride for side, stride in zip(tensor.shape, tensor.stride(), strict=True)):
            raise BadInput(f"model: {name} has one place in memory for several values, as expand() leaves it; clone it")


def unite(model: nn.Module) -> None:
    """Makes one parameter of trained ones that are the same memory: else weight decay or FedProx would count twice."""
    firsts: dict[tuple[object, ...], nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            if parameter.requires_grad and parameter.numel():
                first = firsts.setdefault(_view(parameter), parameter)
                if first is not parameter:
                    setattr(module, name, first)  # a recurrent layer takes it into its list of weights as well


def _view(tensor: Tensor) -> tuple[object, ...]:
    return tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def _shares(one: Tensor, other: Tensor) -> bool:
    try:
        # NumPy's own types know of 0 and −1 alone.
        return np.shares_memory(_addresses(one), _addresses(other), max_work=_WORK)  # type: ignore[arg-type]
    except np.exceptions.TooHardError:
        return True


def _addresses(tensor: Tensor) -> npt.NDArray[np.void]:
    """An array of the same addresses, on whatever device: nobody looks at what is there."""
    size = tensor.element_size()
    return np.asarray(_Memory({
        "version": 3,
        "typestr": f"|V{size}",
        "data": (tensor.data_ptr(), True),
        "shape": tuple(tensor.shape),
        "strides": tuple(size * stride for stride in tensor.stride()),
    }))  # fmt: skip


class _Memory:
    def __init__(self, interface: dict[str, object]) -> None:
        self.__array_interface__ = interface
