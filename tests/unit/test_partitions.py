"""Shares of a data set: disjoint, covering, and the same for the same seed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.trainer.data.partitions import dirichlet, iid
from shared.errors import BadInput

SEEDS = st.integers(0, 2**31 - 1)


def assert_covers(shares: list[np.ndarray], size: int) -> None:
    assert sorted(np.concatenate(shares).tolist()) == list(range(size))


@given(clients=st.integers(1, 50), extra=st.integers(0, 200), seed=SEEDS)
def test_iid_shares_are_disjoint_cover_all_and_differ_by_one_at_most(clients: int, extra: int, seed: int) -> None:
    """Whatever the numbers, each example has one owner."""
    shares = iid(clients + extra, clients, seed)

    assert len(shares) == clients
    assert_covers(shares, clients + extra)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@given(
    labels=st.lists(st.integers(0, 9), min_size=40, max_size=300),
    clients=st.integers(1, 8),
    alpha=st.floats(0.3, 100),
    min_size=st.integers(1, 2),
    seed=SEEDS,
)
def test_dirichlet_shares_are_disjoint_cover_all_and_have_min_size(
    labels: list[int], clients: int, alpha: float, min_size: int, seed: int
) -> None:
    """Whatever the labels, each example has one owner and each client its minimum."""
    shares = dirichlet(np.array(labels), clients, alpha, min_size, seed)

    assert len(shares) == clients
    assert_covers(shares, len(labels))
    assert min(map(len, shares)) >= min_size


@given(seed=SEEDS)
def test_the_same_seed_gives_the_same_shares(seed: int) -> None:
    """Each trainer of a pool works out the split for itself, and they must agree."""
    labels = np.arange(200) % 10

    assert all(map(np.array_equal, iid(200, 7, seed), iid(200, 7, seed)))
    assert all(map(np.array_equal, dirichlet(labels, 7, 0.5, 2, seed), dirichlet(labels, 7, 0.5, 2, seed)))


def test_another_seed_gives_other_shares() -> None:
    """The seed is used."""
    labels = np.arange(200) % 10

    assert not np.array_equal(iid(200, 2, 0)[0], iid(200, 2, 1)[0])
    assert not np.array_equal(dirichlet(labels, 2, 1.0, 2, 0)[0], dirichlet(labels, 2, 1.0, 2, 1)[0])


def test_a_small_alpha_gives_clients_few_classes() -> None:
    """Alpha is what the paper says: small means that a client sees few of the classes."""
    labels = np.arange(2000) % 10

    def largest_part(alpha: float) -> float:
        shares = dirichlet(labels, 10, alpha, 2, seed=1)
        return float(np.mean([np.bincount(labels[share]).max() / len(share) for share in shares]))

    assert largest_part(0.1) > 0.5
    assert largest_part(1000) < 0.15


def test_a_split_that_cannot_be_is_refused_with_its_numbers() -> None:
    """A person learns which of their numbers does not fit."""
    labels = np.arange(100) % 10

    with pytest.raises(BadInput, match=r"data.clients is 101, but there are 100"):
        iid(100, 101, 0)
    with pytest.raises(BadInput, match=r"min_size is 11: 10 clients would need 110 examples, and there are 100"):
        dirichlet(labels, 10, 0.5, 11, 0)
    with pytest.raises(
        BadInput, match=r"alpha 0.01 left some of the 10 clients with fewer than min_size 10 of the 100"
    ):
        dirichlet(labels, 10, 0.01, 10, 0)
