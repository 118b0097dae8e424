"""What an update's blob says of itself."""

import pytest

from shared import names
from shared.errors import Refused
from shared.events import BlobRef, Inputs, Member, ModelUpdate, StateRef
from shared.record import receipts

DIGEST = "0123456789ab" + "c" * 52


def update(**changes: object) -> ModelUpdate:
    job = "digits-abcdef"
    fields = {
        "job": job,
        "round": 3,
        "attempt": 2,
        "client": "client-1",
        "trainer": "t1",
        "base": "d" * 64,
        "update": BlobRef(key=names.update_blob(job, 3, "client-1", DIGEST), size=100, digest=DIGEST),
        "examples": 7,
        "metrics": {"client_loss": 1.5, "client_accuracy": 0.5},
    }
    return ModelUpdate.model_validate({**fields, **changes})


def told(found: ModelUpdate) -> ModelUpdate:
    """As somebody tells of it who has found its blob."""
    assert found.update is not None
    about = {name: str(value) for name, value in receipts.receipt(found).items()}
    return receipts.told_again(found.update.key, found.update.size, {**about, "digest": found.update.digest})


@pytest.mark.parametrize("state", [None, StateRef(size=12, digest="e" * 64)], ids=["no state", "a state"])
def test_a_receipt_tells_the_whole_update(state: StateRef | None) -> None:
    assert told(update(state=state)) == update(state=state)


def test_an_initial_model_is_told_of_by_a_store_that_drops_what_is_empty() -> None:
    """It has no base, and SeaweedFS keeps no empty value."""
    initial = update(
        round=0,
        base=None,
        update=BlobRef(key=names.update_blob("digits-abcdef", 0, "client-1", DIGEST), size=100, digest=DIGEST),
    )
    assert initial.update is not None
    about = {name: str(value) for name, value in receipts.receipt(initial).items() if value != ""}

    assert receipts.told_again(initial.update.key, 100, {**about, "digest": DIGEST}) == initial


def test_an_initial_model_is_told_of_with_what_the_data_look_like() -> None:
    """Or not at all, where that is too long: a job's record must not lack it because an event was lost."""
    initial = {"round": 0, "base": None, "metrics": {}}
    blob = BlobRef(key=names.update_blob("digits-abcdef", 0, "client-1", DIGEST), size=100, digest=DIGEST)
    short = update(**initial, update=blob, inputs=Inputs(shape=(3, 8, 8), classes=2, labels=("ä", "b"), scale=(255.0,)))
    assert all(str(value).isascii() for value in receipts.receipt(short).values())  # or no store takes its signature

    assert told(short) == short
    with pytest.raises(Refused, match="metrics"):
        told(update(**initial, update=blob, inputs=Inputs(shape=(3,), classes=500, labels=tuple(map(str, range(500))))))


def test_a_batch_leaves_no_receipt() -> None:
    """What each of its clients did would not fit; it is trained again where it is asked for again."""
    with pytest.raises(Refused, match="does not tell of an update"):
        told(update(members=[Member(client="client-1", examples=7)]))


def test_metrics_that_do_not_fit_make_it_none() -> None:
    with pytest.raises(Refused, match="metrics"):
        told(update(metrics={f"a_metric_of_the_users_own_{number}": 1 / 3 for number in range(60)}))
