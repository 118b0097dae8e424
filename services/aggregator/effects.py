"""What the engine asks for, done on the servers; each may be done twice without harm, by this owner or the next."""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from services.aggregator import client_history as memories
from services.aggregator import job_state, manifests, protocol, recovery, soundness
from services.aggregator.accepted_updates import gave_up, traffic
from services.aggregator.client_history import Memory
from services.aggregator.context import Seat
from shared import names
from shared.aggregation import weights
from shared.amqp import topology
from shared.errors import RecordLost, Unavailable
from shared.events import BlobRef, JobStatus, RoundEnd, RoundStart, slices
from shared.job import profiles
from shared.job.job_spec import JobSpec
from shared.process.failpoints import failpoint
from shared.record import parts
from shared.redis.ledger import RoundRecord
from shared.redis.roster import groups
from shared.s3 import json_records


def look(seat: Seat) -> protocol.Looked:
    """Reads the roster, and who is away."""
    seat.alive = groups(seat.edges.roster.alive())
    return protocol.Looked(seat.alive, _away(seat), seat.memory.history)


def _away(seat: Seat) -> frozenset[str]:
    """Clients that the job's simulation has away now."""
    simulate = seat.spec.simulate
    if simulate is None or simulate.availability is None or not simulate.aware:
        return frozenset()
    now = seat.edges.ledger.now()
    since = now - (seat.first_opened or now)
    return frozenset(client for client in seat.spec.clients if not profiles.is_there(seat.spec, client, since))


def say(seat: Seat, status: Literal["running", "waiting"], detail: str) -> None:
    """Tells whoever watches what the job does or waits for."""
    seat.announced = status == "running"
    seat.edges.ledger.describe(seat.job, seat.fence, status, detail)
    seat.edges.bus.publish(JobStatus(job=seat.job, status=status, detail=detail), required=False)
    seat.log.info(status, detail=detail)


# --- a round begins -------------------------------------------------------------------------


def open_round(seat: Seat, effect: protocol.Open) -> protocol.Opened:
    """Records the round and, if asked to, rings its cohort."""
    spec, number, cohort = seat.spec, effect.round, effect.cohort
    if not seat.announced:
        say(seat, "running", f"round {number} of {spec.rounds.count}")
    seconds = spec.rounds.deadline
    deadline = seat.edges.ledger.open_round(
        seat.job,
        seat.fence,
        number,
        effect.attempt,
        cohort,
        seconds,
        effect.carried,
        target=job_state.target_of(spec, number, len(cohort)),
    )
    seat.first_opened = seat.first_opened or deadline - seconds
    seat.tally.begin(len(cohort), number)
    failpoint("aggregator.opened")
    if effect.ring:
        fresh = tuple(client for client in cohort if client not in effect.carried)
        _ring(seat, number, effect.attempt, fresh, deadline, whole=cohort)
        failpoint("aggregator.announced")
    seat.log.info("opened", round=number, attempt=effect.attempt, cohort=len(cohort))
    return protocol.Opened(seconds)


def ring_again(seat: Seat, effect: protocol.Ring) -> None:
    """Asks those who have not answered."""
    record = record_of(seat, effect.round)
    for number in sorted({effect.round, *effect.carried.values()}):
        asked = tuple(client for client in effect.cohort if effect.carried.get(client, effect.round) == number)
        _ring(seat, number, effect.attempt, asked, record.deadline, again=True, whole=record.cohort)
    failpoint("aggregator.announced")
    seat.log.info("rang", round=effect.round, attempt=effect.attempt, cohort=len(effect.cohort))
    if not effect.first:
        seat.faults.note("rang-again", ", ".join(effect.cohort[:10]), effect.round)


def _ring(
    seat: Seat,
    number: int,
    attempt: int,
    cohort: tuple[str, ...],
    deadline: float,
    *,
    whole: tuple[str, ...],
    again: bool = False,
) -> None:
    """Publishes round-start to those of the whole cohort who are in `cohort`, one for each group and slice of them."""
    spec, states = seat.spec, seat.memory.states
    base = seat.tally.bases.get(number)
    newest = base is not None and seat.tally.model is not None and base == seat.tally.model.blob
    for group, members in by_group(spec, cohort).items():
        seat.edges.bus.declare_once(topology.rounds(group))
        batch = spec.rounds.clients_per_task
        cut = slices(members, stateful=bool(states), batch=batch)
        for part in batches_again(members, whole, batch) if again and batch > 1 else cut:
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
                    cohort_size=len(whole),
                    states=tuple(map(states.get, part)) if states else (),
                    server=seat.server if seat.tally.broadcasts else None,
                    previous=seat.previous.digest if newest and seat.previous else None,
                    delta=seat.delta if newest else None,
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


def record_of(seat: Seat, number: int) -> RoundRecord:
    """The ledger's record of a round, or `RecordLost`."""
    record = seat.edges.ledger.round(seat.job, number)
    if record is None:
        raise RecordLost(f"Redis has lost the record of round {number} of {seat.job}")
    return record


# --- a round ends ---------------------------------------------------------------------------


def close(seat: Seat, number: int) -> protocol.Committed:
    """The steps from a frozen set to a committed round; done again after a failure, they give the same."""
    ledger, blobs, tally = seat.edges.ledger, seat.edges.blobs, seat.tally
    clock = seat.edges.clock
    began = clock()
    record = ledger.close_round(seat.job, seat.fence, number, len(tally.counted))
    accepted = record.accepted
    failpoint("aggregator.closed")
    model = tally.advance(number, len(record.cohort), accepted)
    base = tally.bases.get(number)
    grid = tally.grid if base is not None else None
    fresh = tuple(client for client in record.cohort if client not in record.carried)
    memory = memories.after(seat.memory, seat.spec, number, fresh, accepted, seat.evaluated)
    failpoint("aggregator.stepped")
    about = {"job": seat.job, "round": number}
    blobs.put(model.key, tally.file, digest=model.digest, metadata=about)
    left = _put_beside(seat, number, memory)
    failpoint("aggregator.stored")
    commit = manifests.manifest(
        job=seat.job,
        number=number,
        fence=seat.fence,
        record=record,
        base=base,
        model=model,
        plan=tally.plan,
        grid=grid,
        left=left,
        accepted=accepted,
        traffic=traffic(accepted, tally.plain_size),
        timings={"fold": round(tally.seconds, 6), "step": round(clock() - began, 6)},
        faults=[line for line in ledger.log(seat.job) if line["round"] == number],
        committed=ledger.now(),
    )
    key, written = names.manifest_blob(seat.job, number), _written(seat, number)
    if record.state == "committed" and written is not None:
        commit = written  # counted as it says, though the answer was lost
        came_to = manifests.came_to(commit, parts.pieces(blobs, key, commit))
    else:
        came_to = manifests.came_to(commit, [commit])  # before it is cut: no part is fetched again
        commit = parts.split(blobs, key, commit, manifests.OF_CLIENTS)
        ledger.check_owned(seat.job, seat.fence)  # one that slept through its lease must not write over a manifest
        blobs.put_json(key, commit)
    failpoint("aggregator.recorded")
    ledger.commit_round(seat.job, seat.fence, number, came_to)
    failpoint("aggregator.committed")
    tell_round_end(seat, commit)
    failpoint("aggregator.told")
    # Last, because what comes before may be done again, and then on the same base.
    replaced = [
        names.state_blob(seat.job, client, ref.digest) for client, ref in memories.superseded(seat.memory, memory)
    ]
    outdated = seat.remembered.key.rpartition("-")[0] if seat.remembered else ""
    _move_on(seat, number, model, left, memory)
    seat.turnout.tell(number, record.cohort, accepted, record.rejected)
    seat.measured(commit["metrics"])
    seat.log.info(
        "committed",
        round=number,
        updates=len(accepted),
        rejected=len(record.rejected),
        model=model.digest[:12],
        tail=round(clock() - began, 4),
        seconds=commit["seconds"],
    )
    clear_away(seat, number, replaced, outdated)
    return protocol.Committed(frozenset(accepted) | gave_up(record.rejected))


def _put_beside(seat: Seat, number: int, memory: Memory) -> dict[str, BlobRef | None]:
    """Stores what a round leaves beside its model."""
    blobs, job, about = seat.edges.blobs, seat.job, {"job": seat.job, "round": number}
    left: dict[str, BlobRef | None] = {"server": None, "delta": None, "memory": None}
    for name, file, key_of in (
        ("server", seat.tally.extra.server, names.server_blob),
        ("delta", seat.tally.extra.delta, names.delta_blob),
    ):
        if file is not None:
            digest = weights.digest_of(file)
            left[name] = blobs.put(key_of(job, number, digest), file, digest=digest, metadata=about)
    if memories.is_kept(seat.spec):
        document = memory.document()
        head = parts.split(blobs, names.histories(job, number), memories.flat(document), memories.OF_CLIENTS)
        text = json_records.dumps(head if "parts" in head else document, separators=(",", ":")).encode()
        key = names.history_blob(job, number, hashlib.sha256(text).hexdigest())
        left["memory"] = blobs.put(key, text, metadata=about)
    return left


def _move_on(seat: Seat, number: int, model: BlobRef, left: dict[str, BlobRef | None], memory: Memory) -> None:
    """The round is committed: what it left is what the next one begins with."""
    if seat.tally.model is not None:
        seat.previous = seat.tally.bases.get(number)
        seat.tally.model.blob = model
    seat.server, seat.delta = left["server"], left["delta"]
    seat.memory, seat.remembered = memory, left["memory"]
    seat.committed, seat.evaluated = number, {}


def _written(seat: Seat, number: int) -> dict[str, Any] | None:
    """A round's manifest, if this owner has written it.

    `RecordLost` where another one has: Redis went back, and this one seems to own the job again.
    """
    written = recovery.optional(seat.edges.blobs, names.manifest_blob(seat.job, number))
    if written is not None and written.get("fence") != seat.fence:
        raise RecordLost(f"round {number} of {seat.job} is committed in the store, and Redis has lost it")
    return written


def tell_round_end(seat: Seat, manifest: dict[str, Any]) -> None:
    """Publishes the round-end of a committed round."""
    end = RoundEnd.model_validate(
        {
            **{name: manifest[name] for name in ("job", "round", "attempt", "metrics", "model", "seconds")},
            "outcome": "committed",
            "accepted": parts.count(manifest, "updates"),
            "rejected": parts.count(manifest, "rejected"),
            "fence": seat.fence,
            "lag": seat.spec.max_staleness,
        }
    )
    seat.edges.bus.publish(end, required=False)


def clear_away(seat: Seat, number: int, replaced: Sequence[str] = (), outdated: str = "") -> None:
    """Removes what a committed round leaves behind, while the next one runs.

    So it does with the blobs that it `replaced`, and with what begins with the key of an `outdated` history.
    """
    done = number - seat.spec.max_staleness  # later ones may still get updates

    def clear() -> None:
        try:
            if not seat.spec.keep_updates and done >= 0:
                seat.edges.blobs.delete(names.updates_prefix(seat.job, done))
            if not seat.spec.keep_updates:
                seat.edges.blobs.remove(replaced)
            if outdated and not seat.spec.keep_updates:
                seat.edges.blobs.delete(outdated)
            seat.edges.ledger.drop_round(seat.job, number)
        except Unavailable as error:
            seat.log.warning("not cleared away", round=number, reason=str(error))

    seat.clearing = seat.edges.later.submit(clear)


def abandon(seat: Seat, effect: protocol.Abandon) -> None:
    """Ends an attempt at a round without a model; who had delivered stands in the record, with the reason."""
    record = record_of(seat, effect.round)
    seconds = seat.edges.ledger.now() - record.opened
    came_to = manifests.came_to_nothing(effect.outcome, seconds, len(record.accepted), len(record.rejected))
    seat.edges.ledger.fail_round(seat.job, seat.fence, effect.round, effect.reason, came_to)
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
    key = names.abandoned_blob(seat.job, effect.round, effect.attempt)
    seat.edges.blobs.put_json(key, parts.split(seat.edges.blobs, key, about, ("cohort", "accepted", "rejected")))
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


# --- a job ends -----------------------------------------------------------------------------


def pause(seat: Seat, reason: str) -> None:
    """Lays the job down: nobody owns it until an operator resumes it."""
    seat.settle_clearing()
    if seat.edges.ledger.release(seat.job, seat.fence, "paused", reason) != "paused":
        return  # resumed in this moment: it is claimed again
    seat.edges.bus.publish(JobStatus(job=seat.job, status="paused", detail=reason), required=False)
    seat.log.info("paused", reason=reason, committed=seat.committed)


def end(seat: Seat, outcome: protocol.Outcome, reason: str) -> None:
    """Writes the result, then says so; a job whose last figures are no numbers does not just finish."""
    ledger, blobs, tally = seat.edges.ledger, seat.edges.blobs, seat.tally
    if outcome == "finished":
        outcome, said = soundness.ending(seat.unsound, seat.metrics)
        stop = seat.spec.evaluate.stop
        unmeasured = f"evaluate.stop: nobody measured {stop.metric}" if stop and not seat.progress else ""
        reason = "; ".join(part for part in (reason, said, unmeasured) if part)
    seat.settle_clearing()
    written = _written(seat, seat.committed + 1)
    ledger.check_owned(seat.job, seat.fence)
    if written is None:
        _abandon_rest(seat, reason)
    model = None
    if tally.model is not None:
        final = tally.model.blob.model_copy(update={"key": names.final_model_blob(seat.job)})
        model = blobs.put(final.key, tally.file, digest=final.digest, metadata={"job": seat.job})
    recovery.recall(seat.edges.blobs, seat.job, seat.committed, seat.turnout)
    now = ledger.now()
    result = {
        "job": seat.job,
        "outcome": outcome,
        "reason": reason,
        "rounds": max(0, seat.committed),
        "metrics": seat.metrics,
        "model": model.model_dump() if model else None,
        "missing": seat.turnout.missing().model_dump(mode="json"),
        "seconds": round(now - seat.first_opened, 3) if seat.first_opened else 0.0,
        "started": seat.first_opened,
        "ended": now,
    }
    ledger.check_owned(seat.job, seat.fence)
    blobs.put_json(names.result_blob(seat.job), result)
    failpoint("aggregator.result")
    conclude(seat, result)


def _abandon_rest(seat: Seat, reason: str) -> None:
    """Ends the round that an error has ended with its job: everybody is told, and it is counted."""
    record = seat.edges.ledger.round(seat.job, seat.committed + 1)
    if record is not None and record.state in ("open", "closed"):
        abandon(seat, protocol.Abandon(seat.committed + 1, record.attempt, "failed", reason))


def _clear_late(seat: Seat) -> None:
    """Removes what came too late to be counted; from now on a trainer that nobody hears does so itself."""
    blobs = seat.edges.blobs
    blobs.delete(names.rounds_prefix(seat.job), holding="/updates/")
    if seat.spec.is_stateful and seat.memory.states:
        current = {names.state_blob(seat.job, client, ref.digest) for client, ref in seat.memory.states.items()}
        blobs.remove([key for key in blobs.list(names.states_prefix(seat.job)) if key not in current])


def conclude(seat: Seat, result: dict[str, Any]) -> None:
    """What follows from a job's result, by the owner that wrote it or by the next one."""
    ended = recovery.ending(seat.job, result).model_copy(update={"fence": seat.fence})
    seat.edges.ledger.set_metrics(seat.job, seat.fence, ended.metrics)
    if seat.subscription is not None:
        seat.edges.bus.cancel(seat.subscription)
    # Before the ledger says that it is over, or the queue of an owner that dies here would stay.
    seat.edges.bus.delete(names.updates_queue(seat.job))
    if not seat.spec.keep_updates:
        _clear_late(seat)
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
