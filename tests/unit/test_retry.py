"""Pauses between tries: they double up to a limit, are drawn with jitter, and end at a deadline."""

import itertools

import pytest

from shared.process.retry import Retry


def test_pauses_double_up_to_the_limit_with_jitter() -> None:
    """Each is drawn between its part `least` and the whole of it."""
    retry = Retry(0.2, 5.0, least=0.5)
    longest = [0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    pauses = [retry.pause() for _ in longest]

    assert all(0.5 * most <= pause <= most for pause, most in zip(pauses, longest, strict=True))


def test_processes_that_failed_together_do_not_come_back_together() -> None:
    """Full jitter draws from 0 on."""
    pauses = [Retry(1.0, 1.0, least=0).pause() for _ in range(200)]

    assert min(pauses) < 0.2
    assert max(pauses) > 0.8


def test_after_a_success_pauses_are_short_again() -> None:
    """A server that was away for long may be away again for a moment."""
    retry = Retry(0.1, 60.0)
    for _ in range(10):
        retry.pause()
    retry.succeeded()

    assert retry.pause() <= 0.1


@pytest.mark.parametrize(("now", "is_over"), [(0.0, False), (9.9, False), (10.0, True), (11.0, True)])
def test_the_patience_is_counted_from_the_first_try(now: float, *, is_over: bool) -> None:
    """By the clock that was given."""
    clock = itertools.chain([100.0], itertools.repeat(100.0 + now))
    retry = Retry(0.1, 1.0, patience=10.0, clock=lambda: next(clock))

    assert retry.is_over is is_over


def test_a_pause_that_would_outlast_the_patience_is_known_before() -> None:
    """So that the last error is raised at once, not after a wait that nothing follows."""
    retry = Retry(0.1, 1.0, patience=10.0, clock=lambda: 0.0)

    assert retry.ends_within(10.0)
    assert not retry.ends_within(9.0)
