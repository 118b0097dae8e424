"""What the engine asks for, done on the servers; each may be done twice without harm, by this owner or the next."""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from services.aggregator import client_history as memories
from services.aggregator import job_state, manifests, protocol, recovery, soundness
from services.aggregator.accepted_updates import gave_up, traffic
from services.aggregator.client_history import ClientHistory
from services.aggregator.context import JobContext
from shared import names
from shared.aggregation import weights
from shared.amqp import topology
from shared.errors import LedgerLost, Unavailable
from shared.events import BlobRef, JobStatus, RoundEnd, RoundStart, slices
from shared.job import profiles
from shared.job.job_spec import JobSpec
from shared.process.failpoints import failpoint
from shared.record import parts
from shared.redis.ledger import RoundRecord
from shared.redis.roster import groups
from shared.s3 import json_records


def look(context: JobContext) -> protocol.Looked:
    """Reads the roster, and who is away."""
    context.alive = groups(context.edges.roster.alive())
    return protocol.Looked(context.alive, _away(context), context.memory.history)


def _away(context: JobContext) -> frozenset[str]:
    """Clients that the job's simulation has away now."""
    simulate = context.spec.simulate
    if simulate is None or simulate.availability is None or not simulate.aware:
        return frozenset()
    now = context.edges.ledger.now()
    since = now - (context.first_opened or now)
    return frozenset(client for client in context.spec.clients if not profiles.is_there(context.spec, client, since))


def say(context: JobContext, status: Literal["running", "waiting"], detail: str) -> None:
    """Tells whoever watches what the job does or waits for."""
    context.announced = status == "running"
    context.edges.ledger.describe(context.job, context.fence, status, detail)
    context.edges.bus.publish(JobStatus(job=context.job, status=status, detail=detail), required=False)
    context.log.info(status, detail=detail)


# --- a round begins -------------------------------------------------------------------------


def open_round(context: JobContext, effect: protocol.Open) -> protocol.Opened:
    """Records the round and, if asked to, rings its cohort."""
    spec, number, cohort = context.spec, effect.round, effect.cohort
    if not context.announced:
        say(context, "running", f"round {number} of {spec.rounds.count}")
    seconds = spec.rounds.deadline
    deadline = context.edges.ledger.open_round(
        context.job,
        context.fence,
        number,
        effect.attempt,
        cohort,
        seconds,
        effect.carried,
        target=job_state.target_of(spec, number, len(cohort)),
    )
    context.first_opened = context.first_opened or deadline - seconds
    context.accumulator.begin(len(cohort), number)
    failpoint("aggregator.opened")
    if effect.ask:
        fresh = tuple(client for client in cohort if client not in effect.carried)
        _ask(context, number, effect.attempt, fresh, deadline, whole=cohort)
        failpoint("aggregator.announced")
    context.log.info("opened", round=number, attempt=effect.attempt, cohort=len(cohort))
    return protocol.Opened(seconds)


def ask_again(context: JobContext, effect: protocol.AskAgain) -> None:
    """Asks those who have not answered."""
    record = record_of(context, effect.round)
    for number in sorted({effect.round, *effect.carried.values()}):
        asked = tuple(client for client in effect.cohort if effect.carried.get(client, effect.round) == number)
        _ask(context, number, effect.attempt, asked, record.deadline, again=True, whole=record.cohort)
    failpoint("aggregator.announced")
    context.log.info("rang", round=effect.round, attempt=effect.attempt, cohort=len(effect.cohort))
    if not effect.first:
        context.faults.note("rang-again", ", ".join(effect.cohort[:10]), effect.round)


def _ask(
    context: JobContext,
    number: int,
    attempt: int,
    cohort: tuple[str, ...],
    deadline: float,
    *,
    whole: tuple[str, ...],
    again: bool = False,
) -> None:
    """Publishes round-start to those of the whole cohort who are in `cohort`, one for each group and slice of them."""
    spec, states = context.spec, context.memory.states
    base = context.accumulator.bases.get(number)
    newest = base is not None and context.accumulator.model is not None and base == context.accumulator.model.blob
    for group, members in by_group(spec, cohort).items():
        context.edges.bus.declare_once(topology.rounds(group))
        batch = spec.rounds.clients_per_task
        cut = slices(members, stateful=bool(states), batch=batch)
        for part in batches_again(members, whole, batch) if again and batch > 1 else cut:
            context.edges.bus.publish(
                RoundStart(
                    job=context.job,
                    group=group,
                    round=number,
                    attempt=attempt,
                    base=base,
                    cohort=part,
                    spec=context.spec,
                    deadline=deadline,
                    fence=context.fence,
                    again=again,
                    cohort_size=len(whole),
                    states=tuple(map(states.get, part)) if states else (),
                    server=context.server if context.accumulator.broadcasts else None,
                    previous=context.previous.digest if newest and context.previous else None,
                    delta=context.delta if newest else None,
                )
            )


def batches_again(members: tuple[str, ...], whole: tuple[str, ...], batch: int) -> Iterator[tuple[str, ...]]:
    """Those of each batch of the whole cohort who are asked again, by themselves.

    Cut anew, one batch would hold clients of two, and be refused as a whole when the first of these arrives.
    """
    wanted = set(members)
    for start in range(0, len(whole), batch):
        part = tuple(client for client in whole[start : start + batch] if client in wanted)
        if part:
            yield part


def by_group(spec: JobSpec, cohort: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """The cohort's members by whose queue their work goes to."""
    if spec.pool is not None:
        return {spec.pool: cohort} if cohort else {}
    return {client: (client,) for client in cohort}


def record_of(context: JobContext, number: int) -> RoundRecord:
    """The ledger's record of a round, or `RecordLost`."""
    record = context.edges.ledger.round(context.job, number)
    if record is None:
        raise LedgerLost(f"Redis has lost the record of round {number} of {context.job}")
    return record


# --- a round ends ---------------------------------------------------------------------------


def close(context: JobContext, number: int) -> protocol.Committed:
    """The steps from a frozen set to a committed round; done again after a failure, they give the same."""
    ledger, blobs, accumulator = context.edges.ledger, context.edges.blobs, context.accumulator
    clock = context.edges.clock
    began = clock()
    record = ledger.close_round(context.job, context.fence, number, len(accumulator.counted))
    accepted = record.accepted
    failpoint("aggregator.closed")
    model = accumulator.advance(number, len(record.cohort), accepted)
    base = accumulator.bases.get(number)
    grid = accumulator.grid if base is not None else None
    fresh = tuple(client for client in record.cohort if client not in record.carried)
    memory = memories.after(context.memory, context.spec, number, fresh, accepted, context.evaluated)
    failpoint("aggregator.stepped")
    about = {"job": context.job, "round": number}
    blobs.put(model.key, accumulator.file, digest=model.digest, metadata=about)
    left = _put_beside(context, number, memory)
    failpoint("aggregator.stored")
    commit = manifests.manifest(
        job=context.job,
        number=number,
        fence=context.fence,
        record=record,
        base=base,
        model=model,
        plan=accumulator.plan,
        grid=grid,
        left=left,
        accepted=accepted,
        traffic=traffic(accepted, accumulator.plain_size),
        timings={"fold": round(accumulator.seconds, 6), "step": round(clock() - began, 6)},
        faults=[line for line in ledger.log(context.job) if line["round"] == number],
        committed=ledger.now(),
    )
    key, written = names.manifest_blob(context.job, number), _written(context, number)
    if record.state == "committed" and written is not None:
        commit = written  # counted as it says, though the answer was lost
        came_to = manifests.came_to(commit, parts.pieces(blobs, key, commit))
    else:
        came_to = manifests.came_to(commit, [commit])  # before it is cut: no part is fetched again
        commit = parts.split(blobs, key, commit, manifests.OF_CLIENTS)
        ledger.check_owned(
            context.job, context.fence
        )  # one that slept through its lease must not write over a manifest
        blobs.put_json(key, commit)
    failpoint("aggregator.recorded")
    ledger.commit_round(context.job, context.fence, number, came_to)
    failpoint("aggregator.committed")
    tell_round_end(context, commit)
    failpoint("aggregator.told")
    # Last, because what comes before may be done again, and then on the same base.
    replaced = [
        names.state_blob(context.job, client, ref.digest) for client, ref in memories.superseded(context.memory, memory)
    ]
    outdated = context.history_blob.key.rpartition("-")[0] if context.history_blob else ""
    _move_on(context, number, model, left, memory)
    context.turnout.tell(number, record.cohort, accepted, record.rejected)
    context.measured(commit["metrics"])
    context.log.info(
        "committed",
        round=number,
        updates=len(accepted),
        rejected=len(record.rejected),
        model=model.digest[:12],
        tail=round(clock() - began, 4),
        seconds=commit["seconds"],
    )
    clear_away(context, number, replaced, outdated)
    return protocol.Committed(frozenset(accepted) | gave_up(record.rejected))


def _put_beside(context: JobContext, number: int, memory: ClientHistory) -> dict[str, BlobRef | None]:
    """Stores what a round leaves beside its model."""
    blobs, job, about = context.edges.blobs, context.job, {"job": context.job, "round": number}
    left: dict[str, BlobRef | None] = {"server": None, "delta": None, "memory": None}
    for name, file, key_of in (
        ("server", context.accumulator.extra.server, names.server_blob),
        ("delta", context.accumulator.extra.delta, names.delta_blob),
    ):
        if file is not None:
            digest = weights.digest_of(file)
            left[name] = blobs.put(key_of(job, number, digest), file, digest=digest, metadata=about)
    if memories.is_kept(context.spec):
        document = memory.document()
        head = parts.split(blobs, names.histories(job, number), memories.flat(document), memories.OF_CLIENTS)
        text = json_records.dumps(head if "parts" in head else document, separators=(",", ":")).encode()
        key = names.history_blob(job, number, hashlib.sha256(text).hexdigest())
        left["memory"] = blobs.put(key, text, metadata=about)
    return left


def _move_on(
    context: JobContext, number: int, model: BlobRef, left: dict[str, BlobRef | None], memory: ClientHistory
) -> None:
    """The round is committed: what it left is what the next one begins with."""
    if context.accumulator.model is not None:
        context.previous = context.accumulator.bases.get(number)
        context.accumulator.model.blob = model
    context.server, context.delta = left["server"], left["delta"]
    context.memory, context.history_blob = memory, left["memory"]
    context.committed, context.evaluated = number, {}


def _written(context: JobContext, number: int) -> dict[str, Any] | None:
    """A round's manifest, if this owner has written it.

    `RecordLost` where another one has: Redis went back, and this one seems to own the job again.
    """
    written = recovery.optional(context.edges.blobs, names.manifest_blob(context.job, number))
    if written is not None and written.get("fence") != context.fence:
        raise LedgerLost(f"round {number} of {context.job} is committed in the store, and Redis has lost it")
    return written


def tell_round_end(context: JobContext, manifest: dict[str, Any]) -> None:
    """Publishes the round-end of a committed round."""
    end = RoundEnd.model_validate(
        {
            **{name: manifest[name] for name in ("job", "round", "attempt", "metrics", "model", "seconds")},
            "outcome": "committed",
            "accepted": parts.count(manifest, "updates"),
            "rejected": parts.count(manifest, "rejected"),
            "fence": context.fence,
            "lag": context.spec.max_staleness,
        }
    )
    context.edges.bus.publish(end, required=False)


def clear_away(context: JobContext, number: int, replaced: Sequence[str] = (), outdated: str = "") -> None:
    """Removes what a committed round leaves behind, while the next one runs.

    So it does with the blobs that it `replaced`, and with what begins with the key of an `outdated` history.
    """
    done = number - context.spec.max_staleness  # later ones may still get updates

    def clear() -> None:
        try:
            if not context.spec.keep_updates and done >= 0:
                context.edges.blobs.delete(names.updates_prefix(context.job, done))
            if not context.spec.keep_updates:
                context.edges.blobs.remove(replaced)
            if outdated and not context.spec.keep_updates:
                context.edges.blobs.delete(outdated)
            context.edges.ledger.drop_round(context.job, number)
        except Unavailable as error:
            context.log.warning("not cleared away", round=number, reason=str(error))

    context.clearing = context.edges.later.submit(clear)


def abandon(context: JobContext, effect: protocol.Abandon) -> None:
    """Ends an attempt at a round without a model; who had delivered stands in the record, with the reason."""
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


# --- a job ends -----------------------------------------------------------------------------


def pause(context: JobContext, reason: str) -> None:
    """Lays the job down: nobody owns it until an operator resumes it."""
    context.settle_clearing()
    if context.edges.ledger.release(context.job, context.fence, "paused", reason) != "paused":
        return  # resumed in this moment: it is claimed again
    context.edges.bus.publish(JobStatus(job=context.job, status="paused", detail=reason), required=False)
    context.log.info("paused", reason=reason, committed=context.committed)


def end(context: JobContext, outcome: protocol.Outcome, reason: str) -> None:
    """Writes the result, then says so; a job whose last figures are no numbers does not just finish."""
    ledger, blobs, accumulator = context.edges.ledger, context.edges.blobs, context.accumulator
    if outcome == "finished":
        outcome, said = soundness.ending(context.unsound, context.metrics)
        stop = context.spec.evaluate.stop
        unmeasured = f"evaluate.stop: nobody measured {stop.metric}" if stop and not context.progress else ""
        reason = "; ".join(part for part in (reason, said, unmeasured) if part)
    context.settle_clearing()
    written = _written(context, context.committed + 1)
    ledger.check_owned(context.job, context.fence)
    if written is None:
        _abandon_rest(context, reason)
    model = None
    if accumulator.model is not None:
        final = accumulator.model.blob.model_copy(update={"key": names.final_model_blob(context.job)})
        model = blobs.put(final.key, accumulator.file, digest=final.digest, metadata={"job": context.job})
    recovery.recall(context.edges.blobs, context.job, context.committed, context.turnout)
    now = ledger.now()
    result = {
        "job": context.job,
        "outcome": outcome,
        "reason": reason,
        "rounds": max(0, context.committed),
        "metrics": context.metrics,
        "model": model.model_dump() if model else None,
        "missing": context.turnout.missing().model_dump(mode="json"),
        "seconds": round(now - context.first_opened, 3) if context.first_opened else 0.0,
        "started": context.first_opened,
        "ended": now,
    }
    ledger.check_owned(context.job, context.fence)
    blobs.put_json(names.result_blob(context.job), result)
    failpoint("aggregator.result")
    conclude(context, result)


def _abandon_rest(context: JobContext, reason: str) -> None:
    """Ends the round that an error has ended with its job: everybody is told, and it is counted."""
    record = context.edges.ledger.round(context.job, context.committed + 1)
    if record is not None and record.state in ("open", "closed"):
        abandon(context, protocol.Abandon(context.committed + 1, record.attempt, "failed", reason))


def _clear_late(context: JobContext) -> None:
    """Removes what came too late to be counted; from now on a trainer that nobody hears does so itself."""
    blobs = context.edges.blobs
    blobs.delete(names.rounds_prefix(context.job), holding="/updates/")
    if context.spec.is_stateful and context.memory.states:
        current = {names.state_blob(context.job, client, ref.digest) for client, ref in context.memory.states.items()}
        blobs.remove([key for key in blobs.list(names.states_prefix(context.job)) if key not in current])


def conclude(context: JobContext, result: dict[str, Any]) -> None:
    """What follows from a job's result, by the owner that wrote it or by the next one."""
    ended = recovery.ending(context.job, result).model_copy(update={"fence": context.fence})
    context.edges.ledger.set_metrics(context.job, context.fence, ended.metrics)
    if context.subscription is not None:
        context.edges.bus.cancel(context.subscription)
    # Before the ledger says that it is over, or the queue of an owner that dies here would stay.
    context.edges.bus.delete(names.updates_queue(context.job))
    if not context.spec.keep_updates:
        _clear_late(context)
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
