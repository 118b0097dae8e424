"""Robust strategies resist what a few clients send, and give the same bits however updates are cut."""

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.aggregation.strategies import robust
from shared.aggregation.strategies.choose import strategy_of
from shared.aggregation.strategies.distances import nearest, ranked, squared_distances
from shared.aggregation.strategies.strategy import Counted, Robust, Stacked, cut
from shared.errors import Refused
from shared.job.catalog.strategies import Bulyan, Krum, Median, MultiKrum, StrategySpec, TrimmedMean

SIZE = 300
BYZANTINE = 2
ALL = [
    Median(),
    TrimmedMean(beta=0.2),
    Krum(byzantine=BYZANTINE),
    MultiKrum(byzantine=BYZANTINE),
    MultiKrum(byzantine=BYZANTINE, keep=3),
    Bulyan(byzantine=BYZANTINE),
]


def named(spec: StrategySpec) -> str:
    return " ".join(f"{value}" for value in spec.model_dump().values())


class Cut(Stacked):
    """Updates in slices of any widths."""

    def __init__(self, updates: np.ndarray, widths: Sequence[int]) -> None:
        super().__init__(updates)
        self._widths = widths

    def spans(self) -> Sequence[tuple[int, int]]:
        edges = [0, *itertools.takewhile(lambda edge: edge < self.size, itertools.accumulate(self._widths)), self.size]
        return list(itertools.pairwise(edges))


def counted(updates: np.ndarray, clients: Sequence[int] | None = None) -> list[Counted]:
    return [
        Counted(f"client-{client:02d}", 1, norm=float(np.linalg.norm(update)))
        for client, update in zip(clients or range(len(updates)), updates, strict=True)
    ]


def combined(spec: StrategySpec, updates: np.ndarray, slices: Stacked | None = None) -> np.ndarray:
    strategy = strategy_of(spec, 100)
    assert isinstance(strategy, Robust)
    return strategy.combine(counted(updates), slices or Stacked(updates))


def attacked(seed: int = 0, honest: int = 9, size: int = SIZE) -> np.ndarray:
    """Honest updates around 0.01, and two attackers in their midst who collude: the same large update twice."""
    random = np.random.default_rng(seed)
    updates = random.normal(0.01, 0.02, (honest + BYZANTINE, size)).astype(np.float32)
    updates[[1, 4]] = random.normal(-3, 1, size).astype(np.float32)
    return updates


# --- each is its definition ----------------------------------------------------------------------


def krum_scores(updates: np.ndarray, byzantine: int) -> list[float]:
    """Blanchard et al. 2017, section 4, in float64."""
    exact = updates.astype(np.float64)
    scores = []
    for one in range(len(exact)):
        others = [float(np.sum((exact[one] - exact[other]) ** 2)) for other in range(len(exact)) if other != one]
        scores.append(sum(sorted(others)[: len(exact) - byzantine - 2]))
    return scores


def bulyan(updates: np.ndarray, byzantine: int) -> np.ndarray:
    """El Mhamdi et al. 2018, section 4: Krum again and again, then the β values nearest to the median."""
    left, chosen = list(range(len(updates))), []
    while len(chosen) < len(updates) - 2 * byzantine:
        exact = updates[left].astype(np.float64)
        distances = np.sum((exact[:, None] - exact[None]) ** 2, axis=2)
        scores = np.sort(distances, axis=1)[:, 1 : max(len(left) - byzantine - 2, 1) + 1].sum(axis=1)
        chosen.append(left.pop(int(np.argmin(scores))))
    trusted = updates[chosen].astype(np.float64)
    keep = len(trusted) - 2 * byzantine
    order = np.argsort(np.abs(trusted - np.median(trusted, axis=0)), axis=0)[:keep]
    return np.take_along_axis(trusted, order, axis=0).mean(axis=0)


def expected(spec: StrategySpec, updates: np.ndarray) -> np.ndarray:
    exact, count = updates.astype(np.float64), len(updates)
    match spec:
        case Median():
            return np.median(exact, axis=0)
        case TrimmedMean():
            ends = int(spec.beta * count)
            return np.sort(exact, axis=0)[ends : count - ends].mean(axis=0)
        case Krum():
            return exact[np.argmin(krum_scores(updates, spec.byzantine))]
        case MultiKrum():
            return exact[np.argsort(krum_scores(updates, spec.byzantine))[: spec.keep or count - BYZANTINE]].mean(
                axis=0
            )
        case Bulyan():
            return bulyan(updates, spec.byzantine)
    raise AssertionError(spec)


@pytest.mark.parametrize("spec", ALL, ids=named)
@pytest.mark.parametrize("honest", [9, 12])
def test_a_strategy_is_its_papers_formula(spec: StrategySpec, honest: int) -> None:
    """Odd and even numbers of updates, against an independent computation in float64."""
    updates = attacked(honest, honest)

    np.testing.assert_allclose(combined(spec, updates), expected(spec, updates), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("spec", ALL, ids=named)
def test_attackers_change_little(spec: StrategySpec) -> None:
    """The plain mean is off by half a unit; each of these stays among the honest."""
    updates = attacked()

    assert np.abs(updates.mean(axis=0) - 0.01).mean() > 0.4
    assert np.abs(combined(spec, updates) - 0.01).mean() < 0.02


def test_krum_chooses_the_one_in_the_middle() -> None:
    """Five on a line, of which one is far away: the scores of its two nearest are 2, 5, 2, 13 and 9700 or so."""
    updates = np.array([[3], [1], [2], [5], [100]], np.float32)

    assert combined(Krum(byzantine=1), updates).tolist() == [2.0]
    assert ranked(squared_distances(counted(updates), Stacked(updates)), 1) == [2, 0, 1, 3, 4]


def test_equal_scores_go_to_the_first_client() -> None:
    """Two pairs of the same, as far from each other."""
    updates = np.array([[1, 0], [1, 0], [0, 1], [0, 1], [9, 9]], np.float32)

    assert ranked(squared_distances(counted(updates), Stacked(updates)), 1) == [0, 1, 2, 3, 4]


def test_all_but_the_byzantine_are_kept_where_multikrum_is_not_told() -> None:
    """Nine of eleven."""
    updates = attacked()

    np.testing.assert_allclose(
        combined(MultiKrum(byzantine=BYZANTINE), updates),
        np.delete(updates, [1, 4], axis=0).mean(axis=0, dtype=np.float64),
        rtol=1e-6,
        atol=1e-9,
    )


@pytest.mark.parametrize(
    ("beta", "count", "left"), [(0.29, 100, 42), (0.3, 10, 4), (0.49, 2, 2), (0.0, 3, 3), (0.45, 11, 3)]
)
def test_trimmed_mean_leaves_out_a_share_at_each_end(beta: float, count: int, left: int) -> None:
    """As a person counts: 0.29 of 100 is 29, although its product in floating point is less."""
    updates = np.zeros((count, 1), np.float32)
    updates[: (count - left) // 2] = -1e6
    updates[count - (count - left) // 2 :] = 2e6
    middle = np.arange(left, dtype=np.float32)[:, None] + 1
    updates[(count - left) // 2 : count - (count - left) // 2] = middle

    assert combined(TrimmedMean(beta=beta), updates).item() == pytest.approx(middle.mean())


@pytest.mark.parametrize(
    ("spec", "count", "words"),
    [
        (Krum(byzantine=2), 6, "6 updates; strategy krum needs 7 to tolerate 2 byzantine ones"),
        (MultiKrum(byzantine=2), 6, "strategy multikrum needs 7"),
        (MultiKrum(byzantine=2, keep=6), 7, "cannot keep 6"),
        (Bulyan(byzantine=2), 10, "strategy bulyan needs 11"),
    ],
)
def test_too_few_updates_are_refused(spec: StrategySpec, count: int, words: str) -> None:
    """2 f + 3 for Krum, 4 f + 3 for Bulyan; the sentence says how many."""
    with pytest.raises(Refused, match=words):
        combined(spec, np.ones((count, 3), np.float32))


@pytest.mark.parametrize("spec", [*(spec for spec in ALL if not isinstance(spec, MultiKrum))], ids=named)
def test_the_fewest_updates_are_enough(spec: StrategySpec) -> None:
    """One update for the coordinate-wise ones, exactly 2 f + 3 and 4 f + 3 for the others."""
    fewest = {Krum: 2 * BYZANTINE + 3, Bulyan: 4 * BYZANTINE + 3}.get(type(spec), 1)

    assert combined(spec, np.ones((fewest, 3), np.float32)).tolist() == [1.0] * 3


# --- the same bits -------------------------------------------------------------------------------

widths = st.lists(st.integers(1, SIZE), min_size=1, max_size=20)


@pytest.mark.parametrize("spec", ALL, ids=named)
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 9), widths=widths)
def test_no_cut_changes_a_bit(spec: StrategySpec, seed: int, widths: list[int]) -> None:
    """Slices of any widths give what one slice gives, with colluding attackers whose distances tie."""
    updates = attacked(seed)

    assert combined(spec, updates, Cut(updates, widths)).tobytes() == combined(spec, updates).tobytes()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), widths=widths)
def test_no_cut_changes_a_distance(seed: int, widths: list[int]) -> None:
    """Not by one unit, and the same two updates are at distance 0, where floats would leave a remainder."""
    updates = attacked(seed) * np.float32(10.0) ** np.random.default_rng(seed).integers(-8, 3, (1, SIZE))
    updates = updates.astype(np.float32)
    whole = squared_distances(counted(updates), Stacked(updates))

    assert squared_distances(counted(updates), Cut(updates, widths)) == whole
    assert whole[1][4] == 0
    assert whole[1] == [row[4] for row in whole[:4]] + whole[4][4:]


@pytest.mark.parametrize("spec", ALL, ids=named)
@settings(max_examples=30, deadline=None)
@given(order=st.permutations(range(11)))
def test_arrival_order_changes_no_bit(spec: StrategySpec, order: list[int]) -> None:
    """Updates are read in client order, whenever they came."""
    updates, strategy = attacked(), strategy_of(spec, 100)
    assert isinstance(strategy, Robust)
    arrived = list(zip(order, updates[order], strict=True))
    arrived.sort(key=lambda pair: pair[0])
    clients, stacked = [client for client, _ in arrived], np.stack([update for _, update in arrived])

    assert strategy.combine(counted(stacked, clients), Stacked(stacked)).tobytes() == combined(spec, updates).tobytes()


@pytest.mark.parametrize("spec", ALL[:2], ids=named)
@settings(max_examples=30, deadline=None)
@given(order=st.permutations(range(11)))
def test_coordinates_do_not_know_whose_they_are(spec: StrategySpec, order: list[int]) -> None:
    """Median and trimmed mean give the same bits for any order of clients."""
    updates = attacked()

    assert combined(spec, updates[order]).tobytes() == combined(spec, updates).tobytes()


@pytest.mark.parametrize("spec", ALL, ids=named)
def test_slices_are_worked_on_in_tiles(spec: StrategySpec) -> None:
    """More values than a tile of any of them holds, and not a multiple of it, repeat what few of them give."""
    few = attacked(size=SIZE)
    many = np.tile(few, 150)[:, :-7]

    np.testing.assert_array_equal(combined(spec, many), np.tile(combined(spec, few), 150)[:-7])


def test_the_sign_of_zero_is_lost() -> None:
    """Which of 0.0 and −0.0 is smaller differs between processors, and so it must not be seen."""
    updates = np.array([[-0.0], [0.0], [-0.0]], np.float32)

    assert not np.signbit(combined(Median(), updates)).any()


# --- properties ----------------------------------------------------------------------------------

values = st.floats(-1e3, 1e3, width=32)
several = st.integers(1, 12).flatmap(lambda count: st.lists(values, min_size=count, max_size=count))


@settings(max_examples=30, deadline=None)
@given(honest=st.lists(values, min_size=7, max_size=12), attack=st.lists(values, min_size=0, max_size=2))
def test_attackers_cannot_leave_the_range_of_the_honest(honest: list[float], attack: list[float]) -> None:
    """Median, and a trimmed mean that trims as many as there are attackers."""
    updates = np.array([*attack, *honest], np.float32)[:, None]
    beta = min((len(attack) + 0.01) / len(updates), 0.49)
    for spec in (Median(), TrimmedMean(beta=beta)):
        found = combined(spec, updates).item()

        assert min(honest) - 1e-4 <= found <= max(honest) + 1e-4


@settings(max_examples=30, deadline=None)
@given(honest=st.lists(values, min_size=9, max_size=12), attack=st.tuples(values, values))
def test_bulyan_stays_as_near_to_the_honest_as_they_are_to_each_other(
    honest: list[float], attack: tuple[float, float]
) -> None:
    """With two attackers among eleven or more: the median is among the honest, and enough of them are near to it."""
    updates = np.array([attack[0], *honest, attack[1]], np.float32)[:, None]
    found = combined(Bulyan(byzantine=2), updates).item()
    spread = max(honest) - min(honest) + 1e-4

    assert min(honest) - spread <= found <= max(honest) + spread


@given(values=several, keep=st.integers(1, 12))
def test_the_nearest_to_the_median_are_kept(values: list[float], keep: int) -> None:
    """The mean of as many values as near to it as any others."""
    keep = min(keep, len(values))
    rows = np.sort(np.array(values, np.float32))
    away = np.sort(np.abs(rows - np.median(rows.astype(np.float64))))[:keep]
    windows = [rows[start : start + keep].astype(np.float64) for start in range(len(rows) - keep + 1)]
    centre = np.median(rows.astype(np.float64))
    best = [window for window in windows if np.allclose(np.sort(np.abs(window - centre)), away, rtol=1e-6, atol=1e-6)]

    found = nearest([np.array([row]) for row in rows], keep).item()
    assert any(found == pytest.approx(window.mean(), rel=1e-6, abs=1e-6) for window in best)


@pytest.mark.parametrize("count", range(1, 14))
def test_the_network_sorts_all_zeros_and_ones(count: int) -> None:
    """Then it sorts everything (Knuth, volume 3, theorem 5.3.4 Z)."""
    columns = np.array(list(itertools.product((0, 1), repeat=count)), np.float32).T.copy()
    for low, high in robust.network(count):
        columns[[low, high]] = np.minimum(columns[low], columns[high]), np.maximum(columns[low], columns[high])

    assert (np.diff(columns, axis=0) >= 0).all()


@given(count=st.integers(1, 500), size=st.integers(0, 10_000), memory=st.integers(1, 100_000))
def test_cuts_cover_everything_and_keep_to_the_memory(count: int, size: int, memory: int) -> None:
    """Spans follow each other; none is wider than the memory lets it be, or a cache line."""
    spans = cut(count, size, memory)

    assert [stop for _, stop in spans[:-1]] == [start for start, _ in spans[1:]]
    assert (spans[0][0], spans[-1][1]) == (0, size) if spans else size == 0
    assert all((stop - start) * 4 * count <= max(memory, 64 * count) for start, stop in spans)


def test_distances_are_those_of_float64() -> None:
    """Between updates of very different sizes too, each on a grid of its own norm; in whatever unit."""
    updates = attacked() * np.float32(10.0) ** np.arange(-6, 5, dtype=np.float32)[:, None]
    exact = updates.astype(np.float64)
    reference = np.sum((exact[:, None] - exact[None]) ** 2, axis=2)
    found = np.array(squared_distances(counted(updates), Stacked(updates)), object)
    unit = reference[0, 1] / float(found[0, 1])

    np.testing.assert_allclose(found.astype(np.float64) * unit, reference, rtol=1e-9)


def test_a_wrong_norm_is_noticed() -> None:
    """The grid would be too coarse for sums to be exact."""
    updates = attacked()
    short = [Counted(one.client, 1, norm=one.norm / 2) for one in counted(updates)]

    with pytest.raises(ValueError, match="client-00 is longer than its norm"):
        squared_distances(short, Stacked(updates))


def test_updates_of_nothing_are_all_alike() -> None:
    """Zeros have norm 0, and their distances are 0."""
    updates = np.zeros((3, 5), np.float32)

    assert squared_distances(counted(updates), Stacked(updates)) == [[0] * 3] * 3


def test_the_step_adds_what_was_combined() -> None:
    """Times the server's learning rate, across tiles."""
    size = 100_000
    strategy = strategy_of(Median(lr=0.5), 3)
    assert isinstance(strategy, Robust)
    model = np.linspace(-1, 1, size, dtype=np.float32)
    step = np.linspace(3, 4, size, dtype=np.float32)
    wanted = (model.astype(np.float64) + 0.5 * step).astype(np.float32)
    strategy.advance(model, step)

    np.testing.assert_array_equal(model, wanted)
