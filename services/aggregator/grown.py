"""Those of a round's clients that have answered, as a value that grows without being copied.

Pure. The engine's states are immutable, and each client that answers makes another one.
"""

from collections.abc import Iterable, Iterator, Set
from itertools import islice


class Grown(Set[str]):
    """A set that grows: what is added makes another set, and the one before stays as it was.

    All that grew of one share their members, numbered as they came; each knows how many of them are its own. Two that
    grew apart no longer share.
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
        return f"Grown({list(self)})"

    def plus(self, member: str) -> "Grown":
        """This set and one more."""
        if member in self:
            return self
        grown = Grown()
        # Where another set has grown of this one, it keeps the members that they shared.
        grown._places = self._places if len(self._places) == self._size else {one: at for at, one in enumerate(self)}
        grown._places[member] = self._size
        grown._size = self._size + 1
        return grown

    def without(self, member: str) -> "Grown":
        """This set without a member; a copy where it was one."""
        return Grown(one for one in self if one != member) if member in self else self
