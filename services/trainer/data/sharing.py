"""Sharing of one data set of the catalog among a job's clients, after a test set was held out.

The shares are disjoint and cover the data set, the same for the same seed on every machine. `drawn` alone lets clients
share examples, and `natural` leaves out groups that no client stands for. The partitions are pure.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from services.trainer.data.source import Floats, Labels, StoredExamples
from shared.errors import BadInput
from shared.job.catalog.data import (
    Classes,
    Dirichlet,
    Downloaded,
    Held,
    Iid,
    Natural,
    PartitionSpec,
    QSampler,
    Quantity,
    Shards,
    Shared,
)

Indices = npt.NDArray[np.int64]
Groups = npt.NDArray[Any]  # owner of each example, (n,): names, or numbers

REDRAWS = 1000  #: draws of a split before it is given up, because its smallest share stays below `min_size`


def shares(spec: PartitionSpec, labels: Indices, groups: Groups | None, clients: int, seed: int) -> Sequence[Indices]:
    """The share of each client, as a job file asks for it: places in `labels` (n,), sorted.

    `groups` (n,) is the owner of each example, if the data say so. `BadInput` if the numbers do not fit the data.
    """
    found: Sequence[Indices]
    match spec:
        case Iid(size=None):
            found = iid(labels.size, clients, seed)
        case Iid(size=int(each)):
            found = drawn(labels.size, clients, each, seed)
        case Dirichlet():
            found = dirichlet(labels, clients, spec.alpha, spec.min_size, seed)
        case Classes():
            found = classes(labels, clients, spec.n, seed)
        case Shards():
            found = shards(labels, clients, spec.n, seed)
        case Quantity():
            found = quantity(labels.size, clients, spec.weights, spec.sigma, spec.min_size, seed)
        case QSampler():
            found = q_sampler(labels, clients, spec.q, spec.min_size, seed)
        case Natural():
            if groups is None:
                raise BadInput("data.partition: natural needs data that say whose each example is")
            found = natural(groups, clients)
    return found


def iid(size: int, clients: int, seed: int) -> list[Indices]:
    """Shuffles `size` examples and cuts them into `clients` shares whose sizes differ by one at most."""
    if clients > size:
        raise BadInput(
            f"data.clients is {clients}, but there are {size} examples to share; with data.partition "
            "{name: iid, size: …} clients draw their examples and may have some in common"
        )
    order = np.random.default_rng(seed).permutation(size)
    return [np.sort(share) for share in np.array_split(order, clients)]


def drawn(size: int, clients: int, each: int, seed: int) -> Sequence[Indices]:
    """Each client draws `each` of `size` examples, none twice; two clients may have some in common."""
    if each > size:
        raise BadInput(f"data.partition.size is {each}, but there are {size} examples to draw from")
    return _Drawn(size, clients, each, seed)


class _Drawn(Sequence[Indices]):
    """A share is drawn when it is asked for: there may be a million clients, and a process trains few of them."""

    def __init__(self, size: int, clients: int, each: int, seed: int) -> None:
        self._size, self._clients, self._each, self._seed = size, clients, each, seed

    def __len__(self) -> int:
        return self._clients

    def __getitem__(self, index: Any) -> Any:
        place = range(self._clients)[index]  # raises IndexError, which ends an iteration
        rng = np.random.default_rng([self._seed, place])
        return np.sort(rng.choice(self._size, self._each, replace=False, shuffle=False))


def dirichlet(labels: Indices, clients: int, alpha: float, min_size: int, seed: int) -> list[Indices]:
    """Deals the examples of each class out in proportions drawn from Dirichlet(alpha, …, alpha).

    `labels` has shape (n,). The smaller `alpha`, the fewer classes a client sees; a large one comes near to `iid`.
    Hsu, Qi and Brown 2019, "Measuring the effects of non-identical data distribution for federated visual
    classification", in the form of Yurochkin et al. 2019, which shares out every example. Drawn again until each
    client has `min_size` examples, and `BadInput` if that does not come about.
    """
    _refuse_too_few(labels.size, clients, min_size)
    rng = np.random.default_rng(seed)
    members = [rng.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels)]
    totals = np.array([each.size for each in members])
    for _ in range(REDRAWS):
        proportions = rng.dirichlet(np.full(clients, alpha), size=len(members))
        cuts = np.rint(np.cumsum(proportions, axis=1) * totals[:, None]).astype(np.int64)
        cuts[:, -1] = totals  # every example gets an owner, however the proportions were rounded
        sizes = np.diff(cuts, axis=1, prepend=0).sum(axis=0)
        if sizes.min() >= min_size:
            pieces = [np.split(each, cut[:-1]) for each, cut in zip(members, cuts, strict=True)]
            return [np.sort(np.concatenate(share)) for share in zip(*pieces, strict=True)]
    raise BadInput(
        f"data.partition: {REDRAWS} draws with alpha {alpha:g} left some of the {clients} clients with fewer than "
        f"min_size {min_size} of the {labels.size} examples; raise alpha, or lower min_size or data.clients"
    )


def classes(labels: Indices, clients: int, n: int, seed: int) -> list[Indices]:
    """Gives each client examples of `n` classes, drawn so that each class has as many clients as another, or one more.

    `labels` has shape (n,). A class is shuffled and cut into equal shares for the clients that have it.
    """
    present, totals = np.unique(labels, return_counts=True)
    if n > present.size:
        raise BadInput(f"data.partition.n is {n}, but the data has {present.size} classes")
    if clients * n < present.size:
        raise BadInput(
            f"data.partition.n is {n}: {clients} clients have {clients * n} classes at most, so that nobody would have "
            f"some of the {present.size}; raise n or data.clients"
        )
    rng = np.random.default_rng(seed)
    takers: list[list[int]] = [[] for _ in present]
    taken = np.zeros(present.size, dtype=np.int64)
    for client in range(clients):
        # The classes with the fewest takers, in random order among equals.
        fewest = np.lexsort((rng.random(present.size), taken))[:n]
        taken[fewest] += 1
        for place in fewest:
            takers[place].append(client)
    if (short := np.flatnonzero(totals < taken)).size:
        scarce = short[0]
        raise BadInput(
            f"data.partition.n is {n}: {taken[scarce]} of the {clients} clients would share the {totals[scarce]} "
            f"examples of class {present[scarce]}; lower n or data.clients"
        )
    pieces: list[list[Indices]] = [[] for _ in range(clients)]
    for label, owners in zip(present, takers, strict=True):
        members = rng.permutation(np.flatnonzero(labels == label))
        for owner, piece in zip(owners, np.array_split(members, len(owners)), strict=True):
            pieces[owner].append(piece)
    return [np.sort(np.concatenate(piece)) for piece in pieces]


def shards(labels: Indices, clients: int, n: int, seed: int) -> list[Indices]:
    """Sorts by class, cuts into `n` shards a client, and deals the shards out.

    `labels` has shape (n,). McMahan et al. 2017, "Communication-efficient learning of deep networks from decentralized
    data", section 3: most clients see `n` classes or fewer, some one more where a shard holds the border of two.
    """
    if clients * n > labels.size:
        raise BadInput(
            f"data.partition.n is {n}: {clients} clients would need {clients * n} shards, and there are "
            f"{labels.size} examples"
        )
    rng = np.random.default_rng(seed)
    order = rng.permutation(labels.size)
    pieces = np.array_split(order[np.argsort(labels[order], kind="stable")], clients * n)
    hands = rng.permutation(clients * n).reshape(clients, n)
    return [np.sort(np.concatenate([pieces[shard] for shard in hand])) for hand in hands]


def quantity(
    size: int, clients: int, weights: Sequence[float] | None, sigma: float, min_size: int, seed: int
) -> list[Indices]:
    """Shuffles `size` examples and cuts them into shares in proportion to `weights`, one for each client.

    Without `weights` they are drawn: exp(N(0, sigma²)). Who would have fewer than `min_size` gets that many, at the
    cost of all others in proportion.
    """
    _refuse_too_few(size, clients, min_size)
    rng = np.random.default_rng(seed)
    parts = rng.lognormal(0.0, sigma, clients) if weights is None else np.asarray(weights, dtype=np.float64)
    if parts.size != clients:
        raise BadInput(f"data.partition.weights has {parts.size} weights for {clients} clients")
    parts = np.ldexp(parts, -np.frexp(parts.max())[1])  # scaled by a power of 2: exact, and the sum cannot overflow
    sizes = _proportional(size, parts, min_size)
    return [np.sort(share) for share in np.split(rng.permutation(size), np.cumsum(sizes)[:-1])]


def _proportional(size: int, parts: npt.NDArray[np.float64], least: int) -> Indices:
    """Whole numbers that sum to `size`, in proportion to `parts`, and none below `least`."""
    small = np.zeros(parts.size, dtype=np.bool_)
    while True:
        left = size - least * int(small.sum())
        wanted = np.where(small, least, left * (parts / parts[~small].sum()))
        below = ~small & (wanted < least - 1e-6)
        if not below.any():
            break
        small |= below
    sizes = np.floor(wanted + 1e-6).astype(np.int64)
    # By largest remainder: those that lost most to rounding get what is left over.
    sizes[np.argsort(sizes - wanted, kind="stable")[: size - int(sizes.sum())]] += 1
    return sizes


def q_sampler(labels: Indices, clients: int, q: float, min_size: int, seed: int) -> list[Indices]:
    """Divides clients into a group for each class; an example goes to its class's group with probability `q`.

    With probability 1 − q it goes to one of the other groups, each as likely; in a group its examples are dealt out
    evenly. `labels` has shape (n,). q = 1 gives each client one class, q = 0 every class but one, and
    q = 1/classes is `iid`. With fewer clients than classes there is a group for each client, and several classes are
    its own. Fang et al. 2020, "Local model poisoning attacks to Byzantine-robust federated learning", section 5.1, and
    the q sampler of FLTK. Drawn again until each client has `min_size` examples, and `BadInput` if that does not
    come about.
    """
    _refuse_too_few(labels.size, clients, min_size)
    present, kinds = np.unique(labels, return_inverse=True)
    groups = min(present.size, clients)
    own = kinds % groups
    rng = np.random.default_rng(seed)
    for _ in range(REDRAWS):
        others = (own + rng.integers(1, groups, labels.size)) % groups if groups > 1 else own
        group = np.where(rng.random(labels.size) < q, own, others)
        found = _dealt(group, groups, clients, rng.permutation(labels.size))
        if min(share.size for share in found) >= min_size:
            return found
    raise BadInput(
        f"data.partition: {REDRAWS} draws with q {q:g} left some of the {clients} clients with fewer than "
        f"min_size {min_size} of the {labels.size} examples; lower min_size or data.clients"
    )


def _dealt(group: Indices, groups: int, clients: int, order: Indices) -> list[Indices]:
    """The examples of each group in equal shares among its clients: client i is of group i modulo `groups`."""
    found: list[Indices] = [order] * clients
    for number in range(groups):
        owners = range(number, clients, groups)
        members = order[group[order] == number]
        for owner, share in zip(owners, np.array_split(members, len(owners)), strict=True):
            found[owner] = np.sort(share)
    return found


def natural(groups: Groups, clients: int) -> list[Indices]:
    """Client i has the examples of the i-th group, sorted by name; groups beyond the last client are left unused.

    `groups` has shape (n,) and names the owner of each example. `BadInput` if there are fewer groups than clients.
    """
    owners, sizes = np.unique(groups, return_counts=True)
    if clients > owners.size:
        raise BadInput(
            f"data.clients is {clients}, but the examples are of {owners.size} owners, and natural gives each "
            "client one: lower data.clients"
        )
    return np.split(np.argsort(groups, kind="stable"), np.cumsum(sizes)[:-1])[:clients]


def _refuse_too_few(size: int, clients: int, min_size: int) -> None:
    if clients * min_size > size:
        raise BadInput(
            f"data.partition.min_size is {min_size}: {clients} clients would need {clients * min_size} examples, "
            f"and there are {size}"
        )


class SharedOut:
    """A `StoredExamples` in shares, one for each client: places in its arrays, which all splits of it have in common.

    If the source is the client's own (`whole`), all of it is the share of any client that asks. `owners` are the names
    of those whose examples a natural partition shares out, in the order of the clients; no client has the others.
    """

    def __init__(self, spec: Shared, clients: int, seed: int, source: StoredExamples, *, whole: bool = False) -> None:
        self.source = source
        self.is_common = not whole  # all clients share the same files
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
        self._shares = shares(spec.partition, source.y[training], groups, clients, seed)
        if isinstance(spec.partition, Natural) and groups is not None:
            self.owners = tuple(map(str, np.unique(groups)))

    def client(self, name: str, index: int) -> tuple[Floats, Labels]:  # noqa: ARG002 - a share goes by its number
        """One client's examples: x (n, *shape) and y (n,)."""
        return self.source.examples(self._training[self._shares[index]])

    def test(self) -> tuple[Floats, Labels] | None:
        """The test set of the data, or what was held out; None if that is nothing."""
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

    If `owners` (n,) is given, the owner of each example, the fraction is taken of each owner's, who keeps one at least.
    """
    owner = np.zeros(size, dtype=np.int64) if owners is None else np.unique(owners, return_inverse=True)[1]
    order = np.random.default_rng([seed, 1]).permutation(size)
    order = order[np.argsort(owner[order], kind="stable")]
    counts = np.bincount(owner)
    rank = np.arange(size) - np.repeat(np.cumsum(counts) - counts, counts)
    wanted = np.minimum(np.rint(fraction * counts), counts - 1)
    held = rank < np.repeat(wanted, counts)
    return np.sort(order[held]), np.sort(order[~held])
