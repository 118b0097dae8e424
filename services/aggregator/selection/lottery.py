"""Drawing of clients by hashes of (seed, round, attempt, name): as good as a shuffle, and the same in every Python."""

import hashlib
import struct
from collections.abc import Collection, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from shared.job.job_spec import JobSpec

LISTED = 10_000  #: a job with more clients than this draws from the sequence without hashing each client

Vector = npt.NDArray[np.float64]
Places = npt.NDArray[np.intp]  #: indices of clients in the sequence that was given


class Lots(NamedTuple):
    """Random numbers of n clients in one attempt at a round: the first 8 bytes of each hash, and the next 8."""

    order: npt.NDArray[np.uint64]  # (n,); the smallest are drawn first
    uniform: Vector  # (n,), in (0, 1], independent of the order


def lots(spec: JobSpec, clients: Sequence[str], number: int, attempt: int) -> Lots:
    """Returns the lots of clients, in the order of `clients`."""
    prefix = f"{spec.seed}/{number}/{attempt}/"
    hashes = b"".join([hashlib.sha256((prefix + client).encode()).digest() for client in clients])
    words = np.frombuffer(hashes, ">u8").reshape(len(clients), 4).astype(np.uint64)
    return Lots(words[:, 0], np.ldexp(words[:, 1].astype(np.float64) + 1, -64))


def drawn(spec: JobSpec, clients: Collection[str], number: int, attempt: int, size: int) -> list[str]:
    """Draws `size` clients, each as likely as any other."""
    if spec.population > LISTED:
        turns = shuffled(f"{spec.seed}/{number}/{attempt}", spec.clients)
        return list(islice((client for client in turns if client in clients), size))
    listed = tuple(clients)
    return [listed[place] for place in np.argsort(lots(spec, listed, number, attempt).order)[:size]]


def shuffled(seed: str, clients: Sequence[str]) -> Iterator[str]:
    """Yields all clients in random order; the cost grows with how many the caller takes.

    This is the Fisher-Yates shuffle (Durstenfeld 1964), stored as the places it has changed. With n places left, a
    64-bit word picks place ⌊word · n / 2^64⌋, which has a bias of less than n / 2^64.
    """
    moved: dict[int, int] = {}  # place → the index that was swapped into it; a place not listed holds its own index
    count = len(clients)
    words: tuple[int, ...] = ()
    for place in range(count):
        if place % 4 == 0:
            words = struct.unpack(">4Q", hashlib.sha256(f"{seed}/{place // 4}".encode()).digest())
        other = place + (words[place % 4] * (count - place) >> 64)
        here = moved.pop(place, place)
        yield clients[here if other == place else moved.get(other, other)]
        if other != place:
            moved[other] = here


def weighted(weights: Vector, lots: Lots, size: int) -> Places:
    """Draws `size` places without replacement, in proportion to their weights (≥ 0), in the order they are drawn.

    The places with the smallest −ln(uniform) / weight have the distribution of draws one after the other, and one pass
    finds them (Efraimidis & Spirakis 2006). Places of weight 0 come last, each as likely as any other.
    """
    keys = np.full(len(weights), np.inf)
    np.divide(-np.log(lots.uniform), weights, out=keys, where=weights > 0)
    return np.lexsort((lots.order, keys))[:size]


def of(lots: Lots, places: Places) -> Lots:
    """Returns the lots at some places."""
    return Lots(lots.order[places], lots.uniform[places])
