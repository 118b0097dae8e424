"""The life of a job as a value: `step(state, happening, now) -> state, effects`.

Pure: no clock, no server. The shell (`services.aggregator.runner`) tells it what happened and does what it answers.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from services.aggregator.selection import lacking, select
from shared.jobs import JobSpec

Phase = Literal["looking", "waiting", "open", "closing", "evaluating", "ended"]
Outcome = Literal["finished", "stopped", "failed"]


@dataclass(frozen=True)
class State:
    """Where a job stands; `round` is the one being opened, open or closing."""

    spec: JobSpec
    phase: Phase = "looking"
    round: int = 0
    attempt: int = 1
    cohort: tuple[str, ...] = ()
    accepted: frozenset[str] = frozenset()
    failed: frozenset[str] = frozenset()  # said that they cannot deliver
    deadline: float | None = None

    @property
    def target(self) -> int:
        """How many updates close the round; fewer where fewer silos were alive to be asked."""
        return 1 if self.round == 0 else min(self.spec.target, len(self.cohort))

    @property
    def minimum(self) -> int:
        return 1 if self.round == 0 else self.spec.minimum


# --- what happens ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Looked:
    """The roster was read: slots alive in each pool and silo."""

    alive: Mapping[str, int]


@dataclass(frozen=True)
class Opened:
    """The round was recorded and announced."""


@dataclass(frozen=True)
class Accepted:
    """A client's update was counted and folded."""

    client: str


@dataclass(frozen=True)
class Failed:
    """A client said that it cannot deliver."""

    client: str


@dataclass(frozen=True)
class Committed:
    """The round's model and manifest are in the store."""


@dataclass(frozen=True)
class Evaluated:
    """The held-out evaluation of a round's model is known, or known to be impossible."""

    round: int


@dataclass(frozen=True)
class Joined:
    """A trainer has joined the roster."""


@dataclass(frozen=True)
class Ticked:
    """Time has passed."""


@dataclass(frozen=True)
class Stopped:
    """An operator ended the job."""

    reason: str


Happening = Looked | Opened | Accepted | Failed | Committed | Evaluated | Joined | Ticked | Stopped

# --- what to do -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Look:
    """Read the roster."""


@dataclass(frozen=True)
class Wait:
    """Say what the job waits for."""

    detail: str


@dataclass(frozen=True)
class Open:
    """Record the round and ring its cohort."""

    round: int
    attempt: int
    cohort: tuple[str, ...]


@dataclass(frozen=True)
class Close:
    """Freeze the accepted updates, make the model of them, commit it."""

    round: int


@dataclass(frozen=True)
class Abandon:
    """End the round, or this attempt at it, without a model."""

    round: int
    attempt: int
    outcome: Literal["failed", "stopped"]
    reason: str


@dataclass(frozen=True)
class Evaluate:
    """Ask for the held-out evaluation of a round's model."""

    round: int


@dataclass(frozen=True)
class End:
    """End the job."""

    outcome: Outcome
    reason: str = ""


Effect = Look | Wait | Open | Close | Abandon | Evaluate | End
Step = tuple[State, tuple[Effect, ...]]


def begin(spec: JobSpec, committed: int) -> Step:
    """A job whose last committed round is `committed`, -1 where there is none."""
    return _next(State(spec=spec), committed)


def closing(spec: JobSpec, number: int, attempt: int, cohort: tuple[str, ...]) -> Step:
    """A job whose round `number` was closed and not committed."""
    return State(spec, "closing", number, attempt, cohort), (Close(number),)


def step(state: State, happening: Happening, now: float) -> Step:  # noqa: C901, PLR0911 - one line per case
    """What a happening makes of a job; one that does not fit its phase changes nothing."""
    match happening, state.phase:
        case _, "ended":
            return state, ()
        case Stopped(reason), _:
            return _stopped(state, reason)
        case Looked(alive), "looking":
            return _looked(state, alive)
        case Joined(), "waiting":
            return replace(state, phase="looking"), (Look(),)
        case Opened(), "open":
            return replace(state, deadline=now + state.spec.rounds.deadline), ()
        case Accepted(client), "open":
            answered = replace(state, accepted=state.accepted | {client}, failed=state.failed - {client})
            return _judged(answered, now)
        case Failed(client), "open" if client in state.cohort and client not in state.accepted:
            return _judged(replace(state, failed=state.failed | {client}), now)
        case Committed(), "closing":
            return _committed(state, now)
        case Evaluated(number), "evaluating" if number == state.round:
            return _ended(state, End("finished"))
        case Ticked(), "open":
            return _judged(state, now)
        case Ticked(), "evaluating" if state.deadline is not None and now >= state.deadline:
            return _ended(state, End("finished", "the last model was not evaluated in time"))
    return state, ()


def _looked(state: State, alive: Mapping[str, int]) -> Step:
    cohort = select(state.spec, alive, state.round, state.attempt)
    if not cohort:
        return replace(state, phase="waiting", deadline=None), (Wait(lacking(state.spec, alive)),)
    opened = replace(state, phase="open", cohort=cohort, accepted=frozenset(), failed=frozenset(), deadline=None)
    return opened, (Open(state.round, state.attempt, cohort),)


def _judged(state: State, now: float) -> Step:
    """Closes the round once it has its target, or at its deadline, or when nobody is left to answer."""
    got = len(state.accepted)
    overdue = state.deadline is not None and now >= state.deadline
    nobody_left = got + len(state.failed) >= len(state.cohort)
    if got < state.target and not overdue and not nobody_left:
        return state, ()
    if got >= state.minimum:
        return replace(state, phase="closing", deadline=None), (Close(state.round),)
    counts = (
        f"round {state.round} has {got} of the {state.minimum} updates it needs"
        f" {'at its deadline' if overdue else 'and nobody is left to answer'}"
        f" (asked {len(state.cohort)}, failed {len(state.failed)})"
    )
    if state.spec.rounds.below_minimum == "retry" and state.attempt < state.spec.rounds.attempts:
        again = replace(state, phase="looking", attempt=state.attempt + 1, deadline=None)
        return again, (Abandon(state.round, state.attempt, "failed", f"{counts}; trying again"), Look())
    ended, effects = _ended(state, End("failed", counts))
    return ended, (Abandon(state.round, state.attempt, "failed", counts), *effects)


def _committed(state: State, now: float) -> Step:
    spec, number = state.spec, state.round
    last = number >= spec.rounds.count
    wanted = spec.evaluate.every > 0 and (number % spec.evaluate.every == 0 or last)
    ask = (Evaluate(number),) if wanted else ()
    if not last:
        following, effects = _next(state, number)
        # The next round first: its trainers should not wait behind an evaluation.
        return following, (*effects, *ask)
    if wanted:
        return replace(state, phase="evaluating", deadline=now + spec.evaluate.deadline), ask
    return _ended(state, End("finished"))


def _next(state: State, committed: int) -> Step:
    if committed >= state.spec.rounds.count:
        return _ended(replace(state, round=committed), End("finished"))
    following = replace(state, phase="looking", round=committed + 1, attempt=1, cohort=(), deadline=None)
    return following, (Look(),)


def _stopped(state: State, reason: str) -> Step:
    ended, effects = _ended(state, End("stopped", reason))
    if state.phase == "open":
        return ended, (Abandon(state.round, state.attempt, "stopped", reason), *effects)
    return ended, effects


def _ended(state: State, end: End) -> Step:
    return replace(state, phase="ended", deadline=None), (end,)
