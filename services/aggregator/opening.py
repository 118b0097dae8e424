"""Opening a round: looking who is there, recording the round, and asking its cohort.

Each function may run twice without harm, under this owner or the next.
"""

from collections.abc import Iterator
from typing import Literal

from services.aggregator import job_state, protocol
from services.aggregator.context import JobContext
from services.aggregator.job_state import State
from shared.amqp import topology
from shared.errors import LedgerLost
from shared.events import JobStatus, RoundStart, slices
from shared.job import profiles
from shared.job.job_spec import JobSpec
from shared.process.failpoints import failpoint
from shared.redis.ledger import RoundRecord
from shared.redis.roster import groups


def look(context: JobContext, state: State) -> protocol.Looked:
    """Reads the roster, and who is away."""
    return protocol.Looked(groups(context.edges.roster.alive()), _away(context, state))


def _away(context: JobContext, state: State) -> frozenset[str]:
    """Clients that the job's simulation has away now."""
    simulate = context.spec.simulate
    if simulate is None or simulate.availability is None or not simulate.aware:
        return frozenset()
    now = context.edges.ledger.now()
    since = now - (state.first_opened or now)
    return frozenset(client for client in context.spec.clients if not profiles.is_there(context.spec, client, since))


def say(context: JobContext, status: Literal["running", "waiting"], detail: str) -> protocol.Announced:
    """Tells watchers what the job does or waits for."""
    context.edges.ledger.describe(context.job, context.fence, status, detail)
    context.edges.bus.publish(JobStatus(job=context.job, status=status, detail=detail), required=False)
    context.log.info(status, detail=detail)
    return protocol.Announced(status)


def open_round(context: JobContext, state: State, effect: protocol.Open) -> Iterator[protocol.Input]:
    """Records the round and, if the effect says so, asks its cohort."""
    spec, number, cohort = context.spec, effect.round, effect.cohort
    if not state.announced:
        yield say(context, "running", f"round {number} of {spec.rounds.count}")
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
    context.accumulator.begin(len(cohort), number)
    failpoint("aggregator.opened")
    if effect.ask:
        fresh = tuple(client for client in cohort if client not in effect.carried)
        _ask(context, state, number, effect.attempt, fresh, deadline, whole=cohort)
        failpoint("aggregator.announced")
    context.log.info("opened", round=number, attempt=effect.attempt, cohort=len(cohort))
    yield protocol.Opened(seconds, at=deadline - seconds)


def ask_again(context: JobContext, state: State, effect: protocol.AskAgain) -> None:
    """Asks those who have not answered."""
    record = record_of(context, effect.round)
    for number in sorted({effect.round, *effect.carried.values()}):
        asked = tuple(client for client in effect.cohort if effect.carried.get(client, effect.round) == number)
        _ask(context, state, number, effect.attempt, asked, record.deadline, again=True, whole=record.cohort)
    failpoint("aggregator.announced")
    context.log.info("rang", round=effect.round, attempt=effect.attempt, cohort=len(effect.cohort))
    if not effect.first:
        context.faults.note("rang-again", ", ".join(effect.cohort[:10]), effect.round)


def _ask(
    context: JobContext,
    state: State,
    number: int,
    attempt: int,
    cohort: tuple[str, ...],
    deadline: float,
    *,
    whole: tuple[str, ...],
    again: bool = False,
) -> None:
    """Publishes round-start to those of the whole cohort who are in `cohort`, one for each group and slice of them."""
    spec, left = context.spec, state.artifacts
    states = left.client_history.states
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
                    server=left.server if context.accumulator.broadcasts else None,
                    previous=left.previous.digest if newest and left.previous else None,
                    delta=left.delta if newest else None,
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
    """The ledger's record of a round, or `LedgerLost`."""
    record = context.edges.ledger.round(context.job, number)
    if record is None:
        raise LedgerLost(f"Redis has lost the record of round {number} of {context.job}")
    return record
