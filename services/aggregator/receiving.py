"""Receiving an update: it is checked, counted once and folded, or refused and recorded with the reason."""

import time
from collections.abc import Mapping

from services.aggregator import job_state, protocol
from services.aggregator.accepted_updates import COULD_NOT, UNFIT
from services.aggregator.context import JobContext
from shared.errors import LedgerLost, Refused, Stale, Unfit
from shared.events import ModelUpdate
from shared.process.failpoints import failpoint

DIFFERENT = 16  #: digests of the user's code that are told apart in one job: a trainer says what it likes

Inputs = tuple[protocol.Input, ...]


def on_model_update(context: JobContext, state: job_state.State, update: ModelUpdate) -> Inputs:
    """Takes an update in, or records why not; `Stale` if the round does not wait for it."""
    number = state.round
    if state.phase != "open":
        raise Stale(f"{update.client} sent an update for round {update.round}; none is open")
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
            raise Refused(f"{stranger} is not in the round's cohort")  # before anything of it is counted
        if update.error is not None:
            return _on_failure(context, state, failures)
        return _admit(context, state, update)
    except Refused as refused:
        return _refuse(context, state, update, refused)


def _admit(context: JobContext, state: job_state.State, update: ModelUpdate) -> Inputs:
    """Has the ledger decide whether an update counts, and counts it."""
    first, number = clients_of(update)[0], state.round
    admission = context.edges.ledger.admission(context.job, number, first)
    if admission == "ok" and first in context.accumulator.counted:
        raise LedgerLost(f"Redis has lost that {first} was counted in round {number}")
    if admission == "ok":
        admission = _take_in(context, number, update)
        if admission == "ok":
            return (*_compare_code(context, state, update), *_judged(context, state, update, admission))
    return _judged(context, state, update, admission)


def _refuse(context: JobContext, state: job_state.State, update: ModelUpdate, refused: Refused) -> Inputs:
    """Records a refusal; that of an answer is one of all whose training is in it."""
    number, final = state.round, isinstance(refused, Unfit)
    clients = [update.client]
    if final and update.members:
        clients = [member.client for member in update.members if member.client in state.cohort]
    reason = f"{UNFIT}{refused}" if final else str(refused)
    context.edges.ledger.reject_all(context.job, context.fence, number, dict.fromkeys(clients, reason))
    context.log.warning("refused", round=number, client=update.client, clients=len(clients), reason=str(refused))
    context.faults.note("refused", f"{update.client}: {refused}", number)
    rejected = tuple(protocol.Rejected(client, reason, final) for client in clients)
    # Whoever it says has failed has answered as well, though what the others gave is no use.
    return (*_on_failure(context, state, update.failures), *rejected) if final else rejected


def _on_failure(context: JobContext, state: job_state.State, failures: Mapping[str, str]) -> Inputs:
    if not failures:
        return ()
    reasons = {client: f"{COULD_NOT}{error}" for client, error in failures.items()}
    context.edges.ledger.reject_all(context.job, context.fence, state.round, reasons)
    for client, error in failures.items():
        context.log.warning("client failed", round=state.round, client=client, reason=error)
    context.faults.note_all("client-failed", [f"{client}: {error}" for client, error in failures.items()], state.round)
    return tuple(protocol.Failed(client, error) for client, error in failures.items())


def _take_in(context: JobContext, number: int, update: ModelUpdate) -> str:
    """Accepts a checked update and folds it; answers what the ledger said."""
    began = time.monotonic()
    _check_members(context, update)
    pending = context.accumulator.receive(update, number)
    failpoint("aggregator.received")
    answer = context.edges.ledger.accept_all(context.job, context.fence, number, pending.entries)
    if answer == "ok":
        failpoint("aggregator.accepted")
        context.accumulator.count(pending)
        context.log.info(
            "accepted",
            round=number,
            client=update.client,
            clients=len(pending.entries),
            trainer=update.trainer,
            examples=update.examples,
            seconds=round(time.monotonic() - began, 4),
        )
    return answer


def _compare_code(context: JobContext, state: job_state.State, update: ModelUpdate) -> Inputs:
    """Notes once which trainer runs other files of the user's than those before it. The update counts all the same.

    The user may have edited the files, and the trainers follow one after the other.
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
    """Clients whose training is in an update."""
    return tuple(member.client for member in update.members) or (update.client,)


def _check_members(context: JobContext, update: ModelUpdate) -> None:
    """`Refused` where a partial fold is not one that the job asks for."""
    clients, most = clients_of(update), context.spec.rounds.clients_per_task
    if len(set(clients)) < len(clients):
        raise Refused("names a client twice")
    if update.members and (most == 1 or len(clients) > most):
        raise Refused(f"is the sum of {len(clients)} clients' updates; rounds.clients_per_task is {most}")
    if update.members and sum(member.examples for member in update.members) != update.examples:
        raise Refused("has other examples than its clients")


def _judged(context: JobContext, state: job_state.State, update: ModelUpdate, admission: str) -> Inputs:
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
    clients, number = clients_of(update), state.round
    found = context.edges.ledger.accepted(context.job, number, clients)
    digests = {entry["blob"]["digest"] for entry in found.values()}
    if update.update is None or len(found) < len(clients) or digests != {update.update.digest}:
        raise Refused("a second update: the first one counts")
    if clients[0] not in context.accumulator.counted:
        # The ledger counted it, and its answer was lost: it is not in the fold yet.
        context.accumulator.count_again(found)
    elif clients[0] in state.accepted:
        context.faults.note("duplicate", f"{update.client} has been counted", number)
        raise Stale(f"{update.client} has been counted in round {number}")
    # If it was counted and the state has not heard, Redis went away before it took the failures in the same update.
    return _judged(context, state, update, "ok")
