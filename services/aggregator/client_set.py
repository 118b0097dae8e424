"""Immutable set of clients that a client can be added to without a copy.

Pure. A round's state is immutable, and each answer makes a new one; a copy for each of a million clients is too slow.
"""

from collections.abc import Iterable, Iterator, Set
from itertools import islice


class ClientSet(Set[str]):
    """Immutable, ordered set of clients; `plus` returns a larger set and leaves this one as it is.

    A set and those made from it by `plus` share one dictionary of numbered members, and each set holds the first
    `_size` of them. If two sets grow from the same one, the second gets a copy.
    """

    def __init__(self, members: Iterable[str] = ()) -> None:
        self._places = {member: place for place, member in enumerate(dict.fromkeys(members))}
        self._size = len(self._places)

    def __contains__(self, member: object) -> bool:
        return self._places.get(member, self._size) < self._size  # type: ignore[call-overload, no-any-return]

    def __iter__(self) -> Iterator[str]:
        return islice(self._places, self._size)

    def __len__(self) -> int:
        return self._size

    def __repr__(self) -> str:
        return f"ClientSet({list(self)})"

    def plus(self, member: str) -> "ClientSet":
        """Returns the set with one more member."""
        if member in self:
            return self
        larger = ClientSet()
        # If the dictionary holds more than this set, another set has grown from it, and this one needs a copy.
        larger._places = self._places if len(self._places) == self._size else {one: at for at, one in enumerate(self)}
        larger._places[member] = self._size
        larger._size = self._size + 1
        return larger

    def without(self, member: str) -> "ClientSet":
        """Returns the set without a member: a copy, or the set itself if it does not have the member."""
        return ClientSet(one for one in self if one != member) if member in self else self
