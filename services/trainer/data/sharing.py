"""A data set of the catalog, shared out among a job's clients after a test set was held out."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from services.trainer.data import partitions
from services.trainer.data.source import Floats, Labels, Source
from shared.job.catalog.data import Downloaded, Held, Natural, Shared

Indices = npt.NDArray[np.int64]


class SharedOut:
    """A `Source` in shares, one for each client: places in its arrays, which all splits of it have in common.

    Where the source is the client's own (`whole`), all of it is the share of whoever asks. `owners` are the names of
    those whose examples a natural partition shares out, in the order of the clients; none stands for those beyond them.
    """

    def __init__(self, spec: Shared, clients: int, seed: int, source: Source, *, whole: bool = False) -> None:
        self.source = source
        self.is_common = not whole  # to all clients, which have the same files
        self.shape = source.shape
        self.names = source.names
        self.classes = len(source.names)
        size, owners = source.y.size, source.owners
        self._test: Indices = np.arange(0)
        training = np.arange(size)
        if source.test is None and isinstance(spec, Held):
            self._test, training = held_out(size, owners, spec.test_fraction, seed)
        elif isinstance(spec, Downloaded) and spec.fraction < 1:
            kept = max(1, round(spec.fraction * size))
            training = np.sort(np.random.default_rng([seed, 2]).permutation(size)[:kept])
        self._training = training
        groups = None if owners is None else owners[training]
        self.owners: tuple[str, ...] = ()
        if whole:
            self._shares: Sequence[Indices] = [np.arange(training.size)] * clients
            return
        self._shares = partitions.shares(spec.partition, source.y[training], groups, clients, seed)
        if isinstance(spec.partition, Natural) and groups is not None:
            self.owners = tuple(map(str, np.unique(groups)))

    def client(self, name: str, index: int) -> tuple[Floats, Labels]:  # noqa: ARG002 - a share goes by its number
        """One client's examples: x (n, *shape) and y (n,)."""
        return self.source.examples(self._training[self._shares[index]])

    def test(self) -> tuple[Floats, Labels] | None:
        """The test set of the data, or what was held out; None where that is nothing."""
        if self.source.test is not None:
            return self.source.of_test()
        return self.source.examples(self._test) if self._test.size else None

    def labels(self, index: int) -> Labels:
        """One client's labels alone, without making floats of its examples."""
        return self.source.y[self._training[self._shares[index]]]

    def test_labels(self) -> Labels | None:
        """The test set's labels alone."""
        if self.source.test is not None:
            return self.source.test[1]
        return self.source.y[self._test] if self._test.size else None


def held_out(size: int, owners: npt.NDArray[np.generic] | None, fraction: float, seed: int) -> tuple[Indices, Indices]:
    """The places of the test set and of all others, drawn from a stream of their own: no partition changes them.

    Where `owners` (n,) says whose the examples are, the fraction is taken of each owner's, who keeps one at least.
    """
    owner = np.zeros(size, dtype=np.int64) if owners is None else np.unique(owners, return_inverse=True)[1]
    order = np.random.default_rng([seed, 1]).permutation(size)
    order = order[np.argsort(owner[order], kind="stable")]
    counts = np.bincount(owner)
    rank = np.arange(size) - np.repeat(np.cumsum(counts) - counts, counts)
    wanted = np.minimum(np.rint(fraction * counts), counts - 1)
    held = rank < np.repeat(wanted, counts)
    return np.sort(order[held]), np.sort(order[~held])
