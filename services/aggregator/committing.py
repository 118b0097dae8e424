"""Committing a round: from a frozen set of updates to the next model, the same however often it is done.

`commit_round` reads top to bottom as the eight steps of a commit. Between two steps the process may die; the next owner
begins again at the first one and comes to the same bytes. The round counts from the moment its manifest is written.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from services.aggregator import client_history, manifests, protocol
from services.aggregator.accepted_updates import gave_up, traffic
from services.aggregator.client_history import ClientHistory
from services.aggregator.context import JobContext
from services.aggregator.job_state import State
from shared import names
from shared.aggregation import weights
from shared.errors import LedgerLost, Unavailable
from shared.events import BlobRef
from shared.process.failpoints import failpoint
from shared.record import archive, parts
from shared.record.rounds import OF_CLIENTS, AcceptedUpdate
from shared.redis.ledger import RoundRecord, Totals
from shared.s3 import json_records


@dataclass(frozen=True)
class Made:
    """Results of a round's server step: the model's place, and the blobs beside it once they are stored."""

    record: RoundRecord
    accepted: dict[str, AcceptedUpdate]
    base: BlobRef | None
    model: BlobRef
    history: ClientHistory
    left: dict[str, BlobRef | None]


def commit_round(context: JobContext, state: State, number: int) -> protocol.Committed:
    """Freezes the accepted updates, makes the next model of them, and commits it."""
    clock = context.edges.clock
    began = clock()

    # 1. Freeze: from here on the ledger accepts no update for this round.
    record = context.edges.ledger.close_round(context.job, context.fence, number, len(context.accumulator.counted))
    accepted = AcceptedUpdate.of_ledger(names.accepted_key(context.job, number), record.accepted)
    failpoint("aggregator.closed")

    # 2. Step: the strategy makes the model of the frozen updates, and the client history takes them in.
    model = context.accumulator.advance(number, len(record.cohort), accepted)
    fresh = tuple(client for client in record.cohort if client not in record.carried)
    before = state.artifacts
    history = client_history.after(
        before.client_history, context.spec, number, fresh, accepted, state.evaluations.clients
    )
    failpoint("aggregator.stepped")

    # 3. Store the model and what lies beside it: a manifest names only blobs that are there.
    about = {"job": context.job, "round": number}
    context.edges.blobs.put(model.key, context.accumulator.file, digest=model.digest, metadata=about)
    left = _store_beside(context, number, history)
    made = Made(record, accepted, context.accumulator.bases.get(number), model, history, left)
    failpoint("aggregator.stored")

    # 4. Record: the manifest is the commit.
    written, totals = _write_manifest(context, number, made, step_seconds=clock() - began)
    failpoint("aggregator.recorded")

    # 5. Tell the ledger, which counts the round once.
    context.edges.ledger.commit_round(context.job, context.fence, number, totals)
    failpoint("aggregator.committed")

    # 6. Tell everybody else.
    tell_round_end(context, written)
    failpoint("aggregator.told")

    # 7. Move on. Last, because the steps before may be done again, and then on the same base.
    context.accumulator.committed(model)
    context.turnout.tell(number, record.cohort, accepted, record.rejected)
    context.log.info(
        "committed",
        round=number,
        updates=len(accepted),
        rejected=len(record.rejected),
        model=model.digest[:12],
        tail=round(clock() - began, 4),
        seconds=written.round.seconds,
    )

    # 8. Clear away what the round leaves, while the next one runs.
    replaced = [
        names.state_blob(context.job, client, ref.digest)
        for client, ref in client_history.superseded(before.client_history, history)
    ]
    outdated = before.history_blob.key.rpartition("-")[0] if before.history_blob else ""
    clear_away(context, number, replaced, outdated)
    artifacts = protocol.Artifacts(number, made.base, left["delta"], left["server"], history, left["memory"])
    return protocol.Committed(frozenset(accepted) | gave_up(record.rejected), artifacts, written.round.metrics)


def _store_beside(context: JobContext, number: int, history: ClientHistory) -> dict[str, BlobRef | None]:
    """Stores the blobs that a round leaves beside its model: the strategy's state, the delta, the client history."""
    blobs, job, about = context.edges.blobs, context.job, {"job": context.job, "round": number}
    left: dict[str, BlobRef | None] = {"server": None, "delta": None, "memory": None}
    for name, file, key_of in (
        ("server", context.accumulator.extra.server, names.server_blob),
        ("delta", context.accumulator.extra.delta, names.delta_blob),
    ):
        if file is not None:
            digest = weights.digest_of(file)
            left[name] = blobs.put(key_of(job, number, digest), file, digest=digest, metadata=about)
    if client_history.is_kept(context.spec):
        document = history.document()
        keys = names.histories(job, number)
        head = parts.split(blobs, keys, client_history.flat(document), client_history.OF_CLIENTS)
        text = json_records.dumps(head if "parts" in head else document, separators=(",", ":")).encode()
        key = names.history_blob(job, number, hashlib.sha256(text).hexdigest())
        left["memory"] = blobs.put(key, text, metadata=about)
    return left


def _write_manifest(
    context: JobContext, number: int, made: Made, step_seconds: float
) -> tuple[archive.CommittedRound, Totals]:
    """Writes the round's manifest, unless this owner has already done so; returns it, and the totals it adds."""
    ledger, blobs, accumulator, record = (
        context.edges.ledger,
        context.edges.blobs,
        context.accumulator,
        made.record,
    )
    manifest = manifests.manifest(
        job=context.job,
        number=number,
        fence=context.fence,
        record=record,
        base=made.base,
        model=made.model,
        plan=accumulator.plan,
        grid=accumulator.grid if made.base is not None else None,
        left=made.left,
        accepted=made.accepted,
        traffic=traffic(made.accepted.values(), accumulator.plain_size),
        timings={"fold": round(accumulator.seconds, 6), "step": round(step_seconds, 6)},
        faults=[line for line in ledger.log(context.job) if line["round"] == number],
        committed=ledger.now(),
    )
    key, written = names.manifest_blob(context.job, number), written_manifest(context, number)
    if record.state == "committed" and written is not None:
        # The ledger committed it, and its answer was lost: the totals are those of the manifest that was counted.
        return written, manifests.came_to(written.round, written.lists())
    head = parts.split(blobs, key, manifest.document(), OF_CLIENTS)
    # An owner that slept through its lease must not write over a later owner's manifest.
    ledger.check_owned(context.job, context.fence)
    blobs.put_json(key, head)
    return archive.CommittedRound(key, manifest, head, blobs), manifests.came_to(manifest, [manifest])


def written_manifest(context: JobContext, number: int) -> archive.CommittedRound | None:
    """A committed round if this owner has written its manifest; None if nobody has.

    `LedgerLost` if another owner has: Redis went back to an earlier state, and this one only seems to own the job.
    """
    written = archive.committed_round(context.edges.blobs, context.job, number)
    if written is not None and written.round.fence != context.fence:
        raise LedgerLost(f"round {number} of {context.job} is committed in the store, and Redis has lost it")
    return written


def tell_round_end(context: JobContext, committed: archive.CommittedRound) -> None:
    """Publishes the round-end of a committed round."""
    end = committed.end.model_copy(update={"fence": context.fence, "lag": context.spec.max_staleness})
    context.edges.bus.publish(end, required=False)


def clear_away(context: JobContext, number: int, replaced: Sequence[str] = (), outdated: str = "") -> None:
    """Removes a committed round's updates and ledger entry on another thread, while the next round runs.

    Also removes the client states that the round `replaced`, and every blob whose key begins with `outdated`, the
    client history before it.
    """
    done = number - context.spec.max_staleness  # updates to later rounds may still come

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

    context.clearing.start(clear)
