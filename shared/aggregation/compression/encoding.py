"""Encoding of vectors: P float32 values are written into a smaller file, and read again tile by tile.

Error feedback (Seide et al. 2014 for one bit, Karimireddy et al. 2019 for any encoding) adds what an encoding leaves
out to what it encodes next: Σ decoded + residual = Σ values.

If `compress.model` is given, a model travels as its encoded difference to the model before. The committed model is
what a receiver can build, old + decoded, and not what the server step gave: so both have the same bits, each new
difference refers to a model that every receiver has, and no error adds up unseen. The server's residual keeps what a
difference left out. Buffers are in it as the new model has them.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from shared.aggregation.weights import File, Flat, Layout, Place, layout_of, tiles_of
from shared.errors import Refused

LARGEST = float(np.finfo(np.float32).max)
_BUFFERS = "buffers"  # the tensor of a lossy file that holds them


class Encoding:
    """One way to write vectors of shape (P,). The same values give the same bytes, wherever and whenever.

    The last values may be buffers, such as batch norm's running statistics: an error in these is not one that later
    rounds make good, and a variance below zero is NaN. They are few, and every encoding writes them as they are.

    A file that is encoded into is `layout.empty_file()`. One that is read has passed
    `weights.check_header(file, layout)`, and nothing else about it is taken for granted.
    """

    parameters: int  #: how many of the values are encoded; the others are buffers
    size: int  #: P, all of them
    layout: Layout  #: of the file; its size depends on these two alone

    def encode(self, values: Flat, file: File) -> None:
        """Writes values of shape (P,) into a whole file; `Refused` where they hold NaN or Inf."""
        raise NotImplementedError

    def tiles(self, file: File) -> Iterator[tuple[Place, Flat]]:
        """The decoded values and their places, ascending and each at most once; what is left out is 0.

        None holds parameters and buffers. `Refused` where the file's places or scales cannot be: before the first tile.
        That the values are finite and within their limits is for `fold.check` to find.
        """
        raise NotImplementedError

    def decode_into(self, file: File, out: Flat) -> None:
        """Expands a file into an array of shape (P,)."""
        out.fill(0)
        for place, values in self.tiles(file):
            out[place] = values


class PlainEncoding(Encoding):
    """The values themselves, in the tensors of `layout`: what travels uncompressed."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.parameters, self.size = layout.parameters, layout.size

    def encode(self, values: Flat, file: File) -> None:
        check_encodable(values)
        self.layout.flat(file)[:] = values

    def tiles(self, file: File) -> Iterator[tuple[Place, Flat]]:
        yield from tiles_of(self.layout.flat(file), self.parameters)


class LossyEncoding(Encoding):
    """Writes the parameters in a form of its own, which a subclass knows, and the buffers beside them."""

    def __init__(self, plain: Layout, tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
        """`tensors` are what the file has for the parameters of such a vector, as for `weights.layout_of`."""
        self.parameters, self.size = plain.parameters, plain.size
        buffers = {_BUFFERS: ("F32", (self.size - self.parameters,))} if self.size > self.parameters else {}
        self.layout = layout_of({**tensors, **buffers})

    def encode(self, values: Flat, file: File) -> None:
        views = self.layout.views(file)
        if self.parameters:  # a model may have buffers alone: a step of the user's own can learn those
            self._encode(values[: self.parameters], views)
        if _BUFFERS in views:
            check_encodable(values[self.parameters :])
            views[_BUFFERS][:] = values[self.parameters :]

    def tiles(self, file: File) -> Iterator[tuple[Place, Flat]]:
        views = self.layout.views(file)
        if self.parameters:
            yield from self._tiles(views)
        if _BUFFERS in views:
            for place, tile in tiles_of(views[_BUFFERS]):
                yield slice(self.parameters + place.start, self.parameters + place.stop), tile

    def _encode(self, values: Flat, views: Mapping[str, npt.NDArray[Any]]) -> None:
        raise NotImplementedError

    def _tiles(self, views: Mapping[str, npt.NDArray[Any]]) -> Iterator[tuple[Place, Flat]]:
        raise NotImplementedError


def check_encodable(values: Flat, largest: float = LARGEST) -> None:
    """Raises `Refused` where a value of (P,) is NaN, Inf or of a greater magnitude than `largest`."""
    for _, tile in tiles_of(values):
        high, low = float(tile.max()), float(tile.min())
        if not (high <= LARGEST and low >= -LARGEST):  # NaN passes through max and min, and compares to nothing
            raise Refused("holds NaN or Inf")
        if max(high, -low) > largest:
            raise Refused(f"a value of {max(high, -low):.4g} is too large to be encoded: at most {largest:.4g}")


def encode_with_feedback(encoding: Encoding, values: Flat, residual: Flat | None, file: File) -> None:
    """Encodes values + residual, each of shape (P,); the residual becomes what the file leaves out of that sum.

    In place, with no memory beyond what `encode` needs. Without a residual, what is left out is lost. `Refused` where
    `values` hold NaN or Inf; the residual is then as it was.
    """
    if residual is None:
        encoding.encode(values, file)
        return
    check_encodable(values)
    residual += values
    encoding.encode(residual, file)
    for place, decoded in encoding.tiles(file):
        residual[place] -= decoded


def shrink(old: Flat, new: Flat, encoding: Encoding, residual: Flat | None, file: File) -> None:
    """Encodes new − old, each of shape (P,), into `file`, and replaces `new` by what `rebuild` makes of `old`.

    In place but for what `encoding.encode` needs. `Refused` where `new` holds NaN or Inf; nothing is changed then.
    """
    check_encodable(new)
    new[: encoding.parameters] -= old[: encoding.parameters]
    encode_with_feedback(encoding, new, residual, file)
    new[:] = old
    rebuild(new, file, encoding)


def rebuild(model: Flat, file: File, encoding: Encoding) -> None:
    """Makes the new model of the old one, shape (P,), in place: one float32 addition at each place of the file."""
    model[encoding.parameters :] = 0
    for place, values in encoding.tiles(file):
        model[place] += values
