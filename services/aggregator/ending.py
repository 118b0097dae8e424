"""Ends an attempt, a job's run under this owner (pause), or the job: writes the records and publishes the events.

Each function may run twice without harm, under this owner or the next.
"""

from services.aggregator import manifests, protocol, recovery
from services.aggregator import outcome as outcomes
from services.aggregator.client_history import ClientHistory
from services.aggregator.committing import written_manifest
from services.aggregator.context import JobContext
from services.aggregator.job_state import State
from services.aggregator.opening import record_of
from shared import names
from shared.events import JobStatus, RoundEnd, TrainingEnd
from shared.process.failpoints import failpoint
from shared.record import parts
from shared.record.job import Result


def abandon(context: JobContext, effect: protocol.Abandon) -> None:
    """Ends an attempt at a round without a model; records the reason, and the clients that had delivered."""
    record = record_of(context, effect.round)
    seconds = context.edges.ledger.now() - record.opened
    came_to = manifests.came_to_nothing(effect.outcome, seconds, len(record.accepted), len(record.rejected))
    context.edges.ledger.fail_round(context.job, context.fence, effect.round, effect.reason, came_to)
    about = {
        "job": context.job,
        "round": effect.round,
        "attempt": effect.attempt,
        "outcome": effect.outcome,
        "reason": effect.reason,
        "cohort": list(record.cohort),
        "accepted": sorted(record.accepted),
        "rejected": record.rejected,
    }
    key = names.abandoned_blob(context.job, effect.round, effect.attempt)
    context.edges.blobs.put_json(key, parts.split(context.edges.blobs, key, about, ("cohort", "accepted", "rejected")))
    end = RoundEnd(
        job=context.job,
        round=effect.round,
        attempt=effect.attempt,
        outcome=effect.outcome,
        reason=effect.reason,
        accepted=len(record.accepted),
        rejected=len(record.rejected),
        fence=context.fence,
    )
    context.edges.bus.publish(end, required=False)
    context.log.warning("abandoned", round=effect.round, attempt=effect.attempt, reason=effect.reason)
    if effect.outcome == "failed":
        context.faults.note("round-failed", effect.reason, effect.round)


def pause(context: JobContext, state: State, reason: str) -> None:
    """Releases the job as paused: it has no owner until an operator resumes it."""
    context.clearing.wait()
    if context.edges.ledger.release(context.job, context.fence, "paused", reason) != "paused":
        return  # an operator resumed the job meanwhile, so that it is to be claimed again
    context.edges.bus.publish(JobStatus(job=context.job, status="paused", detail=reason), required=False)
    context.log.info("paused", reason=reason, committed=state.artifacts.round)


def end(context: JobContext, state: State, outcome: protocol.Outcome, reason: str) -> None:
    """Writes the result, then publishes it; a job that finishes with a loss that is not finite has failed."""
    ledger, blobs, accumulator = context.edges.ledger, context.edges.blobs, context.accumulator
    committed = state.artifacts.round
    if outcome == "finished":
        outcome, not_finite = outcomes.ending(state.evaluations.unsound, state.metrics)
        stop = context.spec.evaluate.stop
        unmeasured = f"evaluate.stop: nobody measured {stop.metric}" if stop and not state.evaluations.progress else ""
        reason = "; ".join(part for part in (reason, not_finite, unmeasured) if part)
    context.clearing.wait()
    written = written_manifest(context, committed + 1)
    ledger.check_owned(context.job, context.fence)
    if written is None:
        _abandon_rest(context, committed, reason)
    model = None
    if accumulator.model is not None:
        final = accumulator.model.blob.model_copy(update={"key": names.final_model_blob(context.job)})
        model = blobs.put(final.key, accumulator.file, digest=final.digest, metadata={"job": context.job})
    recovery.recall(context.edges.blobs, context.job, committed, context.turnout)
    now = ledger.now()
    result = {
        "job": context.job,
        "outcome": outcome,
        "reason": reason,
        "rounds": max(0, committed),
        "metrics": dict(state.metrics),
        "model": model.model_dump() if model else None,
        "missing": context.turnout.missing().model_dump(mode="json"),
        "seconds": round(now - state.first_opened, 3) if state.first_opened else 0.0,
        "started": state.first_opened,
        "ended": now,
    }
    ledger.check_owned(context.job, context.fence)
    key = names.result_blob(context.job)
    blobs.put_json(key, result)
    failpoint("aggregator.result")
    conclude(context, Result.read(key, result).end, state.artifacts.client_history)


def _abandon_rest(context: JobContext, committed: int, reason: str) -> None:
    """Abandons the round that was open or closing when an error ended the job, so that watchers and trainers know."""
    record = context.edges.ledger.round(context.job, committed + 1)
    if record is not None and record.state in ("open", "closed"):
        abandon(context, protocol.Abandon(committed + 1, record.attempt, "failed", reason))


def _clear_late(context: JobContext, history: ClientHistory) -> None:
    """Removes update files that came too late to count.

    The queue is gone, so that from now on a trainer whose update cannot be delivered removes the file itself.
    """
    blobs = context.edges.blobs
    blobs.delete(names.rounds_prefix(context.job), holding="/updates/")
    if context.spec.is_stateful and history.states:
        current = {names.state_blob(context.job, client, ref.digest) for client, ref in history.states.items()}
        blobs.remove([key for key in blobs.list(names.states_prefix(context.job)) if key not in current])


def conclude(context: JobContext, ended: TrainingEnd, history: ClientHistory) -> None:
    """Cleans up and publishes the end after a job's result is written, by this owner or by an earlier one."""
    ended = ended.model_copy(update={"fence": context.fence})
    context.edges.ledger.set_metrics(context.job, context.fence, ended.metrics)
    if context.subscription is not None:
        context.edges.bus.cancel(context.subscription)
    # The queue is deleted before the ledger has the end: if this owner dies in between, the next one deletes it again.
    context.edges.bus.delete(names.updates_queue(context.job))
    if not context.spec.keep_updates:
        _clear_late(context, history)
    context.edges.ledger.end(context.job, context.fence, ended.outcome, ended.reason)
    failpoint("aggregator.ended")
    context.edges.bus.publish(ended, required=False)
    context.log.info(
        "ended",
        outcome=ended.outcome,
        reason=ended.reason,
        rounds=ended.rounds,
        seconds=ended.seconds,
        metrics=ended.metrics,
    )
