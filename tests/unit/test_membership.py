"""The one rule of liveness."""

from services.registry.handlers import lease
from shared.process.settings import Registry, Trainer


def test_patience_counts_intervals_of_silence() -> None:
    """A trainer that reports every 2 s is lost after 5 of them."""
    assert lease(2.0, 5) == 10.0


def test_the_registry_expects_what_the_trainers_do() -> None:
    """Both have the same interval unless somebody sets it; a lease outlasts a few lost heartbeats."""
    expected = Registry.model_fields["heartbeat_s"].default

    assert expected == Trainer.model_fields["heartbeat_s"].default
    assert lease(expected, Registry.model_fields["patience"].default) > 3 * expected
