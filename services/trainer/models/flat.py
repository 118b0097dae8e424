"""A model's tensors in a flat file and back: every floating one as float32, the others as they are."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from shared import weights
from shared.errors import BadInput
from shared.weights import Layout

File = npt.NDArray[np.uint8]

_KEPT = {
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


class FlatModel:
    """A warm model: loaded from a base, trained in place, and asked for what changed.

    Its tensors and the buffer of its update stay allocated from one client to the next.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.layout = layout_of(model)
        # What the state does not hold must not pass from one client to the next either.
        saved = model.state_dict().keys()
        self._aside = {name: buffer.clone() for name, buffer in model.named_buffers() if name not in saved}
        self._updates = self.layout.of_updates()
        self._update: File | None = None

    def load(self, file: File) -> None:
        """Takes over the tensors of a model file, or `Refused` where they are not this model's."""
        weights.check_header(file, self.layout)
        with torch.no_grad():
            values = self.layout.views(file)
            for name, tensor in self._state().items():
                tensor.copy_(torch.from_numpy(values[name]))
            for name, buffer in self.model.named_buffers():
                if name in self._aside:
                    buffer.copy_(self._aside[name])

    def save(self) -> File:
        """The whole model as a new file."""
        file = self.layout.empty_file()
        places = self.layout.views(file)
        for name, tensor in self._state().items():
            np.copyto(places[name], _array(tensor), casting="same_kind")
        return file

    def update(self, base: File) -> File:
        """An update file: the float32 difference between this model and the base file it was loaded from.

        It is valid until the next call, which fills the same buffer.
        """
        if self._update is None:
            self._update = self._updates.empty_file()
        old, new = self.layout.views(base), self._updates.views(self._update)
        state = self._state()
        for name, difference in new.items():
            np.subtract(_array(state[name]), old[name], out=difference, casting="same_kind")
        return self._update

    def _state(self) -> dict[str, Tensor]:
        # Anew each time: training may have replaced a tensor. Detached, they share the model's memory.
        state = self.model.state_dict()
        expected = {tensor.name: tensor.shape for tensor in self.layout.tensors}
        if {name: tuple(tensor.shape) for name, tensor in state.items()} != expected:
            raise BadInput("training changed the names or shapes of the model's tensors")
        return state


def layout_of(model: nn.Module) -> Layout:
    """Where each tensor of a model lies in its file, or `BadInput` for one that cannot travel."""
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name, tensor in model.state_dict().items():
        if not isinstance(tensor, Tensor):
            raise BadInput(f"model: {name} is a {type(tensor).__name__}; a model's state holds tensors alone")
        dtype = "F32" if tensor.is_floating_point() else _KEPT.get(tensor.dtype)
        if dtype is None or tensor.is_sparse:
            raise BadInput(f"model: {name} is {tensor.dtype} ({tensor.layout}); a model has real, dense tensors")
        tensors[name] = (dtype, tuple(tensor.shape))
    if not any(dtype == "F32" for dtype, _ in tensors.values()):
        raise BadInput("model: it has no floating point tensors to train")
    return weights.layout_of(tensors)


def _array(tensor: Tensor) -> npt.NDArray[Any]:
    """A tensor as an array, sharing its memory where numpy knows the dtype and the tensor is in main memory."""
    tensor = tensor.detach().cpu()
    if tensor.is_floating_point() and tensor.dtype not in (torch.float32, torch.float64):
        tensor = tensor.float()  # numpy has no bfloat16
    return tensor.numpy()
