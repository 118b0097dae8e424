"""Models and updates as one flat buffer with a safetensors header, wrapped and never copied.

Pure. A model file holds named tensors; the float32 ones are what federated learning moves and lie side by
side, so that they are one flat array of shape (P,): the parameters, and after them the buffers, such as batch norm's
running statistics, which no gradient reaches. An update file holds a float32 difference for each parameter and the
value itself of each buffer, in the same order. Anything else (integer counters, say) is carried along as the initial
model has it. A file that has buffers names them in its `__metadata__`, and so does one of a model in which a tensor has
several names: the tensor is there once. The format is safetensors' own
(https://github.com/huggingface/safetensors#format), which any tool reads.
"""

import hashlib
import json
import math
import struct
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from shared.errors import Refused
from shared.job.catalog.rounds import LimitsSpec

Flat = npt.NDArray[np.float32]
File = npt.NDArray[np.uint8]  #: a whole file, shape (bytes,)

Place = slice | npt.NDArray[np.intp]  #: where in (P,) some values belong: a run of them, or ascending indices
Tiles = Iterable[tuple[Place, Flat]]  #: a vector in pieces of at most TILE values, each valid until the next
TILE = 32 * 1024  #: parameters worked on at once: a tile and its buffers stay in the L2 cache

MAX_HEADER = 8 * 1024 * 1024  #: bytes
MAX_TENSORS = 10_000  #: in one file
MAX_RANK = 32  #: sides of a tensor's shape; NumPy has no more
MAX_NAME = 512  #: characters of a tensor's name
MAX_DIGITS = 19  #: of a number in a header: what 63 bits hold
_TOO_MANY = f"its header names more tensors than a model may have, {MAX_TENSORS}"
METADATA = "__metadata__"  #: what safetensors has for strings about a file, by key
BUFFERS = "fedq.buffers"  #: its key for the names of the buffers, as a JSON list
TIED = "fedq.tied"  #: its key for the other names of tensors, as a JSON object: each with the one that is there
_ALIGN = 64  #: bytes; the data begins on a cache line
_SIZES = {"F32": 4, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1, "BF16": 2}
_COMPRESSED = "BF16"  #: lies in compressed files only: a model's parameters are float32


@dataclass(frozen=True)
class Tensor:
    """One named tensor of a file; `start` and `end` are byte offsets into its data."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Layout:
    """What a file holds and where, the same for every model of a job."""

    tensors: tuple[Tensor, ...]
    buffers: frozenset[str] = frozenset()  # the float32 tensors that no gradient reaches; the last ones of these
    tied: tuple[tuple[str, str], ...] = ()  # (another name, the tensor that it is a name of), in alphabetical order

    @cached_property
    def trained(self) -> tuple[Tensor, ...]:
        """The float32 tensors, contiguous, in file order: parameters first, then buffers."""
        return tuple(tensor for tensor in self.tensors if tensor.dtype == "F32")

    @cached_property
    def size(self) -> int:
        """P, the number of float32 values."""
        return sum(math.prod(tensor.shape) for tensor in self.trained)

    @cached_property
    def parameters(self) -> int:
        """The number of parameters among the P values: all but the buffers', which come after them."""
        return sum(math.prod(tensor.shape) for tensor in self.trained if tensor.name not in self.buffers)

    @cached_property
    def header(self) -> bytes:
        """The bytes before the data."""
        about = {BUFFERS: sorted(self.buffers), TIED: dict(self.tied)}
        metadata = {key: _json(value) for key, value in about.items() if value}
        entries: dict[str, Any] = {METADATA: metadata} if metadata else {}
        entries |= {
            tensor.name: {
                "dtype": tensor.dtype,
                "shape": list(tensor.shape),
                "data_offsets": [tensor.start, tensor.end],
            }
            for tensor in self.tensors
        }
        text = _json(entries).encode()
        text += b" " * (-(8 + len(text)) % _ALIGN)
        return struct.pack("<Q", len(text)) + text

    @cached_property
    def data_size(self) -> int:
        return self.tensors[-1].end if self.tensors else 0

    @property
    def file_size(self) -> int:
        """Bytes of a whole file."""
        return len(self.header) + self.data_size

    def of_updates(self, channels: Sequence[str] = ("delta",)) -> "Layout":
        """The layout of this model's updates: its float32 tensors alone.

        Of several channels, which are in alphabetical order, each has all parameters under its name, in one piece, and
        the buffers come once: channels · parameters + buffers values in all.
        """
        if len(channels) == 1:
            return layout_of({tensor.name: ("F32", tensor.shape) for tensor in self.trained}, self.buffers)
        shapes = {tensor.name: ("F32", tensor.shape) for tensor in self.trained}
        parameters = shapes.keys() - self.buffers
        tensors = {f"{channel}.{name}": shapes[name] for channel in channels for name in parameters}
        buffers = {f"buffer.{name}": shapes[name] for name in self.buffers}
        return layout_of(tensors | buffers, buffers)

    def flat(self, file: File) -> Flat:
        """The float32 values inside a whole file, shape (P,), as a view: the parameters, then the buffers."""
        if not self.trained:
            return np.empty(0, np.float32)
        start = len(self.header) + self.trained[0].start
        return file[start : start + 4 * self.size].view(np.float32)

    def tensor_at(self, place: int) -> Tensor:
        """The tensor that one of the P float32 values lies in."""
        return next(
            tensor for tensor in self.trained if place < (tensor.end - self.trained[0].start) // _SIZES[tensor.dtype]
        )

    def views(self, file: File) -> dict[str, npt.NDArray[Any]]:
        """Each tensor inside a whole file, as a view of its shape."""
        begin = len(self.header)
        return {
            tensor.name: file[begin + tensor.start : begin + tensor.end]
            .view(_NUMPY[tensor.dtype])
            .reshape(tensor.shape)
            for tensor in self.tensors
        }

    def empty_file(self) -> File:
        """A buffer of a whole file with its header in place and its data yet to be written."""
        file = np.empty(self.file_size, np.uint8)
        file[: len(self.header)] = np.frombuffer(self.header, np.uint8)
        return file


def tiles_of(flat: Flat, parameters: int | None = None) -> Iterator[tuple[slice, Flat]]:
    """The tiles of a whole vector, shape (P,), as views; none holds parameters and buffers."""
    edge = flat.size if parameters is None else parameters
    for begin, end in ((0, edge), (edge, flat.size)):
        for start in range(begin, end, TILE):
            stop = min(start + TILE, end)
            yield slice(start, stop), flat[start:stop]


def layout_of(
    tensors: Mapping[str, tuple[str, tuple[int, ...]]],
    buffers: Collection[str] = (),
    tied: Mapping[str, str] | None = None,
) -> Layout:
    """The layout for tensors given by name as (dtype, shape); `buffers` are among them, `tied` other names of some.

    Wide dtypes come first, so that all are aligned, and the float32 ones lie together, with the buffers at their end.
    """
    order = sorted(tensors, key=lambda name: (-_SIZES[tensors[name][0]], tensors[name][0], name in buffers, name))
    placed, offset = [], 0
    for name in order:
        dtype, shape = tensors[name]
        end = offset + _SIZES[dtype] * math.prod(shape)
        placed.append(Tensor(name, dtype, shape, offset, end))
        offset = end
    return Layout(tuple(placed), frozenset(buffers), tuple(sorted((tied or {}).items())))


def read_layout(file: File) -> Layout:
    """The layout of a model file that fedq itself would have written, or `Refused`, whatever the bytes are."""
    try:
        header = _header(file)
        layout = layout_of(*_entries(header))
        if header != layout.header or file.nbytes != layout.file_size:
            raise Refused("tensors are not laid out as fedq lays them out (by width, dtype and name)")
    except Refused:
        raise
    except Exception as error:  # a stranger's bytes: whatever they bring out of a parser is their fault
        raise Refused(f"not a safetensors file: {error}") from error
    return layout


def _header(file: File) -> bytes:
    """The bytes before the data, no longer than may be parsed."""
    if file.nbytes < 8:
        raise Refused(f"not a safetensors file: {file.nbytes} bytes")
    (length,) = struct.unpack("<Q", file[:8].tobytes())
    if length > min(MAX_HEADER, file.nbytes - 8):
        raise Refused(f"not a safetensors file: its header would have {length} bytes")
    header = file[: 8 + length].tobytes()
    # Counted before it is parsed, which takes a hundred times as long.
    if header.count(b"{") > MAX_TENSORS + 3 or header.count(b",") > (MAX_RANK + 4) * MAX_TENSORS:
        raise Refused(_TOO_MANY)
    return header


def _entries(header: bytes) -> tuple[dict[str, tuple[str, tuple[int, ...]]], frozenset[str], dict[str, str]]:
    """The dtype and shape of each tensor that a header names, its buffers and its other names, within their bounds."""
    found = _parsed(header[8:])
    about = found.pop(METADATA, {})
    entries = {}
    for name, entry in found.items():
        _check_name(name)
        dtype, shape = entry["dtype"], entry["shape"]
        if dtype not in DTYPES.values():
            raise Refused(f"tensor {name} is {ascii(dtype)[:20]}; a model has {', '.join(DTYPES.values())}")
        if len(shape) > MAX_RANK or any(type(side) is not int or side < 0 for side in shape):
            raise Refused(f"tensor {name} has the shape {ascii(shape)[:100]}")
        entries[name] = dtype, tuple(shape)
    if len(entries) > MAX_TENSORS:
        raise Refused(_TOO_MANY)
    buffers, tied = (_parsed(about[key]) if key in about else () for key in (BUFFERS, TIED))
    for name in buffers:
        if name not in entries or entries[name][0] != "F32":
            raise Refused(f"its header names a buffer {ascii(name)[:40]}, and it has no such float32 tensor")
    for name, target in dict(tied).items():
        _check_name(name)
        if name in entries or target not in entries:
            raise Refused(f"its header ties {ascii(name)[:40]} to {ascii(target)[:40]}, and it has no such two names")
    return entries, frozenset(buffers), dict(tied)


def _check_name(name: str) -> None:
    if not (0 < len(name) <= MAX_NAME and name.isprintable()):
        raise Refused(f"a tensor is named {name[:40]!a}; a name has 1 to {MAX_NAME} printable characters")


def _parsed(text: bytes | str) -> Any:
    return json.loads(text, parse_int=_integer, parse_float=_no_number, parse_constant=_no_number)


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def _integer(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise Refused(f"its header holds a number of {len(text)} digits")
    return int(text)


def _no_number(text: str) -> float:
    raise Refused(f"its header holds {text[:40]}, which is no whole number")


def check_header(file: File, expected: Layout) -> None:
    """Raises `Refused` unless the file's names, dtypes and shapes are exactly `expected`."""
    if file[: len(expected.header)].tobytes() == expected.header:
        if file.nbytes != expected.file_size:
            raise Refused(f"has {file.nbytes} bytes instead of {expected.file_size}")
        return
    found = {tensor.name: tensor for tensor in read_layout(file).tensors}
    wanted = {tensor.name: tensor for tensor in expected.tensors}
    if missing := sorted(wanted.keys() - found.keys()):
        raise Refused(f"tensor {missing[0]} is missing")
    if extra := sorted(found.keys() - wanted.keys()):
        raise Refused(f"tensor {extra[0]} is not in the model")
    for name, tensor in wanted.items():
        if found[name].dtype != tensor.dtype:
            raise Refused(f"tensor {name} is {found[name].dtype} instead of {tensor.dtype}")
        if found[name].shape != tensor.shape:
            raise Refused(f"tensor {name} has shape {list(found[name].shape)} instead of {list(tensor.shape)}")
    raise Refused("its header is not the model's")


def digest_of(file: File) -> str:
    """SHA-256 of a whole file, as 64 hexadecimal digits."""
    return hashlib.sha256(file.data).hexdigest()


_NUMPY: dict[str, Any] = {
    "F32": np.float32,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
    "BF16": np.uint16,  # NumPy has no bfloat16: the bits
}
DTYPES = {np.dtype(numpy): name for name, numpy in _NUMPY.items() if name != _COMPRESSED}  #: what a model may hold


def check_model_size(size: int, limits: LimitsSpec) -> None:
    """`Refused` where a model's file, of `size` bytes, is longer than the job allows."""
    if size > limits.max_model_mb << 20:
        raise Refused(f"the model has {size >> 20} MB; limits.max_model_mb is {limits.max_model_mb}")


def check_initial_model(file: File, layout: Layout) -> None:
    """`Refused` where nothing of the model in a file can be trained, or a tensor of it is not finite."""
    if layout.size == 0:
        raise Refused("the model has no float32 parameters: there is nothing to train")
    trained = {tensor.name for tensor in layout.trained}
    for name, values in layout.views(file).items():
        # NaN passes through both, so that no array of answers is made.
        if name in trained and values.size and not math.isfinite(float(values.max()) - float(values.min())):
            advice = "; where it is a mask, register it with persistent=False" if name in layout.buffers else ""
            raise Refused(f"the model's tensor {name} holds NaN or Inf, or values beyond float32{advice}")
