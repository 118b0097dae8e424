"""What an event changes: each update checked, counted once and folded; what is refused, recorded with the reason."""

import time

from services.aggregator import rounds
from services.aggregator.intake import located
from services.aggregator.seat import Seat
from shared import names
from shared.errors import RecordLost, Refused, Stale
from shared.events import ModelEvaluated, ModelUpdate
from shared.failpoints import failpoint

COULD_NOT = "could not train: "  #: begins the reason of a client that said so itself


def on_model_update(seat: Seat, state: rounds.State, update: ModelUpdate) -> rounds.Happening | None:
    """Takes an update in, or records why not; `Stale` where nobody waits for it."""
    number, ledger = state.round, seat.edges.ledger
    if state.phase != "open":
        raise Stale(f"{update.client} sent an update for round {update.round}; none is open")
    try:
        if update.round != number:
            raise Refused(f"sent an update for round {update.round} while round {number} is open")
        if update.tries > 1:
            seat.faults.note("tried-again", f"{update.client} answered in try {update.tries}", number)
        if update.error is not None:
            return _on_failure(seat, state, update)
        standing = ledger.standing(seat.job, number, update.client)
        if standing == "ok" and update.client in seat.tally.counted:
            raise RecordLost(f"Redis has lost that {update.client} was counted in round {number}")
        if standing == "ok":
            standing = _take_in(seat, update)
        return _judged(seat, update, standing)
    except Refused as refused:
        ledger.reject(seat.job, seat.fence, number, update.client, str(refused))
        seat.log.warning("refused", round=number, client=update.client, reason=str(refused))
        seat.faults.note("refused", f"{update.client}: {refused}", number)
        return None


def _on_failure(seat: Seat, state: rounds.State, update: ModelUpdate) -> rounds.Happening:
    if update.client not in state.cohort:
        raise Refused("is not in the round's cohort")
    reason = f"{COULD_NOT}{update.error}"
    seat.edges.ledger.reject(seat.job, seat.fence, update.round, update.client, reason)
    seat.log.warning("client failed", round=update.round, client=update.client, reason=update.error)
    seat.faults.note("client-failed", f"{update.client}: {update.error}", update.round)
    return rounds.Failed(update.client)


def _take_in(seat: Seat, update: ModelUpdate) -> str:
    """Accepts a checked update and folds it; answers what the ledger said."""
    began = time.monotonic()
    entry = seat.tally.receive(update)
    failpoint("aggregator.received")
    answer = seat.edges.ledger.accept(seat.job, seat.fence, update.round, update.client, entry)
    if answer == "ok":
        failpoint("aggregator.accepted")
        seat.tally.count(update.client, update.examples, located(update).digest)
        seat.log.info(
            "accepted",
            round=update.round,
            client=update.client,
            trainer=update.trainer,
            examples=update.examples,
            seconds=round(time.monotonic() - began, 4),
        )
    return answer


def _judged(seat: Seat, update: ModelUpdate, standing: str) -> rounds.Happening:
    match standing:
        case "ok":
            return rounds.Accepted(update.client)
        case "duplicate":
            return _on_duplicate(seat, update)
        case "late":
            raise Refused(f"came after the deadline of round {update.round}")
        case _:
            raise Refused("is not in the round's cohort")


def _on_duplicate(seat: Seat, update: ModelUpdate) -> rounds.Happening:
    found = seat.edges.ledger.accepted(seat.job, update.round, update.client)
    if update.update is None or found.get("blob", {}).get("digest") != update.update.digest:
        raise Refused("a second update: the first one counts")
    if update.client not in seat.tally.counted:
        # The ledger counted it, and its answer was lost: it is not in the fold yet.
        seat.tally.count_again(update.client, found)
        return rounds.Accepted(update.client)
    seat.faults.note("duplicate", f"{update.client} has been counted", update.round)
    raise Stale(f"{update.client} has been counted in round {update.round}")


def on_model_evaluated(seat: Seat, event: ModelEvaluated) -> rounds.Happening:
    """Keeps the figures of a round's model."""
    if event.error is not None:
        seat.log.warning("not evaluated", round=event.round, reason=event.error)
        seat.faults.note("not-evaluated", event.error, event.round)
    elif event.examples:
        seat.metrics = {**seat.metrics, **event.metrics}
        # The ledger first: it knows whether the job is still ours to write about.
        seat.edges.ledger.set_metrics(seat.job, seat.fence, seat.metrics)
        record = {"job": seat.job, **event.model_dump(include={"round", "model", "examples", "metrics"})}
        seat.edges.blobs.put_json(names.evaluation_blob(seat.job, event.round), record)
        seat.log.info("evaluated", round=event.round, trainer=event.trainer, metrics=event.metrics)
    return rounds.Evaluated(event.round)
