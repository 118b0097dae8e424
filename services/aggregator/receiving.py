"""Receipt of an update: it is checked, counted once and folded, or refused and recorded with the reason."""

import time
from collections.abc import Mapping

from services.aggregator import job_state, protocol
from services.aggregator.accepted_updates import COULD_NOT, UNFIT
from services.aggregator.context import JobContext
from shared import names
from shared.errors import LedgerLost, Refused, Stale, Unfit
from shared.events import ModelUpdate
from shared.process.failpoints import failpoint
from shared.record.rounds import AcceptedUpdate

DIFFERENT = 16  #: most digests of user code kept for one job; a bound, since trainers may report any number of them

Inputs = tuple[protocol.Input, ...]


def on_model_update(context: JobContext, state: job_state.State, update: ModelUpdate) -> Inputs:
    """Counts an update or records why it is refused; raises `Stale` if the round does not wait for it."""
    number = state.round
    if state.phase != "open":
        raise Stale(f"{update.client} sent an update for round {update.round}; none is open")
    # An earlier round's update may count in this one, but only if its client is in flight since that round.
    if (
        update.round != number
        and update.round in context.accumulator.bases
        and state.asked(update.client) != update.round
    ):
        raise Stale(f"{update.client} sent an update for round {update.round}; nobody waits for it any more")
    try:
        if state.asked(update.client) != update.round:
            raise Refused(f"sent an update for round {update.round} while round {number} is open")
        if update.tries > 1:
            context.faults.note("tried-again", f"{update.client} answered in try {update.tries}", number)
        failures = update.failures or ({update.client: update.error} if update.error is not None else {})
        if stranger := next((client for client in failures if client not in state.cohort), None):
            raise Refused(f"{stranger} is not in the round's cohort")  # checked before any part of the update counts
        if update.error is not None:
            return _on_failure(context, state, failures)
        return _admit(context, state, update)
    except Refused as refused:
        return _refuse(context, state, update, refused)


def _admit(context: JobContext, state: job_state.State, update: ModelUpdate) -> Inputs:
    """Counts an update if the ledger admits and accepts it."""
    first, number = clients_of(update)[0], state.round
    admission = context.edges.ledger.admission(context.job, number, first)
    if admission == "ok" and first in context.accumulator.counted:
        raise LedgerLost(f"Redis has lost that {first} was counted in round {number}")
    if admission == "ok":
        admission = _take_in(context, number, update)
        if admission == "ok":
            return (*_compare_code(context, state, update), *_inputs_of(context, state, update, admission))
    return _inputs_of(context, state, update, admission)


def _refuse(context: JobContext, state: job_state.State, update: ModelUpdate, refused: Refused) -> Inputs:
    """Records a refusal; if it is final, it holds for every client whose training is in the update."""
    number, final = state.round, isinstance(refused, Unfit)
    clients = [update.client]
    if final and update.members:
        clients = [member.client for member in update.members if member.client in state.cohort]
    reason = f"{UNFIT}{refused}" if final else str(refused)
    context.edges.ledger.reject_all(context.job, context.fence, number, dict.fromkeys(clients, reason))
    context.log.warning("refused", round=number, client=update.client, clients=len(clients), reason=str(refused))
    context.faults.note("refused", f"{update.client}: {refused}", number)
    rejected = tuple(protocol.Rejected(client, reason, final) for client in clients)
    # A client that a batch reports as failed has answered too, though the batch's update is refused.
    return (*_on_failure(context, state, update.failures), *rejected) if final else rejected


def _on_failure(context: JobContext, state: job_state.State, failures: Mapping[str, str]) -> Inputs:
    """Records the clients that cannot deliver; `failures` has the error of each."""
    if not failures:
        return ()
    reasons = {client: f"{COULD_NOT}{error}" for client, error in failures.items()}
    context.edges.ledger.reject_all(context.job, context.fence, state.round, reasons)
    for client, error in failures.items():
        context.log.warning("client failed", round=state.round, client=client, reason=error)
    context.faults.note_all("client-failed", [f"{client}: {error}" for client, error in failures.items()], state.round)
    return tuple(protocol.Failed(client, error) for client, error in failures.items())


def _take_in(context: JobContext, number: int, update: ModelUpdate) -> str:
    """Checks an update, has the ledger accept it, and folds it; returns the ledger's answer."""
    began = time.monotonic()
    _check_members(context, update)
    pending = context.accumulator.receive(update, number)
    failpoint("aggregator.received")
    entries = {client: accepted.entry for client, accepted in pending.updates.items()}
    answer = context.edges.ledger.accept_all(context.job, context.fence, number, entries)
    if answer == "ok":
        failpoint("aggregator.accepted")
        context.accumulator.count(pending)
        context.log.info(
            "accepted",
            round=number,
            client=update.client,
            clients=len(entries),
            trainer=update.trainer,
            examples=update.examples,
            seconds=round(time.monotonic() - began, 4),
        )
    return answer


def _compare_code(context: JobContext, state: job_state.State, update: ModelUpdate) -> Inputs:
    """Reports once if a trainer runs other files of user code than the trainers before it. The update still counts.

    The user may have edited the files, and trainers may restart with them one after the other.
    """
    if update.code is None or update.code in state.code or len(state.code) >= DIFFERENT:
        return ()
    if state.code:
        others = next(iter(state.code.values()))
        detail = f"trainer {update.trainer} runs other files of your code than trainer {others}; give both the same"
        context.log.warning("other code", round=state.round, trainer=update.trainer, reason=detail)
        context.faults.note("other-code", detail, state.round)
    return (protocol.CodeSeen(update.code, update.trainer),)


def clients_of(update: ModelUpdate) -> tuple[str, ...]:
    """Returns the clients whose training is in an update."""
    return tuple(member.client for member in update.members) or (update.client,)


def _check_members(context: JobContext, update: ModelUpdate) -> None:
    """Raises `Refused` if a batch is not one that the job allows."""
    clients, most = clients_of(update), context.spec.rounds.clients_per_task
    if len(set(clients)) < len(clients):
        raise Refused("names a client twice")
    if update.members and (most == 1 or len(clients) > most):
        raise Refused(f"is the sum of {len(clients)} clients' updates; rounds.clients_per_task is {most}")
    if update.members and sum(member.examples for member in update.members) != update.examples:
        raise Refused("has other examples than its clients")


def _inputs_of(context: JobContext, state: job_state.State, update: ModelUpdate, admission: str) -> Inputs:
    """Returns the inputs that follow from the ledger's answer on an update; raises `Refused` or `Stale` instead."""
    match admission:
        case "ok":
            accepted = tuple(protocol.Accepted(client) for client in clients_of(update))
            return (*_on_failure(context, state, update.failures), *accepted)
        case "duplicate":
            return _on_duplicate(context, state, update)
        case "late":
            raise Refused(f"came after the deadline of round {state.round}")
        case _:
            raise Refused("is not in the round's cohort")


def _on_duplicate(context: JobContext, state: job_state.State, update: ModelUpdate) -> Inputs:
    """Handles an update of clients that the ledger has counted: the same update again, or a second one."""
    clients, number = clients_of(update), state.round
    entries = context.edges.ledger.accepted(context.job, number, clients)
    found = AcceptedUpdate.of_ledger(names.accepted_key(context.job, number), entries)
    digests = {accepted.blob.digest for accepted in found.values()}
    if update.update is None or len(found) < len(clients) or digests != {update.update.digest}:
        raise Refused("a second update: the first one counts")
    if clients[0] not in context.accumulator.counted:
        # The ledger counted the update and its reply was lost, so the update is not in the fold yet.
        context.accumulator.count_again(list(found.values()))
    elif clients[0] in state.accepted:
        context.faults.note("duplicate", f"{update.client} has been counted", number)
        raise Stale(f"{update.client} has been counted in round {number}")
    # An update in the fold that the state lacks: Redis failed before the update's own failures were recorded.
    return _inputs_of(context, state, update, "ok")
