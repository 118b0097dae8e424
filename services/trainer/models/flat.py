"""The shared part of a model, in a flat file and back: every floating tensor as float32, the others as they are.

Not all of a model is: a client may keep layers and batch norm's statistics, and what adapters freeze is the same
everywhere. Names are those of the model's state; a tensor that has several is shared once.

Parameters that training has a gradient for are shared as what changed of them. All other floats, such as batch norm's
statistics, are buffers: their values are shared, which the aggregator averages and takes no further step with.
"""

from collections.abc import Collection, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from services.trainer.models.module_state import (
    TransientState,
    has_adapters,
    is_one,
    refuse_expanded,
    refuse_hidden,
    refuse_overlaps,
    tie,
    tied,
    unite,
)
from shared.aggregation import weights
from shared.aggregation.weights import File, Layout
from shared.errors import BadInput, Refused
from shared.job import user_code
from shared.job.catalog.training import Kept

Array = npt.NDArray[Any]

BATCH_NORM = "batch_norm"  #: word in `Kept.personal` for every parameter and buffer of a batch norm layer

_KEPT = {
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_SHOWN = 8


class FlatModel:
    """A warm model: loaded from a base, trained in place, and asked for what changed.

    Its tensors and the buffer of its update stay allocated from one client to the next; their values do not: whatever
    is not in the base is the client's own, or what the model had when this was made.
    """

    def __init__(self, model: nn.Module, kept: Kept | None = None, device: torch.device | None = None) -> None:
        """`kept` is what stays with a client; `BadInput` if a pattern fits no tensor, or none would travel.

        The model is moved to the device, where one is given.
        """
        self.model = model
        unite(model)
        kept = kept or Kept()
        state = model.state_dict()
        frozen = _frozen(model)
        statistics = _batch_norm(model, parameters=False) & state.keys() if kept.buffers != "averaged" else set()
        personal = _personal(model, kept.personal, state.keys() - frozen)
        apart = personal | statistics
        self.layout = layout_of(model, apart | frozen)
        if not self.layout.size:
            raise BadInput(
                f"train.personal: {', '.join(kept.personal)} is all that is trained; nothing would be shared"
            )
        _refuse_tied(state, personal, state.keys() - apart - frozen)
        beside = {name: held for name, held in model.named_buffers() if name not in state}
        refuse_expanded(state | beside)
        refuse_overlaps(_floats(model), beside)
        refuse_hidden(model)
        if device is not None:
            tie(model.to(device), self.layout.tied)
            state = model.state_dict()
        self._own = apart if kept.buffers == "local" else personal
        self._beside = TransientState(model)
        self._shapes = {name: tensor.shape for name, tensor in state.items()}
        self._kinds = _kinds(state)
        # Tensors that are not in the base must not pass from one client to the next: each client begins with these.
        self._first = {name: state[name].clone() for name in apart}
        self._aside = {name: buffer.clone() for name, buffer in model.named_buffers() if name not in state}
        self._frozen = {name: _identity(state[name]) for name in frozen}
        self._updates = self.layout.of_updates()
        self._update: File | None = None

    def load(self, file: File, personal: Mapping[str, Array] | None = None) -> None:
        """Takes over the tensors of a model file, or `Refused` if they are not those that this model shares.

        What the client keeps comes from `personal`; what is absent there begins as the model did. Gradients, hooks and
        plain attributes that were left in the model are another client's, and are gone.
        """
        try:
            weights.check_header(file, self.layout)
        except Refused as error:  # the user's code differs, or this trainer runs another version of fedq
            raise Refused(
                f"this trainer builds another model than the job's: {error}; it must be the same each time, everywhere"
            ) from error
        self._beside.put_back()
        personal = personal or {}
        self._check(personal)
        with torch.no_grad():
            values = self.layout.views(file)
            for name, tensor in self._state().items():
                if name in values:
                    tensor.copy_(torch.from_numpy(values[name]))
                elif name in personal:
                    tensor.copy_(torch.tensor(personal[name]))
                elif name in self._first:
                    tensor.copy_(self._first[name])
            for name, buffer in self.model.named_buffers():
                if name in self._aside:
                    buffer.copy_(self._aside[name])

    def save(self) -> File:
        """All that is shared of the model, as a new file."""
        file = self.layout.empty_file()
        state = self._state()
        for name, place in self.layout.views(file).items():
            np.copyto(place, _array(state[name]), casting="same_kind")
        return file

    def update(self, base: File) -> File:
        """An update file: how this model's parameters differ from the base file it was loaded from, and its buffers.

        It is valid until the next call, which fills the same buffer.
        """
        if self._update is None:
            self._update = self._updates.empty_file()
        old, new = self.layout.views(base), self._updates.views(self._update)
        state = self._state()
        for name, identity in self._frozen.items():
            if _identity(state[name]) != identity:
                raise BadInput(f"training changed {name}, which adapters freeze: it would not be sent")
        for name, place in new.items():
            if name in self.layout.buffers:
                np.copyto(place, _array(state[name]), casting="same_kind")
            else:
                np.subtract(_array(state[name]), old[name], out=place, casting="same_kind")
        return self._update

    def personal(self) -> dict[str, Array]:
        """Copies of what the client keeps, floats as float32, by name; empty if nothing is kept.

        `BadInput` if it is not finite: the client would begin with that in each round to come.
        """
        state = self._state()
        found = {}
        for name in sorted(self._own):
            array = _array(state[name])
            with np.errstate(over="ignore"):
                kept = array.astype(np.float32 if array.dtype.kind == "f" else array.dtype)
            if not np.isfinite(kept).all():
                raise BadInput(
                    f"training diverged: {name}, which the client keeps, holds NaN or Inf, or values beyond float32; a "
                    "lower learning rate, or data of a smaller scale, may help"
                )
            found[name] = kept
        return found

    def _check(self, personal: Mapping[str, Array]) -> None:
        for name, array in personal.items():
            if name not in self._own:
                raise Refused(f"what the client keeps has a tensor {name}, which is not among those that it may keep")
            if array.shape != self._shapes[name]:
                raise Refused(
                    f"what the client keeps has {name} of shape {array.shape}, not {tuple(self._shapes[name])}"
                )

    def _state(self) -> dict[str, Tensor]:
        # Read again each time: training may have replaced a tensor. Detached tensors share the model's memory.
        with user_code.running():
            state = self.model.state_dict()
        if (kinds := _kinds(state)) != self._kinds:
            now, before = min(kinds.items() - self._kinds.items(), default=("", "")), self._kinds
            was = f"{now[0]} is {now[1]} now, and was {before.get(now[0], 'not there')}" if now[0] else "some are gone"
            raise BadInput(f"training changed what the model's tensors are: {was}; a step leaves them as they came")
        for name, first in self.layout.tied:
            if not is_one(state[name], state[first]):
                raise BadInput(f"training made two tensors of {name} and {first}, which were one")
        return state


def _kinds(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Shape and dtype of each tensor, such as `float32 [3, 5]`."""
    return {name: f"{str(tensor.dtype)[6:]} {list(tensor.shape)}" for name, tensor in state.items()}


def layout_of(model: nn.Module, apart: Collection[str] = ()) -> Layout:
    """The place of each tensor of a model but those `apart` in its file; `BadInput` for one that cannot travel."""
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name, tensor in model.state_dict().items():
        if not isinstance(tensor, Tensor):
            raise BadInput(f"model: {name} is a {type(tensor).__name__}; a model's state holds tensors alone")
        dtype = "F32" if tensor.is_floating_point() else _KEPT.get(tensor.dtype)
        if dtype is None or tensor.is_sparse:
            raise BadInput(
                f"model: {name} is {tensor.dtype} ({tensor.layout}); a model's tensors are dense, and of floats, of "
                "integers from int8 to int64, uint8 or bool"
            )
        tensors[name] = (dtype, tuple(tensor.shape))
    if not any(dtype == "F32" for dtype, _ in tensors.values()):
        raise BadInput("model: it has no floating point tensors to train")
    state = {name: tensor for name, tensor in model.state_dict().items() if name not in apart}
    trained = _trained(model)
    others = tied(state, trained)
    floats = {name for name in state if name not in others and tensors[name][0] == "F32"}
    return weights.layout_of({name: tensors[name] for name in state if name not in others}, floats - trained, others)


def _trained(model: nn.Module) -> set[str]:
    named = model.named_parameters(remove_duplicate=False)
    return {name for name, parameter in named if parameter.requires_grad}


def _floats(model: nn.Module) -> dict[str, Tensor]:
    """The floats of the state, shared or not, each under one name."""
    state = model.state_dict()
    others = tied(state, _trained(model))
    return {name: tensor for name, tensor in state.items() if name not in others and tensor.is_floating_point()}


def _frozen(model: nn.Module) -> set[str]:
    """The parameters that adapters freeze."""
    if not has_adapters(model):
        return set()
    parameters = model.named_parameters(remove_duplicate=False)
    return {name for name, parameter in parameters if not parameter.requires_grad}


def _personal(model: nn.Module, patterns: Sequence[str], names: Collection[str]) -> set[str]:
    """Which of `names` the client keeps, or `BadInput` for a pattern that fits none."""
    found: set[str] = set()
    for pattern in patterns:
        if pattern == BATCH_NORM:
            fitting = _batch_norm(model, parameters=True).intersection(names)
        else:
            fitting = {name for name in names if fnmatchcase(name, pattern)}
        if not fitting:
            shown = sorted(names)[:_SHOWN]
            more = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
            raise BadInput(
                f"train.personal: {pattern} fits no tensor that is trained; there are {', '.join(shown)}{more}"
            )
        found |= fitting
    return found


def _batch_norm(model: nn.Module, *, parameters: bool) -> set[str]:
    """The layers of batch norm, parameters and all; without parameters, the running statistics of instance norm too."""
    found = set()
    for prefix, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, _BatchNorm if parameters else _NormBase):
            own = [name for name, _ in module.named_buffers(recurse=False)]
            own += [name for name, _ in module.named_parameters(recurse=False)] if parameters else []
            found |= {f"{prefix}.{name}" if prefix else name for name in own}
    return found


def _refuse_tied(state: Mapping[str, Tensor], personal: Collection[str], shared: Collection[str]) -> None:
    """Two names of one tensor must not be of two minds: what is personal would travel under the other."""
    places = {state[name].data_ptr(): name for name in shared if state[name].numel()}
    for name in sorted(personal):
        other = places.get(state[name].data_ptr())
        if other is not None:
            raise BadInput(f"train.personal: {name} and {other} are one tensor; name both, or neither")


def _identity(tensor: Tensor) -> tuple[int, int]:
    """The address of a tensor and its number of writes: it changes with every change that torch is asked to make."""
    return tensor.data_ptr(), tensor._version


def _array(tensor: Tensor) -> Array:
    """A tensor as an array, sharing its memory if numpy knows the dtype and the tensor is in main memory."""
    tensor = tensor.detach().cpu()
    if tensor.is_floating_point() and tensor.dtype not in (torch.float32, torch.float64):
        tensor = tensor.float()  # numpy has no bfloat16
    return tensor.numpy()
