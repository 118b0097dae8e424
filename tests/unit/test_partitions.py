"""Shares of a data set: disjoint, covering, and the same for the same seed."""

import hashlib
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.trainer.data import sharing
from services.trainer.data.sharing import classes, dirichlet, drawn, iid, natural, q_sampler, quantity, shards, shares
from shared.errors import BadInput
from shared.job.catalog.data import Classes, Dirichlet, Iid, Natural, PartitionSpec, QSampler, Quantity, Shards

SEEDS = st.integers(0, 2**31 - 1)
LABELS = st.lists(st.integers(0, 9), min_size=40, max_size=300).map(np.array)

TEN_TIMES_TWENTY = np.arange(200) % 10
OWNERS = np.array([f"owner-{place % 8}" for place in range(200)])
EVERY: list[PartitionSpec] = [
    Iid(), Iid(size=30), Dirichlet(), Classes(n=3), Shards(), Quantity(), Quantity(weights=(1, 2, 3, 4, 5, 6, 7)),
    QSampler(), Natural(),
]  # fmt: skip


def assert_covers(found: Sequence[np.ndarray], size: int) -> None:
    assert sorted(np.concatenate(found).tolist()) == list(range(size))


def most_of_one_class(found: Sequence[np.ndarray], labels: np.ndarray) -> float:
    """The part of a client's examples that are of its commonest class, averaged over clients."""
    return float(np.mean([np.bincount(labels[share]).max() / len(share) for share in found]))


@given(clients=st.integers(1, 50), extra=st.integers(0, 200), seed=SEEDS)
def test_iid_shares_are_disjoint_cover_all_and_differ_by_one_at_most(clients: int, extra: int, seed: int) -> None:
    """Whatever the numbers, each example has one owner."""
    found = iid(clients + extra, clients, seed)

    assert len(found) == clients
    assert_covers(found, clients + extra)
    assert max(map(len, found)) - min(map(len, found)) <= 1


@given(size=st.integers(1, 100), clients=st.integers(1, 60), part=st.floats(0, 1), seed=SEEDS)
def test_drawn_shares_have_their_size_and_no_example_twice(size: int, clients: int, part: float, seed: int) -> None:
    """Whatever the numbers; there may be more clients than examples."""
    each = max(1, int(part * size))
    found = drawn(size, clients, each, seed)

    assert len(found) == clients == len(list(found))
    for share in found:
        assert len(set(share.tolist())) == len(share) == each
        assert 0 <= share.min() <= share.max() < size


def test_drawn_shares_differ_and_together_reach_all() -> None:
    """Each client draws for itself, and no example is left out for long."""
    found = drawn(1437, 2000, 20, seed=3)

    assert not np.array_equal(found[0], found[1])
    assert len(np.unique(np.concatenate(list(found)))) == 1437


def test_a_million_clients_cost_nothing_until_one_is_asked_for() -> None:
    """A process trains few of them."""
    found = drawn(60_000, 1_000_000, 20, seed=0)

    assert len(found[999_999]) == 20
    with pytest.raises(IndexError):
        found[1_000_000]


@given(
    labels=LABELS, clients=st.integers(1, 8), alpha=st.floats(0.3, 100), min_size=st.integers(1, 2), seed=SEEDS
)  # fmt: skip
def test_dirichlet_shares_are_disjoint_cover_all_and_have_min_size(
    labels: np.ndarray, clients: int, alpha: float, min_size: int, seed: int
) -> None:
    """Whatever the labels, each example has one owner and each client its minimum."""
    found = dirichlet(labels, clients, alpha, min_size, seed)

    assert len(found) == clients
    assert_covers(found, len(labels))
    assert min(map(len, found)) >= min_size


def test_a_small_alpha_gives_clients_few_classes() -> None:
    """Alpha is what the paper says: small means that a client sees few of the classes."""
    labels = np.arange(2000) % 10

    assert most_of_one_class(dirichlet(labels, 10, 0.1, 2, seed=1), labels) > 0.5
    assert most_of_one_class(dirichlet(labels, 10, 1000, 2, seed=1), labels) < 0.15


@given(clients=st.integers(1, 30), n=st.integers(1, 10), size=st.integers(300, 600), seed=SEEDS)
def test_clients_have_exactly_n_classes_and_classes_as_many_clients(clients: int, n: int, size: int, seed: int) -> None:
    """Each class is cut into equal shares among those that have it."""
    labels = np.random.default_rng(seed).permutation(np.arange(size) % 10)
    if clients * n < 10:
        return
    found = classes(labels, clients, n, seed)
    have = np.array([np.bincount(labels[share], minlength=10) for share in found])

    assert_covers(found, size)
    assert set((have > 0).sum(axis=1)) == {n}
    takers = (have > 0).sum(axis=0)
    assert takers.max() - takers.min() <= 1
    for column in have.T:
        assert np.ptp(column[column > 0]) <= 1


def test_clients_of_the_same_number_of_classes_have_other_ones() -> None:
    """Which classes come together is drawn: clients do not fall into groups."""
    labels = np.arange(1000) % 10
    hands = {tuple(np.unique(labels[share])) for share in classes(labels, 40, 2, seed=5)}

    assert len(hands) > 15  # of 45


@given(labels=LABELS, clients=st.integers(1, 10), n=st.integers(1, 4), seed=SEEDS)
def test_shards_cover_all_and_differ_by_little(labels: np.ndarray, clients: int, n: int, seed: int) -> None:
    """Shards are equal but for one example each."""
    found = shards(labels, clients, n, seed)

    assert len(found) == clients
    assert_covers(found, len(labels))
    assert max(map(len, found)) - min(map(len, found)) <= n


def test_two_shards_hold_two_classes_for_most_clients() -> None:
    """The pathological split of the FedAvg paper, in which shards fall on the borders of classes."""
    labels = np.arange(2000) % 10
    found = [len(np.unique(labels[share])) for share in shards(labels, 100, 2, seed=2)]

    assert set(found) == {1, 2}
    assert found.count(2) > 75


@given(size=st.integers(1, 500), weights=st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=20), seed=SEEDS)
def test_quantity_shares_are_in_proportion_but_for_their_minimum(size: int, weights: list[float], seed: int) -> None:
    """Each is within one example of its part, or has `min_size`; the excess comes from the others."""
    clients = len(weights)
    if size < 2 * clients:
        return
    found = quantity(size, clients, weights, 0.0, 2, seed)
    sizes = np.array(list(map(len, found)))

    assert_covers(found, size)
    assert sizes.min() >= 2
    wanted = size * np.array(weights) / sum(weights)
    if wanted.min() >= 2:
        assert np.abs(sizes - wanted).max() < 1 + 1e-6
    order = np.argsort(weights)
    assert (np.diff(sizes[order]) >= -1).all()  # more weight, more examples, but for rounding


def test_weights_are_met_exactly_where_they_can_be() -> None:
    """What a person would work out by hand."""
    assert list(map(len, quantity(100, 3, [1, 3, 6], 0.0, 1, seed=0))) == [10, 30, 60]
    assert list(map(len, quantity(100, 3, [1, 1, 998], 0.0, 10, seed=0))) == [10, 10, 80]
    assert list(map(len, quantity(6, 3, [1, 1, 1], 0.0, 2, seed=0))) == [2, 2, 2]


def test_lognormal_quantities_have_their_deviation() -> None:
    """The logarithms of the sizes spread as sigma says, and with sigma 0 all shares are equal."""
    sizes = np.array(list(map(len, quantity(1_000_000, 2000, None, 0.7, 1, seed=4))))

    assert np.log(sizes).std() == pytest.approx(0.7, abs=0.03)
    assert set(map(len, quantity(1000, 10, None, 0.0, 1, seed=4))) == {100}


@given(labels=LABELS, clients=st.integers(1, 20), q=st.floats(0, 1), seed=SEEDS)
def test_q_sampler_shares_are_disjoint_and_cover_all(labels: np.ndarray, clients: int, q: float, seed: int) -> None:
    """Whatever the labels, each example has one owner."""
    try:
        found = q_sampler(labels, clients, q, 1, seed)
    except BadInput:  # a class of few examples may have too many clients
        return

    assert len(found) == clients
    assert_covers(found, len(labels))
    assert min(map(len, found)) >= 1


def test_q_says_how_much_of_a_share_is_of_its_main_class() -> None:
    """1 is one class alone, 0 all but that one, 1/classes is no skew at all, and between them it is q."""
    labels = np.arange(10_000) % 10

    def own(q: float) -> float:
        found = q_sampler(labels, 20, q, 1, seed=6)
        return float(np.mean([(labels[share] == client % 10).mean() for client, share in enumerate(found)]))

    assert own(1.0) == 1
    assert own(0.0) == 0
    assert own(0.1) == pytest.approx(0.1, abs=0.01)
    assert own(0.6) == pytest.approx(0.6, abs=0.02)


def test_fewer_clients_than_classes_have_several_main_ones() -> None:
    """No class is without clients of its own."""
    labels = np.arange(1000) % 10
    found = q_sampler(labels, 3, 1.0, 1, seed=0)

    assert [sorted(set(labels[share].tolist())) for share in found] == [[0, 3, 6, 9], [1, 4, 7], [2, 5, 8]]
    assert_covers(q_sampler(labels, 1, 0.0, 1, seed=0), 1000)


@given(st.lists(st.sampled_from(["ann", "Bob", "cy", "10", "9"]), min_size=1, max_size=60), st.integers(1, 5))
def test_a_natural_share_is_one_owners_whole(owners: list[str], clients: int) -> None:
    """Client i has all examples of the i-th owner by name, and owners beyond the last client are left out."""
    names = sorted(set(owners))
    if clients > len(names):
        with pytest.raises(BadInput, match=f"clients is {clients}, but the examples are of {len(names)} owners"):
            natural(np.array(owners), clients)
        return
    found = natural(np.array(owners), clients)

    assert len(found) == clients
    for name, share in zip(names, found, strict=False):
        assert share.tolist() == [place for place, owner in enumerate(owners) if owner == name]


@pytest.mark.parametrize("spec", EVERY, ids=lambda spec: spec.name)
def test_the_same_seed_gives_the_same_shares(spec: PartitionSpec) -> None:
    """Each trainer of a pool works out the split for itself, and they must agree."""
    one, other = (shares(spec, TEN_TIMES_TWENTY, OWNERS, 7, 11) for _ in range(2))

    assert len(one) == 7
    assert all(map(np.array_equal, one, other))


@pytest.mark.parametrize("spec", EVERY, ids=lambda spec: spec.name)
def test_shares_are_sorted_places(spec: PartitionSpec) -> None:
    """Reading them goes through the data once, in order."""
    for share in shares(spec, TEN_TIMES_TWENTY, OWNERS, 7, 11):
        assert share.dtype == np.int64
        assert (np.diff(share) > 0).all()


@pytest.mark.parametrize("spec", EVERY[:-1], ids=lambda spec: spec.name)
def test_another_seed_gives_other_shares(spec: PartitionSpec) -> None:
    """The seed is used, by all but `natural`, which draws nothing."""
    one, other = (shares(spec, TEN_TIMES_TWENTY, OWNERS, 7, seed) for seed in (0, 1))

    assert not all(map(np.array_equal, one, other))


@pytest.mark.parametrize(
    ("spec", "digest"),
    [
        (Iid(), "e625f8972673"),
        (Iid(size=30), "77b18a422fb7"),
        (Dirichlet(), "b906e218ec8f"),
        (Classes(n=3), "346733b2ee6a"),
        (Shards(), "3accc5892571"),
        (Quantity(), "2cc8426dc907"),
        (QSampler(), "deee41def06b"),
    ],
)
def test_shares_are_those_that_they_have_always_been(spec: PartitionSpec, digest: str) -> None:
    """Two machines agree on a split without a word, so it may not change with the version of anything."""
    found = shares(spec, TEN_TIMES_TWENTY, OWNERS, 7, 11)
    text = ";".join(",".join(map(str, share)) for share in found)

    assert hashlib.sha256(text.encode()).hexdigest()[:12] == digest


def test_a_split_that_cannot_be_is_refused_with_its_numbers() -> None:
    """A person learns which of their numbers does not fit."""
    labels = np.arange(100) % 10

    with pytest.raises(
        BadInput, match=r"data.clients is 101, but there are 100 examples to share; with data.partition"
    ):
        iid(100, 101, 0)
    with pytest.raises(BadInput, match=r"partition.size is 101, but there are 100"):
        drawn(100, 5, 101, 0)
    with pytest.raises(BadInput, match=r"min_size is 11: 10 clients would need 110 examples, and there are 100"):
        dirichlet(labels, 10, 0.5, 11, 0)
    with pytest.raises(
        BadInput, match=r"alpha 0.01 left some of the 10 clients with fewer than min_size 10 of the 100"
    ):
        dirichlet(labels, 10, 0.01, 10, 0)
    with pytest.raises(BadInput, match=r"partition.n is 11, but the data has 10 classes"):
        classes(labels, 10, 11, 0)
    with pytest.raises(BadInput, match=r"4 clients have 8 classes at most, so that nobody would have some of the 10"):
        classes(labels, 4, 2, 0)
    with pytest.raises(BadInput, match=r"n is 2: 12 of the 60 clients would share the 10 examples of class 0"):
        classes(labels, 60, 2, 0)
    with pytest.raises(BadInput, match=r"n is 3: 40 clients would need 120 shards, and there are 100 examples"):
        shards(labels, 40, 3, 0)
    with pytest.raises(BadInput, match=r"min_size is 20: 6 clients would need 120 examples"):
        quantity(100, 6, None, 1.0, 20, 0)
    with pytest.raises(BadInput, match=r"weights has 2 weights for 3 clients"):
        quantity(100, 3, [1, 2], 1.0, 1, 0)
    with pytest.raises(
        BadInput, match=r"q 1 left some of the 30 clients with fewer than min_size 2 of the 65 examples"
    ):
        q_sampler(np.concatenate([np.zeros(60), np.arange(5)]).astype(int), 30, 1.0, 2, 0)
    with pytest.raises(BadInput, match=r"natural needs data that say whose"):
        shares(Natural(), labels, None, 2, 0)


def test_a_million_draws_are_not_made_for_a_split_that_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """Giving up has its bound."""
    monkeypatch.setattr(sharing, "REDRAWS", 3)
    with pytest.raises(BadInput, match="3 draws with alpha"):
        dirichlet(np.arange(100) % 10, 10, 0.01, 10, 0)


def test_weights_may_be_of_any_size() -> None:
    """The sum of large ones is infinite, and clients would have other shares than were asked for."""
    sizes = [share.size for share in quantity(30, 3, [1e308, 1e308, 1e308], 1.0, 1, 0)]
    assert sizes == [10, 10, 10]
