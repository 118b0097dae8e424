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

Pure: no clock, no server. `services.aggregator.coordinator` tells it what happened and does the effects it asks for.
`learn` takes in facts, in any phase; `step` moves the job from phase to phase.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from services.aggregator.evaluation import Evaluation, Evaluations
from services.aggregator.grown import Grown
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

ASKS = 10  #: times that an attempt's unanswered clients are asked again; then its deadline ends it


@dataclass(frozen=True)
class State:
    """State of a job; `round` is the one being opened, open or closing."""

    spec: JobSpec
    phase: Phase = "looking"
    round: int = 0
    attempt: int = 1
    cohort: Listed = Listed()  # noqa: RUF009 - it is immutable
    accepted: Grown = field(default_factory=Grown)
    failed: Grown = field(default_factory=Grown)  # whose answer is that there is none: they said so, or it was refused
    refused: Grown = field(default_factory=Grown)  # in whose name something was refused
    why: str = ""  # what was the first that went wrong
    deadline: float | None = None
    waited: float = 0.0  # seconds for trainers, under earlier owners
    lacking: str = ""  # what it waits for
    asks: int = 0  # since the attempt was opened
    unasked: bool = False  # opened, and reviewed before anybody was asked
    recovering: bool = True  # the first round of an owner: the store may hold updates to it already
    pausing: str | None = None  # why no further round is opened
    #: Clients that are at work since an earlier round, and which; empty where rounds are synchronous.
    in_flight: Mapping[str, int] = field(default_factory=dict)

    # Facts that effects and messages bring, whatever the phase; see `learn`.
    artifacts: Artifacts = field(default_factory=Artifacts)  # left by the last committed round
    evaluations: Evaluations = field(default_factory=Evaluations)
    metrics: Mapping[str, float] = field(default_factory=dict)  # the latest figures
    first_opened: float = 0.0  # when the job's first round was opened: seconds since the epoch, by Redis's clock
    announced: bool = False  # watchers were told that the job runs
    alive: Mapping[str, int] = field(default_factory=dict)  # slots of each group, when last looked
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
        """Clients of the cohort whose answer is yet to come."""
        return tuple(client for client in self.cohort if client not in self.accepted and client not in self.failed)

    def asked(self, client: str) -> int:
        """The round in which a client of the cohort was asked for what it is to deliver now."""
        return self.in_flight.get(client, self.round)


def target_of(spec: JobSpec, number: int, cohort: int) -> int:
    """Number of updates that close a round of so many clients."""
    return 1 if number == 0 else min(spec.target, cohort)


Step = tuple[State, tuple[Effect, ...]]


# --- where an owner begins ------------------------------------------------------------------


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
    """A job whose last committed round is `committed`, -1 for none; `done`: why it needs no further one."""
    state = State(spec, round=committed, waited=waited, in_flight=in_flight or {})
    if done:
        return _ended(state, End("finished", done))
    if committed < 0 or evaluated or not is_evaluated(spec, committed):
        return _next(state, committed)
    return _evaluating(state, committed, now)


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
    """A job whose round `number` is open under an owner that is gone."""
    state = State(
        spec,
        "open",
        number,
        attempt,
        Listed(cohort),
        Grown(accepted),
        Grown(failed),
        Grown(refused),
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
    """A job whose round `number` was closed and not committed."""
    state = State(spec, "closing", number, attempt, Listed(cohort), Grown(accepted), in_flight=in_flight or {})
    return state, (Close(number),)


def abandoned(spec: JobSpec, number: int, attempt: int, reason: str) -> Step:
    """A job whose round `number` failed in its `attempt`, and nothing was done about it."""
    return _again(State(spec, round=number, attempt=attempt), reason)


# --- facts ------------------------------------------------------------------------------------


def learn(state: State, received: Input) -> State:  # noqa: PLR0911 - one line per case
    """The state with the facts that an input brings. They hold in every phase, and move the job to no other."""
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
            known = state.evaluations.asked(evaluation)
            untested = known.untested | {group} if group else known.untested
            return replace(state, evaluations=replace(known, untested=untested))
        case Evaluated():
            return _learn_evaluated(state, received)
    return state


def _learn_evaluated(state: State, found: Evaluated) -> State:
    before = state.evaluations
    pending = {number: one for number, one in before.pending.items() if number != found.round}
    progress, tester = {**before.progress, **found.progress}, found.tester or before.tester
    evaluations = replace(before, pending=pending, progress=progress, tester=tester)
    if found.unsound is None:
        return replace(state, evaluations=evaluations)
    clients = {**before.clients, **found.clients}
    evaluations = replace(evaluations, latest=found.round, unsound=found.unsound, clients=clients)
    return replace(state, metrics=found.metrics, evaluations=evaluations)


def merge_metrics(known: Mapping[str, float], latest: Mapping[str, float]) -> dict[str, float]:
    """The latest figures first, then earlier ones under other names; no more than the end of a job can tell."""
    return fitting({**latest, **{name: value for name, value in known.items() if name not in latest}})


# --- the engine -----------------------------------------------------------------------------


def step(state: State, received: Input, now: float) -> Step:  # noqa: C901, PLR0911, PLR0912 - one line per case
    """Moves a job on by one input; an input that does not fit the phase changes nothing."""
    match received, state.phase:
        case _, "ended":
            return state, ()
        case Stopped(reason), _:
            return _stopped(state, reason)
        case Paused(reason), "looking" | "waiting":
            return _paused(state, reason)
        case Paused(reason), "open" | "closing" | "evaluating":
            return replace(state, pausing=reason), ()
        case Resumed(), _:
            return replace(state, pausing=None), ()
        case Looked(), "looking":
            return _looked(state, received, now)
        case Joined() | Interrupted(), "waiting":
            return replace(state, phase="looking"), (Look(),)
        case Opened(seconds), "open":
            opened = replace(state, deadline=now + seconds, recovering=False, unasked=state.recovering)
            return opened, (Review(state.round),) if state.recovering else ()
        case Reviewed(seconds), "open":
            return _reviewed(replace(state, deadline=now + seconds), now)
        case Interrupted(), "open":
            return state, (Review(state.round),)
        case Interrupted(), "evaluating":
            return state, (Evaluate(state.round),)
        case Accepted(client), "open":
            answered = replace(state, accepted=state.accepted.plus(client), failed=state.failed.without(client))
            return _judged(answered, now)
        case Failed(client, why), "open" if client in state.cohort and client not in state.accepted:
            return _judged(replace(state, failed=state.failed.plus(client), why=_told(state, client, why)), now)
        case Rejected(client, why, final), "open" if client in state.cohort and client not in state.accepted:
            failed = state.failed.plus(client) if final else state.failed
            told = _told(state, client, why)
            return _judged(replace(state, failed=failed, refused=state.refused.plus(client), why=told), now)
        case Committed(answered), "closing":
            return _committed(state, now, answered)
        case Untested(number), _:
            return state, (AskAnother(number),)
        case Evaluated(number, done, lacking), "evaluating" if number == state.round:
            return _evaluated(state, done, lacking)
        case Ticked(), "open":
            return _judged(state, now)
        case Ticked(), "waiting" if state.deadline is not None and now >= state.deadline:
            reason = f"waited {state.spec.rounds.wait:g} s (rounds.wait) for trainers: {state.lacking}"
            return _ended(state, End("failed", reason))
        case Ticked(), "evaluating" if state.deadline is not None and now >= state.deadline:
            return _evaluated(state, "", "the last model was not evaluated in time")
    return state, ()


def _looked(state: State, found: Looked, now: float) -> Step:
    spec, alive = state.spec, found.alive
    there = population(spec, alive)
    in_flight = {client: number for client, number in state.in_flight.items() if client in there}
    fresh = select(
        spec,
        alive,
        state.round,
        state.attempt,
        state.artifacts.client_history.history,
        away=found.away,
        in_flight=frozenset(in_flight),
    )
    if not enough(spec, alive, state.round, away=found.away, in_flight=frozenset(in_flight)):
        detail = lacking(spec, alive, found.away)
        until = now + spec.rounds.wait - state.waited if state.deadline is None else state.deadline
        return replace(state, phase="waiting", deadline=until, lacking=detail), (Wait(detail),)
    cohort = Listed(spec.in_order((*fresh, *in_flight)) if in_flight else fresh)
    opened = replace(
        state,
        phase="open",
        cohort=cohort,
        accepted=Grown(),
        failed=Grown(),
        refused=Grown(),
        why="",
        deadline=None,
        waited=0.0,
        asks=0,
        in_flight=in_flight,
    )
    return opened, (Open(state.round, state.attempt, cohort, ask=not state.recovering, carried=in_flight),)


def _reviewed(state: State, now: float) -> Step:
    judged, effects = _judged(state, now)
    unanswered = judged.unanswered
    if judged.phase != "open" or not unanswered or judged.asks >= ASKS:
        return judged, effects
    carried = {client: state.in_flight[client] for client in unanswered if client in state.in_flight}
    ask = AskAgain(state.round, state.attempt, unanswered, first=state.unasked, carried=carried)
    return replace(judged, asks=judged.asks + 1, unasked=False), (ask,)


def _judged(state: State, now: float) -> Step:
    """Closes the round once it has its target, or at its deadline, or when nobody is left to answer."""
    got = len(state.accepted)
    overdue = state.deadline is not None and now >= state.deadline
    nobody_left = got + len(state.failed) >= len(state.cohort)
    if got < state.target and not overdue and not nobody_left:
        return state, ()
    if got >= state.minimum:
        return replace(state, phase="closing", deadline=None), (Close(state.round),)
    refused = state.refused - state.accepted
    counts = (
        f"round {state.round} has {got} of the {state.minimum} updates it needs"
        f" {'at its deadline' if overdue else 'and nobody is left to answer'}"
        f" (asked {len(state.cohort)}, failed {len(state.failed - refused)}"
        f"{f', refused {len(refused)}' if refused else ''})"
        f"{'; ' if state.why else ''}{state.why}"
    )
    following, effects = _again(state, counts)
    reason = f"{counts}; trying again" if following.phase == "looking" else counts
    return following, (Abandon(state.round, state.attempt, "failed", reason), *effects)


def _told(state: State, client: str, why: str) -> str:
    """The first reason of the round: the one that is known, or else this client's."""
    return state.why or (f"{client}: {why}" if why else "")


def _again(state: State, reason: str) -> Step:
    """Another attempt at a round that failed, where the job file grants one, or another silo may begin the job."""
    granted = state.spec.rounds.attempts if state.spec.rounds.below_minimum == "retry" else 1
    if state.round == 0:
        granted = max(granted, len(state.spec.silos or ()))
    if state.attempt >= granted:
        return _ended(state, End("failed", reason))
    if state.pausing is not None:
        return _paused(state, state.pausing)
    # Whoever was at work since an earlier round was told that it is over with this attempt.
    return replace(state, phase="looking", attempt=state.attempt + 1, deadline=None, in_flight={}), (Look(),)


def _committed(state: State, now: float, answered: frozenset[str] | None) -> Step:
    spec, number = state.spec, state.round
    unanswered = state.unanswered if answered is None else [one for one in state.cohort if one not in answered]
    state = replace(state, in_flight=still_in_flight(spec, number, unanswered, state.in_flight))
    if is_evaluated(spec, number):
        return _evaluating(state, number, now)
    return _next(state, number)


def still_in_flight(
    spec: JobSpec, committed: int, unanswered: Iterable[str], carried: Mapping[str, int]
) -> dict[str, int]:
    """Who goes on training when a round is committed, and since which: whose update will not be too stale then."""
    asked = {client: carried.get(client, committed) for client in unanswered}
    return {client: number for client, number in asked.items() if committed + 1 - number <= spec.max_staleness}


def _evaluating(state: State, number: int, now: float) -> Step:
    """Asks how good a round's model is; the next round waits for the answer only where that may end the job."""
    spec, ask = state.spec, Evaluate(number)
    if number >= spec.rounds.count or spec.evaluate.stop is not None:
        return replace(state, phase="evaluating", round=number, deadline=now + spec.evaluate.deadline), (ask,)
    following, effects = _next(state, number)
    # The next round first: its trainers should not wait behind an evaluation.
    return following, (ask, *effects) if following.phase == "ended" else (*effects, ask)


def _evaluated(state: State, done: str, why_not: str = "") -> Step:
    if done or state.round >= state.spec.rounds.count:
        return _ended(state, End("finished", done or why_not))
    return _next(state, state.round)


def _next(state: State, committed: int) -> Step:
    if committed >= state.spec.rounds.count:
        return _ended(replace(state, round=committed), End("finished"))
    if state.pausing is not None:
        return _paused(replace(state, round=committed + 1), state.pausing)
    following = replace(state, phase="looking", round=committed + 1, attempt=1, cohort=Listed(), deadline=None)
    return following, (Look(),)


def is_evaluated(spec: JobSpec, number: int) -> bool:
    """Whether a job wants to know how good the model of this round is."""
    every = spec.evaluate.every
    return every > 0 and (number % every == 0 or number >= spec.rounds.count)


def _paused(state: State, reason: str) -> Step:
    return replace(state, phase="ended", deadline=None), (Pause(reason),)


def _stopped(state: State, reason: str) -> Step:
    ended, effects = _ended(state, End("stopped", reason))
    if state.phase == "open":
        return ended, (Abandon(state.round, state.attempt, "stopped", reason), *effects)
    return ended, effects


def _ended(state: State, end: End) -> Step:
    return replace(state, phase="ended", deadline=None), (end,)
