"""Opening of a round: reads the roster, records the round, and asks its cohort.

Each function may run twice without harm, under this owner or the next.
"""

from collections.abc import Iterable, Iterator
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
    """Reads the roster, and finds the clients that are away."""
    return protocol.Looked(groups(context.edges.roster.alive()), _away(context, state))


def _away(context: JobContext, state: State) -> frozenset[str]:
    """Returns the clients that the job simulates as away now, if selection is aware of them."""
    simulate = context.spec.simulate
    if simulate is None or simulate.availability is None or not simulate.aware:
        return frozenset()
    now = context.edges.ledger.now()
    since = now - (state.first_opened or now)
    return frozenset(client for client in context.spec.clients if not profiles.is_there(context.spec, client, since))


def announce(context: JobContext, status: Literal["running", "waiting"], detail: str) -> protocol.Announced:
    """Notifies watchers that the job runs, or what it waits for."""
    context.edges.ledger.describe(context.job, context.fence, status, detail)
    context.edges.bus.publish(JobStatus(job=context.job, status=status, detail=detail), required=False)
    context.log.info(status, detail=detail)
    return protocol.Announced(status)


def open_round(context: JobContext, state: State, effect: protocol.Open) -> Iterator[protocol.Input]:
    """Records the round and, if the effect says so, asks its cohort."""
    spec, number, cohort = context.spec, effect.round, effect.cohort
    if not state.announced:
        yield announce(context, "running", f"round {number} of {spec.rounds.count}")
    seconds = spec.rounds.deadline
    deadline = context.edges.ledger.open_round(
        context.job,
        context.fence,
        number,
        effect.attempt,
        cohort,
        seconds,
        effect.in_flight,
        target=job_state.target_of(spec, number, len(cohort)),
    )
    context.accumulator.begin(len(cohort), number)
    failpoint("aggregator.opened")
    if effect.ask:
        fresh = tuple(client for client in cohort if client not in effect.in_flight)
        _ask(context, state, number, effect.attempt, fresh, deadline, full_cohort=cohort)
        failpoint("aggregator.announced")
    context.log.info("opened", round=number, attempt=effect.attempt, cohort=len(cohort))
    yield protocol.Opened(seconds, at=deadline - seconds)


def ask_again(context: JobContext, state: State, effect: protocol.AskAgain) -> None:
    """Asks the clients again that have not answered, each for the round that asked it first."""
    record = record_of(context, effect.round)
    for number in sorted({effect.round, *effect.in_flight.values()}):
        asked = tuple(client for client in effect.cohort if effect.in_flight.get(client, effect.round) == number)
        _ask(context, state, number, effect.attempt, asked, record.deadline, again=True, full_cohort=record.cohort)
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
    full_cohort: tuple[str, ...],
    again: bool = False,
) -> None:
    """Publishes round-start for the clients in `cohort`: one event for each pool or silo and slice of its clients.

    `full_cohort` is the round's cohort, of which `cohort` may be a part. `number` is the round that the clients are
    asked to train for.
    """
    spec, artifacts = context.spec, state.artifacts
    states = artifacts.client_history.states
    base = context.accumulator.bases.get(number)
    is_current = base is not None and context.accumulator.model is not None and base == context.accumulator.model.blob
    for group, members in by_group(spec, cohort).items():
        context.edges.bus.declare_once(topology.rounds(group))
        batch = spec.rounds.clients_per_task
        if again and batch > 1:
            parts: Iterable[tuple[str, ...]] = batches_again(members, full_cohort, batch)
        else:
            parts = slices(members, stateful=bool(states), batch=batch)
        for part in parts:
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
                    cohort_size=len(full_cohort),
                    states=tuple(map(states.get, part)) if states else (),
                    server=artifacts.server if context.accumulator.broadcasts else None,
                    previous=artifacts.previous.digest if is_current and artifacts.previous else None,
                    delta=artifacts.delta if is_current else None,
                )
            )


def batches_again(members: tuple[str, ...], full_cohort: tuple[str, ...], batch: int) -> Iterator[tuple[str, ...]]:
    """Yields the `members` of each batch of the full cohort, without mixing those of two batches.

    If the members were cut into new batches, one could hold clients of two old ones. The batch would be refused
    completely once the update of either old one arrives.
    """
    wanted = set(members)
    for start in range(0, len(full_cohort), batch):
        part = tuple(client for client in full_cohort[start : start + batch] if client in wanted)
        if part:
            yield part


def by_group(spec: JobSpec, cohort: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """Groups a cohort by the pool or silo whose queue receives the work."""
    if spec.pool is not None:
        return {spec.pool: cohort} if cohort else {}
    return {client: (client,) for client in cohort}


def record_of(context: JobContext, number: int) -> RoundRecord:
    """Returns the ledger's record of a round; raises `LedgerLost` if there is none."""
    record = context.edges.ledger.round(context.job, number)
    if record is None:
        raise LedgerLost(f"Redis has lost the record of round {number} of {context.job}")
    return record
