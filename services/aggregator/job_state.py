"""The life of a job as a value: `step(state, input, now) -> state, effects`.

    looking ──────▶ open ──────▶ closing ──────▶ evaluating ──────▶ ended
     │  ▲            │              │                │
     ▼  │            │              ▼                ▼
    waiting          └──▶ looking ◀──────────────────┘

    looking     Look reads the roster; enough trainers: Open, and the phase is open. Too few: Wait, waiting.
    waiting     Joined: look again. After rounds.wait: End.
    open        Accepted, Failed, Rejected are counted. At the target, at the deadline, or when each client has
                answered: Close, closing; with too few updates: Abandon, then another attempt or End.
    closing     Committed: Evaluate, and the next round begins at once (looking), or after the last: evaluating.
    evaluating  Evaluated: End, or the next round if evaluate.stop had to be waited for.
    any         Stopped: End. Paused: Pause, once no round is open. Interrupted: Review asks the store again.

Pure: no clock, no server. `services.aggregator.coordinator` passes the inputs in and applies the effects.
`learn` adds an input's facts to the state, in any phase; `step` moves the job from phase to phase.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from services.aggregator.client_set import ClientSet
from services.aggregator.evaluation import Evaluation, Evaluations
from services.aggregator.protocol import (
    Abandon,
    Accepted,
    Announced,
    Artifacts,
    AskAgain,
    AskAnother,
    Close,
    CodeSeen,
    Committed,
    Effect,
    End,
    Evaluate,
    Evaluated,
    EvaluationChanged,
    Failed,
    Input,
    Interrupted,
    Joined,
    Look,
    Looked,
    Open,
    Opened,
    Pause,
    Paused,
    Rejected,
    Resumed,
    Review,
    Reviewed,
    Stopped,
    Ticked,
    Untested,
    Wait,
)
from services.aggregator.selection.cohort import enough, lacking, population, select
from shared.events import fitting
from shared.job.clients import Listed
from shared.job.job_spec import JobSpec

Phase = Literal["looking", "waiting", "open", "closing", "evaluating", "ended"]

ASKS = 10  #: number of times that an attempt asks unanswered clients again; after that, only its deadline ends it


@dataclass(frozen=True)
class State:
    """State of a job; `round` is the round that is being opened, open or closing."""

    spec: JobSpec
    phase: Phase = "looking"
    round: int = 0
    attempt: int = 1
    cohort: Listed = Listed()  # noqa: RUF009 - it is immutable
    accepted: ClientSet = field(default_factory=ClientSet)
    failed: ClientSet = field(default_factory=ClientSet)  # cannot deliver, or their answer was refused for good
    refused: ClientSet = field(default_factory=ClientSet)  # an update in their name was refused
    why: str = ""  # the first failure of the attempt
    deadline: float | None = None  # seconds, by the coordinator's clock
    waited: float = 0.0  # seconds that the job waited for trainers under earlier owners
    lacking: str = ""  # a sentence on the trainers that the job waits for
    asks: int = 0  # number of times that unanswered clients of the attempt were asked again
    unasked: bool = False  # True if the attempt was opened for a review first, and no client was asked by this owner
    recovering: bool = True  # True in an owner's first round: the object store may hold updates for it already
    pausing: str | None = None  # the reason of an operator's request to pause, which takes effect after the round
    #: Client still training for an earlier round → that round; empty if rounds are synchronous.
    in_flight: Mapping[str, int] = field(default_factory=dict)

    # Facts that inputs add in any phase; see `learn`.
    artifacts: Artifacts = field(default_factory=Artifacts)  # left by the last committed round
    evaluations: Evaluations = field(default_factory=Evaluations)
    metrics: Mapping[str, float] = field(default_factory=dict)  # the latest figures
    first_opened: float = 0.0  # start of the job's first round, in seconds since the epoch by Redis's clock
    announced: bool = False  # True once watchers were notified that the job runs
    alive: Mapping[str, int] = field(default_factory=dict)  # slots of each pool and silo in the roster, when last read
    code: Mapping[str, str] = field(default_factory=dict)  # digest of the user's files → the first trainer with them

    @property
    def target(self) -> int:
        """Number of updates that close the round; fewer if fewer silos were alive to be asked."""
        return target_of(self.spec, self.round, len(self.cohort))

    @property
    def minimum(self) -> int:
        return 1 if self.round == 0 else self.spec.minimum

    @property
    def unanswered(self) -> tuple[str, ...]:
        """Clients of the cohort that have not answered yet."""
        return tuple(client for client in self.cohort if client not in self.accepted and client not in self.failed)

    def asked(self, client: str) -> int:
        """The round that asked a client of the cohort for its next update."""
        return self.in_flight.get(client, self.round)


def target_of(spec: JobSpec, number: int, cohort: int) -> int:
    """Number of updates that close a round with a cohort of so many clients."""
    return 1 if number == 0 else min(spec.target, cohort)


Step = tuple[State, tuple[Effect, ...]]


# --- starts of an owner ----------------------------------------------------------------------


def begin(
    spec: JobSpec,
    committed: int,
    *,
    now: float = 0.0,
    waited: float = 0.0,
    evaluated: bool = True,
    done: str = "",
    in_flight: Mapping[str, int] | None = None,
) -> Step:
    """Returns the start after a last committed round, -1 for none; `done` says why no further round is needed."""
    state = State(spec, round=committed, waited=waited, in_flight=in_flight or {})
    if done:
        return _end(state, End("finished", done))
    if committed < 0 or evaluated or not is_evaluated(spec, committed):
        return _next_round(state, committed)
    return _start_evaluation(state, committed, now)


def reopened(
    spec: JobSpec,
    number: int,
    attempt: int,
    cohort: tuple[str, ...],
    accepted: Iterable[str],
    failed: Iterable[str],
    refused: Iterable[str] = (),
    why: str = "",
    in_flight: Mapping[str, int] | None = None,
) -> Step:
    """Returns the start in an open round `number` that an earlier owner left."""
    state = State(
        spec,
        "open",
        number,
        attempt,
        Listed(cohort),
        ClientSet(accepted),
        ClientSet(failed),
        ClientSet(refused),
        why,
        recovering=False,
        in_flight=in_flight or {},
    )
    return state, (Review(number),)


def closing(
    spec: JobSpec,
    number: int,
    attempt: int,
    cohort: tuple[str, ...],
    accepted: Iterable[str] = (),
    in_flight: Mapping[str, int] | None = None,
) -> Step:
    """Returns the start in a round `number` that was closed and not committed."""
    state = State(spec, "closing", number, attempt, Listed(cohort), ClientSet(accepted), in_flight=in_flight or {})
    return state, (Close(number),)


def abandoned(spec: JobSpec, number: int, attempt: int, reason: str) -> Step:
    """Returns the start after a failed `attempt` at round `number` that had no consequences yet."""
    return _retry_or_fail(State(spec, round=number, attempt=attempt), reason)


# --- facts ------------------------------------------------------------------------------------


def learn(state: State, received: Input) -> State:  # noqa: PLR0911 - one line per case
    """Returns the state with the facts of an input; the phase stays the same."""
    match received:
        case Looked(alive):
            return replace(state, alive=alive)
        case Announced(status):
            return replace(state, announced=status == "running")
        case Opened(_, at):
            return replace(state, first_opened=state.first_opened or at)
        case CodeSeen(digest, trainer):
            return replace(state, code={**state.code, digest: trainer})
        case Committed(_, Artifacts() as artifacts, metrics):
            evaluations = replace(state.evaluations, clients={})
            merged = merge_metrics(state.metrics, metrics)
            return replace(state, artifacts=artifacts, metrics=merged, evaluations=evaluations)
        case EvaluationChanged(evaluation, tester):
            return replace(state, evaluations=state.evaluations.asked(evaluation, tester))
        case Untested(_, Evaluation() as evaluation, group):
            evaluations = state.evaluations.asked(evaluation)
            untested = evaluations.untested | {group} if group else evaluations.untested
            return replace(state, evaluations=replace(evaluations, untested=untested))
        case Evaluated():
            return _learn_evaluated(state, received)
    return state


def _learn_evaluated(state: State, received: Evaluated) -> State:
    before = state.evaluations
    pending = {number: evaluation for number, evaluation in before.pending.items() if number != received.round}
    progress, tester = {**before.progress, **received.progress}, received.tester or before.tester
    evaluations = replace(before, pending=pending, progress=progress, tester=tester)
    if received.unsound is None:  # a later model's figures are known already
        return replace(state, evaluations=evaluations)
    clients = {**before.clients, **received.clients}
    evaluations = replace(evaluations, latest=received.round, unsound=received.unsound, clients=clients)
    return replace(state, metrics=received.metrics, evaluations=evaluations)


def merge_metrics(earlier: Mapping[str, float], latest: Mapping[str, float]) -> dict[str, float]:
    """Merges figures, the latest first; keeps as many as the job's final event has room for."""
    return fitting({**latest, **{name: value for name, value in earlier.items() if name not in latest}})


# --- transitions ----------------------------------------------------------------------------


def step(state: State, received: Input, now: float) -> Step:  # noqa: C901, PLR0911, PLR0912 - one line per case
    """Moves a job on by one input; an input that does not fit the phase changes nothing."""
    match received, state.phase:
        case _, "ended":
            return state, ()
        case Stopped(reason), _:
            return _stop(state, reason)
        case Paused(reason), "looking" | "waiting":
            return _pause(state, reason)
        case Paused(reason), "open" | "closing" | "evaluating":
            return replace(state, pausing=reason), ()
        case Resumed(), _:
            return replace(state, pausing=None), ()
        case Looked(), "looking":
            return _on_looked(state, received, now)
        case Joined() | Interrupted(), "waiting":
            return replace(state, phase="looking"), (Look(),)
        case Opened(seconds), "open":  # an owner's first round is reviewed before its cohort is asked
            opened = replace(state, deadline=now + seconds, recovering=False, unasked=state.recovering)
            return opened, (Review(state.round),) if state.recovering else ()
        case Reviewed(seconds), "open":
            return _on_reviewed(replace(state, deadline=now + seconds), now)
        case Interrupted(), "open":
            return state, (Review(state.round),)
        case Interrupted(), "evaluating":
            return state, (Evaluate(state.round),)
        case Accepted(client), "open":
            answered = replace(state, accepted=state.accepted.plus(client), failed=state.failed.without(client))
            return _close_if_done(answered, now)
        case Failed(client, why), "open" if client in state.cohort and client not in state.accepted:
            why = _first_reason(state, client, why)
            return _close_if_done(replace(state, failed=state.failed.plus(client), why=why), now)
        case Rejected(client, why, final), "open" if client in state.cohort and client not in state.accepted:
            failed = state.failed.plus(client) if final else state.failed
            why = _first_reason(state, client, why)
            return _close_if_done(replace(state, failed=failed, refused=state.refused.plus(client), why=why), now)
        case Committed(answered), "closing":
            return _on_committed(state, now, answered)
        case Untested(number), _:
            return state, (AskAnother(number),)
        case Evaluated(number, done, lacking), "evaluating" if number == state.round:
            return _on_evaluated(state, done, lacking)
        case Ticked(), "open":
            return _close_if_done(state, now)
        case Ticked(), "waiting" if state.deadline is not None and now >= state.deadline:
            reason = f"waited {state.spec.rounds.wait:g} s (rounds.wait) for trainers: {state.lacking}"
            return _end(state, End("failed", reason))
        case Ticked(), "evaluating" if state.deadline is not None and now >= state.deadline:
            return _on_evaluated(state, "", "the last model was not evaluated in time")
    return state, ()


def _on_looked(state: State, roster: Looked, now: float) -> Step:
    """Opens the round with a new cohort and the clients in flight, or waits for more trainers."""
    spec, alive = state.spec, roster.alive
    able = population(spec, alive)
    in_flight = {client: number for client, number in state.in_flight.items() if client in able}
    fresh = select(
        spec,
        alive,
        state.round,
        state.attempt,
        state.artifacts.client_history.history,
        away=roster.away,
        in_flight=frozenset(in_flight),
    )
    if not enough(spec, alive, state.round, away=roster.away, in_flight=frozenset(in_flight)):
        detail = lacking(spec, alive, roster.away)
        until = now + spec.rounds.wait - state.waited if state.deadline is None else state.deadline
        return replace(state, phase="waiting", deadline=until, lacking=detail), (Wait(detail),)
    cohort = Listed(spec.in_order((*fresh, *in_flight)) if in_flight else fresh)
    opened = replace(
        state,
        phase="open",
        cohort=cohort,
        accepted=ClientSet(),
        failed=ClientSet(),
        refused=ClientSet(),
        why="",
        deadline=None,
        waited=0.0,
        asks=0,
        in_flight=in_flight,
    )
    return opened, (Open(state.round, state.attempt, cohort, ask=not state.recovering, in_flight=in_flight),)


def _on_reviewed(state: State, now: float) -> Step:
    """Asks the unanswered clients again, unless the review has completed the round."""
    following, effects = _close_if_done(state, now)
    unanswered = following.unanswered
    if following.phase != "open" or not unanswered or following.asks >= ASKS:
        return following, effects
    in_flight = {client: state.in_flight[client] for client in unanswered if client in state.in_flight}
    ask = AskAgain(state.round, state.attempt, unanswered, first=state.unasked, in_flight=in_flight)
    return replace(following, asks=following.asks + 1, unasked=False), (ask,)


def _close_if_done(state: State, now: float) -> Step:
    """Closes the round at its target, at its deadline, or once each client has answered; it fails below its minimum."""
    accepted = len(state.accepted)
    overdue = state.deadline is not None and now >= state.deadline
    all_answered = accepted + len(state.failed) >= len(state.cohort)
    if accepted < state.target and not overdue and not all_answered:
        return state, ()
    if accepted >= state.minimum:
        return replace(state, phase="closing", deadline=None), (Close(state.round),)
    refused = state.refused - state.accepted
    counts = (
        f"round {state.round} has {accepted} of the {state.minimum} updates it needs"
        f" {'at its deadline' if overdue else 'and nobody is left to answer'}"
        f" (asked {len(state.cohort)}, failed {len(state.failed - refused)}"
        f"{f', refused {len(refused)}' if refused else ''})"
        f"{'; ' if state.why else ''}{state.why}"
    )
    following, effects = _retry_or_fail(state, counts)
    reason = f"{counts}; trying again" if following.phase == "looking" else counts
    return following, (Abandon(state.round, state.attempt, "failed", reason), *effects)


def _first_reason(state: State, client: str, why: str) -> str:
    """Returns the reason of the attempt's first failure: the state's, or else this client's."""
    return state.why or (f"{client}: {why}" if why else "")


def _retry_or_fail(state: State, reason: str) -> Step:
    """Looks for another attempt at a failed round, if the job file grants one or another silo may answer round 0."""
    granted = state.spec.rounds.attempts if state.spec.rounds.below_minimum == "retry" else 1
    if state.round == 0:
        granted = max(granted, len(state.spec.silos or ()))
    if state.attempt >= granted:
        return _end(state, End("failed", reason))
    if state.pausing is not None:
        return _pause(state, state.pausing)
    # The round-end event of the failed attempt also stopped the clients in flight.
    return replace(state, phase="looking", attempt=state.attempt + 1, deadline=None, in_flight={}), (Look(),)


def _on_committed(state: State, now: float, answered: frozenset[str] | None) -> Step:
    spec, number = state.spec, state.round
    unanswered = state.unanswered if answered is None else [c for c in state.cohort if c not in answered]
    state = replace(state, in_flight=still_in_flight(spec, number, unanswered, state.in_flight))
    if is_evaluated(spec, number):
        return _start_evaluation(state, number, now)
    return _next_round(state, number)


def still_in_flight(
    spec: JobSpec, committed: int, unanswered: Iterable[str], carried: Mapping[str, int]
) -> dict[str, int]:
    """Returns the clients that keep training after a commit, with the round that asked each.

    A client stays in flight if its update will not be staler than the job allows in the next round. `carried` are the
    clients that were in flight in the committed round already.
    """
    asked = {client: carried.get(client, committed) for client in unanswered}
    return {client: number for client, number in asked.items() if committed + 1 - number <= spec.max_staleness}


def _start_evaluation(state: State, number: int, now: float) -> Step:
    """Has a round's model evaluated; the next round waits for the result only if that may end the job."""
    spec, ask = state.spec, Evaluate(number)
    if number >= spec.rounds.count or spec.evaluate.stop is not None:
        return replace(state, phase="evaluating", round=number, deadline=now + spec.evaluate.deadline), (ask,)
    following, effects = _next_round(state, number)
    # The next round is opened first, so that its training does not queue behind the evaluation.
    return following, (ask, *effects) if following.phase == "ended" else (*effects, ask)


def _on_evaluated(state: State, done: str, why_not: str = "") -> Step:
    if done or state.round >= state.spec.rounds.count:
        return _end(state, End("finished", done or why_not))
    return _next_round(state, state.round)


def _next_round(state: State, committed: int) -> Step:
    if committed >= state.spec.rounds.count:
        return _end(replace(state, round=committed), End("finished"))
    if state.pausing is not None:
        return _pause(replace(state, round=committed + 1), state.pausing)
    following = replace(state, phase="looking", round=committed + 1, attempt=1, cohort=Listed(), deadline=None)
    return following, (Look(),)


def is_evaluated(spec: JobSpec, number: int) -> bool:
    """Returns True if the job file has the model of this round evaluated."""
    every = spec.evaluate.every
    return every > 0 and (number % every == 0 or number >= spec.rounds.count)


def _pause(state: State, reason: str) -> Step:
    return replace(state, phase="ended", deadline=None), (Pause(reason),)


def _stop(state: State, reason: str) -> Step:
    ended, effects = _end(state, End("stopped", reason))
    if state.phase == "open":
        return ended, (Abandon(state.round, state.attempt, "stopped", reason), *effects)
    return ended, effects


def _end(state: State, end: End) -> Step:
    return replace(state, phase="ended", deadline=None), (end,)
