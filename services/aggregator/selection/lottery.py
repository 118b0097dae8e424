"""Drawing clients: by hashes of (seed, round, attempt, name), as good as a shuffle and the same in every Python."""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from shared.jobs import JobSpec

Vector = npt.NDArray[np.float64]
Places = npt.NDArray[np.intp]  #: of clients in the sequence that was given


class Lots(NamedTuple):
    """What n clients have drawn in one attempt at a round: the first 8 bytes of each hash, and the next 8."""

    order: npt.NDArray[np.uint64]  # (n,); the smallest are drawn first
    uniform: Vector  # (n,), in (0, 1], independent of the order


def lots(spec: JobSpec, clients: Sequence[str], number: int, attempt: int) -> Lots:
    """The lots of clients, in their order."""
    prefix = f"{spec.seed}/{number}/{attempt}/"
    hashes = b"".join([hashlib.sha256((prefix + client).encode()).digest() for client in clients])
    words = np.frombuffer(hashes, ">u8").reshape(len(clients), 4).astype(np.uint64)
    return Lots(words[:, 0], np.ldexp(words[:, 1].astype(np.float64) + 1, -64))


def drawn(spec: JobSpec, clients: Sequence[str], number: int, attempt: int, size: int) -> list[str]:
    """So many of the clients, each as likely as any other."""
    return [clients[place] for place in np.argsort(lots(spec, clients, number, attempt).order)[:size]]


def weighted(weights: Vector, lots: Lots, size: int) -> Places:
    """So many places in the order they are drawn, one after the other in proportion to their weights (≥ 0).

    The smallest of −ln(uniform) / weight, which is that without going through them once for each that is drawn
    (Efraimidis & Spirakis 2006). Those of weight 0 come last, each as likely as any other.
    """
    keys = np.full(len(weights), np.inf)
    np.divide(-np.log(lots.uniform), weights, out=keys, where=weights > 0)
    return np.lexsort((lots.order, keys))[:size]


def of(lots: Lots, places: Places) -> Lots:
    """The lots at some places."""
    return Lots(lots.order[places], lots.uniform[places])
