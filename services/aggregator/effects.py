"""What the engine asks for, done on the servers; each may be done twice without harm, by this owner or the next."""

import time
from typing import Any, Literal

from services.aggregator import closing, recovery, rounds
from services.aggregator.seat import Seat
from shared import fold, names, topology
from shared.errors import RecordLost, Unavailable
from shared.events import EvaluateModel, JobStatus, RoundEnd, RoundStart, TrainingEnd, slices
from shared.failpoints import failpoint
from shared.jobs import JobSpec
from shared.ledger import RoundRecord
from shared.roster import groups


def look(seat: Seat) -> rounds.Looked:
    """Reads the roster."""
    seat.alive = groups(seat.edges.roster.alive())
    return rounds.Looked(seat.alive)


def say(seat: Seat, status: Literal["running", "waiting"], detail: str) -> None:
    """Tells whoever watches what the job does or waits for."""
    seat.announced = status == "running"
    seat.edges.ledger.describe(seat.job, seat.fence, status, detail)
    seat.edges.bus.publish(JobStatus(job=seat.job, status=status, detail=detail), required=False)
    seat.log.info(status, detail=detail)


# --- a round begins -------------------------------------------------------------------------


def open_round(seat: Seat, effect: rounds.Open) -> rounds.Opened:
    """Records the round and, if asked to, rings its cohort."""
    spec, number, cohort = seat.spec, effect.round, effect.cohort
    if not seat.announced:
        say(seat, "running", f"round {number} of {spec.rounds.count}")
    seconds = spec.rounds.deadline
    deadline = seat.edges.ledger.open_round(seat.job, seat.fence, number, effect.attempt, cohort, seconds)
    seat.first_opened = seat.first_opened or deadline - seconds
    seat.tally.begin(len(cohort))
    failpoint("aggregator.opened")
    if effect.ring:
        _ring(seat, number, effect.attempt, cohort, deadline)
        failpoint("aggregator.announced")
    seat.log.info("opened", round=number, attempt=effect.attempt, cohort=len(cohort))
    return rounds.Opened(seconds)


def ring_again(seat: Seat, effect: rounds.Ring) -> None:
    """Asks those who have not answered."""
    record = record_of(seat, effect.round)
    _ring(seat, effect.round, effect.attempt, effect.cohort, record.deadline, again=True)
    failpoint("aggregator.announced")
    seat.log.info("rang", round=effect.round, attempt=effect.attempt, cohort=len(effect.cohort))
    if not effect.first:
        seat.faults.note("rang-again", ", ".join(effect.cohort[:10]), effect.round)


def _ring(
    seat: Seat, number: int, attempt: int, cohort: tuple[str, ...], deadline: float, *, again: bool = False
) -> None:
    """Publishes round-start, one for each group and slice of the cohort."""
    base = seat.tally.model.blob if seat.tally.model else None
    for group, members in by_group(seat.spec, cohort).items():
        seat.edges.bus.declare_once(topology.rounds(group))
        for part in slices(members):
            seat.edges.bus.publish(
                RoundStart(
                    job=seat.job,
                    group=group,
                    round=number,
                    attempt=attempt,
                    base=base,
                    cohort=part,
                    spec=seat.spec,
                    deadline=deadline,
                    fence=seat.fence,
                    again=again,
                )
            )


def by_group(spec: JobSpec, cohort: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """The cohort's members by whose queue their work goes to."""
    if spec.pool is not None:
        return {spec.pool: cohort} if cohort else {}
    return {client: (client,) for client in cohort}


def record_of(seat: Seat, number: int) -> RoundRecord:
    """The ledger's record of a round, or `RecordLost`."""
    record = seat.edges.ledger.round(seat.job, number)
    if record is None:
        raise RecordLost(f"Redis has lost the record of round {number} of {seat.job}")
    return record


# --- a round ends ---------------------------------------------------------------------------


def close(seat: Seat, number: int) -> rounds.Committed:
    """The steps from a frozen set to a committed round; done again after a failure, they give the same."""
    ledger, blobs, tally = seat.edges.ledger, seat.edges.blobs, seat.tally
    began = time.monotonic()
    accepted = ledger.close_round(seat.job, seat.fence, number, len(tally.counted))
    failpoint("aggregator.closed")
    record = record_of(seat, number)
    base, grid = None, None
    if number and tally.model is not None:
        base, grid = tally.model.blob, fold.grid_of(seat.spec, len(record.cohort))
    model = tally.advance(number, len(record.cohort), accepted)
    failpoint("aggregator.stepped")
    blobs.put(model.key, tally.file, digest=model.digest, metadata={"job": seat.job, "round": number})
    failpoint("aggregator.stored")
    commit = closing.manifest(
        job=seat.job,
        number=number,
        fence=seat.fence,
        record=record,
        spec=seat.spec,
        base=base,
        model=model,
        grid=grid,
        accepted=accepted,
        faults=[line for line in ledger.log(seat.job) if line["round"] == number],
        committed=ledger.now(),
    )
    _check_first(seat, number)
    ledger.check_owned(seat.job, seat.fence)  # one that slept through its lease must not write over a manifest
    blobs.put_json(names.manifest_blob(seat.job, number), commit)
    failpoint("aggregator.recorded")
    ledger.commit_round(seat.job, seat.fence, number)
    failpoint("aggregator.committed")
    tell_round_end(seat, commit)
    failpoint("aggregator.told")
    # Last, because what comes before may be done again, and then on the same base.
    if tally.model is not None:
        tally.model.blob = model
    seat.committed = number
    seat.metrics = {**seat.metrics, **commit["metrics"]}
    seat.log.info(
        "committed",
        round=number,
        updates=len(accepted),
        rejected=len(record.rejected),
        model=model.digest[:12],
        tail=round(time.monotonic() - began, 4),
        seconds=commit["seconds"],
    )
    clear_away(seat, number)
    return rounds.Committed()


def _check_first(seat: Seat, number: int) -> None:
    """`RecordLost` where another owner has committed the round: Redis went back, and this one seems to own it again."""
    written = recovery.optional(seat.edges.blobs, names.manifest_blob(seat.job, number))
    if written is not None and written.get("fence") != seat.fence:
        raise RecordLost(f"round {number} of {seat.job} is committed in the store, and Redis has lost it")


def tell_round_end(seat: Seat, manifest: dict[str, Any]) -> None:
    """Publishes the round-end of a committed round."""
    end = RoundEnd.model_validate(
        {
            **{name: manifest[name] for name in ("job", "round", "attempt", "metrics", "model", "seconds")},
            "outcome": "committed",
            "accepted": len(manifest["updates"]),
            "rejected": len(manifest["rejected"]),
            "fence": seat.fence,
        }
    )
    seat.edges.bus.publish(end, required=False)


def clear_away(seat: Seat, number: int) -> None:
    """Removes what a committed round leaves behind, while the next one runs."""

    def clear() -> None:
        try:
            if not seat.spec.keep_updates:
                seat.edges.blobs.delete(names.updates_prefix(seat.job, number))
            seat.edges.ledger.drop_round(seat.job, number)
        except Unavailable as error:
            seat.log.warning("not cleared away", round=number, reason=str(error))

    seat.clearing = seat.edges.later.submit(clear)


def abandon(seat: Seat, effect: rounds.Abandon) -> None:
    """Ends an attempt at a round without a model; who had delivered stands in the record, with the reason."""
    record = record_of(seat, effect.round)
    seat.edges.ledger.fail_round(seat.job, seat.fence, effect.round, effect.reason)
    about = {
        "job": seat.job,
        "round": effect.round,
        "attempt": effect.attempt,
        "outcome": effect.outcome,
        "reason": effect.reason,
        "cohort": list(record.cohort),
        "accepted": sorted(record.accepted),
        "rejected": record.rejected,
    }
    seat.edges.blobs.put_json(names.abandoned_blob(seat.job, effect.round, effect.attempt), about)
    end = RoundEnd(
        job=seat.job,
        round=effect.round,
        attempt=effect.attempt,
        outcome=effect.outcome,
        reason=effect.reason,
        accepted=len(record.accepted),
        rejected=len(record.rejected),
        fence=seat.fence,
    )
    seat.edges.bus.publish(end, required=False)
    seat.log.warning("abandoned", round=effect.round, attempt=effect.attempt, reason=effect.reason)
    if effect.outcome == "failed":
        seat.faults.note("round-failed", effect.reason, effect.round)


def evaluate(seat: Seat, number: int) -> None:
    """Asks a pool, or a silo that is alive, how good the model is."""
    model = seat.tally.model
    group = seat.spec.pool or next((silo for silo in seat.spec.clients if seat.alive.get(silo)), None)
    if model is None or group is None:
        return
    seat.edges.bus.declare_once(topology.rounds(group))
    seat.edges.bus.publish(EvaluateModel(job=seat.job, group=group, round=number, model=model.blob, spec=seat.spec))


# --- a job ends -----------------------------------------------------------------------------


def pause(seat: Seat, reason: str) -> None:
    """Lays the job down: nobody owns it until an operator resumes it."""
    seat.settle_clearing()
    if seat.edges.ledger.release(seat.job, seat.fence, "paused", reason) != "paused":
        return  # resumed in this moment: it is claimed again
    seat.edges.bus.publish(JobStatus(job=seat.job, status="paused", detail=reason), required=False)
    seat.log.info("paused", reason=reason, committed=seat.committed)


def end(seat: Seat, outcome: rounds.Outcome, reason: str) -> None:
    """Writes the result, then says so."""
    ledger, blobs, tally = seat.edges.ledger, seat.edges.blobs, seat.tally
    seat.settle_clearing()
    _check_first(seat, seat.committed + 1)
    ledger.check_owned(seat.job, seat.fence)
    if not seat.spec.keep_updates:
        blobs.delete(names.rounds_prefix(seat.job), holding="/updates/")  # what came too late to be counted
    model = None
    if tally.model is not None:
        final = tally.model.blob.model_copy(update={"key": names.final_model_blob(seat.job)})
        model = blobs.put(final.key, tally.file, digest=final.digest, metadata={"job": seat.job})
    now = ledger.now()
    result = {
        "job": seat.job,
        "outcome": outcome,
        "reason": reason,
        "rounds": max(0, seat.committed),
        "metrics": seat.metrics,
        "model": model.model_dump() if model else None,
        "seconds": round(now - seat.first_opened, 3) if seat.first_opened else 0.0,
        "started": seat.first_opened,
        "ended": now,
    }
    ledger.check_owned(seat.job, seat.fence)
    blobs.put_json(names.result_blob(seat.job), result)
    failpoint("aggregator.result")
    conclude(seat, result)


def conclude(seat: Seat, result: dict[str, Any]) -> None:
    """What follows from a job's result, by the owner that wrote it or by the next one."""
    ended = TrainingEnd.model_validate(
        {name: result[name] for name in TrainingEnd.model_fields if name in result} | {"fence": seat.fence}
    )
    seat.edges.ledger.set_metrics(seat.job, seat.fence, ended.metrics)
    if seat.subscription is not None:
        seat.edges.bus.cancel(seat.subscription)
    # Before the ledger says that it is over, or the queue of an owner that dies here would stay.
    seat.edges.bus.delete(names.updates_queue(seat.job))
    seat.edges.ledger.end(seat.job, seat.fence, ended.outcome, ended.reason)
    failpoint("aggregator.ended")
    seat.edges.bus.publish(ended, required=False)
    seat.log.info(
        "ended",
        outcome=ended.outcome,
        reason=ended.reason,
        rounds=ended.rounds,
        seconds=ended.seconds,
        metrics=ended.metrics,
    )
