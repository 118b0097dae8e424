"""Names of clients in their order, and the place of each, in constant time and without a search.

Pure. A pool may have a million clients and a round ask a hundred of them, so a name is made only when it is used.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import overload


class Listed(tuple[str, ...]):
    """Names from a list, such as the silos of a job or the cohort of a round."""

    @cached_property
    def _places(self) -> dict[str, int]:
        return {client: place for place, client in enumerate(self)}

    def __contains__(self, client: object) -> bool:
        return client in self._places

    def index(self, client: str, *_: int) -> int:  # type: ignore[override]
        """Its place, or `ValueError`."""
        try:
            return self._places[client]
        except KeyError:
            raise ValueError(f"{client} is not in the list") from None


class Numbered(Sequence[str]):
    """The names of a pool's clients, `client-00` to `client-19` of 20, computed from their places and not stored."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._width = len(str(count - 1))

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> tuple[str, ...]: ...
    def __getitem__(self, place: int | slice) -> str | tuple[str, ...]:
        if isinstance(place, slice):
            return tuple(map(self._name, range(self._count)[place]))
        return self._name(range(self._count)[place])

    def __iter__(self) -> Iterator[str]:
        return map(self._name, range(self._count))

    def __contains__(self, client: object) -> bool:
        return isinstance(client, str) and self._place(client) is not None

    def index(self, client: str, *_: int) -> int:
        """Its place, or `ValueError`."""
        place = self._place(client)
        if place is None:
            raise ValueError(f"{client} is none of {self}")
        return place

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Numbered):
            return self._count == other._count
        return isinstance(other, tuple) and len(other) == self._count and tuple(self) == other

    def __hash__(self) -> int:
        return hash((Numbered, self._count))

    def __repr__(self) -> str:
        return f"{self._name(0)} to {self._name(self._count - 1)}"

    def _name(self, place: int) -> str:
        return f"client-{place:0{self._width}d}"

    def _place(self, client: str) -> int | None:
        number = client.removeprefix("client-")
        # Python's `int` accepts digits of other scripts, signs and spaces, so the name must equal the one of its place.
        place = int(number) if len(number) == self._width and number.isascii() and number.isdecimal() else -1
        return place if 0 <= place < self._count and self._name(place) == client else None
