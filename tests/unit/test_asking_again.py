"""Who is asked again, and with whom."""

from services.aggregator.opening import batches_again
from services.trainer.train_task import train_tasks
from shared.events import BlobRef, RoundStart
from shared.job import job_spec
from tests.unit.test_job_spec import document

WHOLE = tuple(f"client-{number}" for number in range(8))


def batches(cohort: tuple[str, ...]) -> list[tuple[str, ...]]:
    """As a trainer cuts them."""
    spec = job_spec.parse(document(data={"name": "digits", "clients": 8}, rounds={"count": 1, "clients_per_task": 3}))
    event = RoundStart(
        job="t-abc234",
        group="cpu",
        round=1,
        attempt=1,
        base=BlobRef(key="k", size=1, digest="0" * 64),
        cohort=cohort,
        spec=spec,
        deadline=0.0,
    )
    return [order.members for order in train_tasks(event, 0.0)]


def test_a_batch_that_is_asked_again_holds_nobody_of_another() -> None:
    """Who of the first batch said nothing does not shift the ones after it."""
    again = [part for asked in batches_again(WHOLE[2:], WHOLE, 3) for part in batches(asked)]

    assert batches(WHOLE) == [WHOLE[:3], WHOLE[3:6], WHOLE[6:]]
    assert again == [WHOLE[2:3], WHOLE[3:6], WHOLE[6:]]
    assert batches(WHOLE[2:]) != again
