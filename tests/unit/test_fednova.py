"""How many gradients an update is worth: the formulas of FedNova, and the recursions that they sum up."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.trainer.training.strategy_steps import normaliser
from shared.errors import BadInput
from shared.job.catalog.training import Adam, FedProx, Sgd, TrainSpec

LR = 0.1


def spec_of(rho: float = 0.0, alpha: float = 0.0) -> TrainSpec:
    """With the momentum ρ, and FedProx's mu such that lr · mu = α."""
    return TrainSpec(
        optimizer=Sgd(lr=99.0, momentum=rho),  # the round's rate counts
        fedprox=FedProx(mu=alpha / LR) if alpha else None,
    )


def shares(rho: float, alpha: float, steps: int) -> list[float]:
    """a: how far each of the gradients carries a client, in learning rates, by running its solver with it alone."""
    found = []
    for place in range(steps):
        velocity = distance = 0.0
        for step in range(steps):
            velocity = rho * velocity + (step == place) - alpha * distance
            distance += velocity
        found.append(distance)
    return found


@given(st.integers(1, 40), st.floats(0, 0.99), st.floats(0, 0.9))
def test_the_normaliser_is_what_the_solver_does_with_its_gradients(steps: int, rho: float, alpha: float) -> None:
    """The sum of their shares, which is that of their absolute values unless momentum and pull come together."""
    alpha = alpha if alpha > 1e-9 else 0.0
    for momentum, pull in ((0.0, 0.0), (rho, 0.0), (0.0, alpha), (rho, alpha)):
        found, each = normaliser(spec_of(momentum, pull), LR, steps), shares(momentum, pull, steps)
        assert found > 0
        assert found == pytest.approx(sum(each), rel=1e-7)
        if not momentum or not pull:
            assert found == pytest.approx(sum(map(abs, each)), rel=1e-7)


@given(st.integers(1, 1000), st.floats(0.01, 0.99))
def test_the_normaliser_is_that_of_the_paper(steps: int, share: float) -> None:
    """Wang et al. 2020, section 4: momentum, and the proximal term."""
    momentum = (steps - share * (1 - share**steps) / (1 - share)) / (1 - share)
    proximal = (1 - (1 - share) ** steps) / share

    assert normaliser(spec_of(), LR, steps) == steps
    assert normaliser(spec_of(rho=share), LR, steps) == pytest.approx(momentum, rel=1e-6)
    assert normaliser(spec_of(alpha=share), LR, steps) == pytest.approx(proximal, rel=1e-6)


def test_a_million_steps_are_summed_at_once() -> None:
    """And a tiny mu loses no digits."""
    assert normaliser(spec_of(), LR, 10_000_000) == 10_000_000
    assert normaliser(spec_of(alpha=1e-15), LR, 1000) == pytest.approx(1000, rel=1e-9)


def test_what_fednova_is_not_defined_for_is_refused() -> None:
    """Other optimizers, and a pull that throws a client beyond the model it came from."""
    with pytest.raises(BadInput, match=r"train.optimizer is adam; updates are normalised for sgd alone"):
        normaliser(TrainSpec(optimizer=Adam()), LR, 3)
    with pytest.raises(BadInput, match=r"train.fedprox.mu times the learning rate is 1.5; keep it below 1"):
        normaliser(spec_of(alpha=1.5), LR, 3)
