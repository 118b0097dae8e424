"""One job on a thread of its own: hears its mailbox, asks the pure engine, does what it answers."""

import queue
import random
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import structlog

from services.aggregator import closing, recovery, rounds
from services.aggregator.tally import Tally
from shared import names, topology
from shared.blobs import Blobs, NotFound
from shared.bus import Bus, settle
from shared.errors import BadInput, BadMessage, Fenced, RecordLost, Refused, Stale, Unavailable
from shared.events import (
    AnyEvent,
    BlobRef,
    EvaluateModel,
    JobStatus,
    ModelEvaluated,
    ModelUpdate,
    PauseTraining,
    RoundEnd,
    RoundStart,
    StopTraining,
    TrainerJoined,
    TrainingEnd,
    slices,
)
from shared.failpoints import failpoint
from shared.jobs import JobSpec
from shared.ledger import JobRecord, Ledger, RoundRecord, Wanted
from shared.link import Delivery, Subscription
from shared.roster import Roster, busy, groups

Result = TypeVar("Result")

PATIENCE = 120.0  #: seconds an effect is tried again while a server is away, before the job is left to the next owner
SILENCE = 5.0  #: seconds without news from an open round until its queues are looked at
CLAIMS = 20  #: owners that a job may lose without a commit between them, before it is given up
COULD_NOT = "could not train: "  #: begins the reason of a client that said so itself


@dataclass(frozen=True)
class Edges:
    """The servers, a thread for work that nobody waits for, and a clock in seconds."""

    bus: Bus
    blobs: Blobs
    ledger: Ledger
    roster: Roster
    later: Executor
    clock: Callable[[], float] = time.monotonic


class Runner:
    """Owns a job from its claim to training-end, or until it is paused, handed over or fenced."""

    def __init__(self, edges: Edges, job: str, fence: int, leaving: threading.Event | None = None) -> None:
        self.job = job
        self.fence = fence
        self._edges = edges
        self._log = structlog.get_logger().bind(job=job)
        self._mailbox: queue.SimpleQueue[Delivery | None] = queue.SimpleQueue()
        self._news: deque[rounds.Happening] = deque()  # from other threads
        self._subscription: Subscription | None = None
        self._leaving = leaving or threading.Event()
        self._fenced = threading.Event()
        self._happenings: deque[rounds.Happening] = deque()
        self._wanted = Wanted()
        self._unsaid: list[tuple[str, str, int]] = []  # faults that Redis was not there to be told of
        self._alive: dict[str, int] = {}
        self._idle = 0  # looks in a row that found an open round's queues empty and nobody at work
        self._waiting = True  # for a first round, as whoever watches sees it
        self._metrics: dict[str, float] = {}
        self._first_opened = 0.0
        self._committed = -1
        self._clearing: Future[None] | None = None
        self._spec: JobSpec  # these three by `_recover`
        self._state: rounds.State
        self._tally: Tally

    # --- from outside ---------------------------------------------------------------------------

    def leave(self) -> None:
        """Asks the runner to hand the job over to another replica."""
        self._leaving.set()
        self._mailbox.put(None)

    def fence_off(self) -> None:
        """Tells the runner that the job is another's."""
        self._fenced.set()
        self._mailbox.put(None)

    def want(self, wanted: Wanted) -> None:
        """Tells the runner what an operator wants of the job, as often as one likes."""
        before, self._wanted = self._wanted, wanted
        if wanted == before:
            return
        match wanted.status:
            case "stopped":
                self._news.append(rounds.Stopped(wanted.reason))
            case "paused":
                self._news.append(rounds.Paused(wanted.reason))
            case "running":
                self._news.append(rounds.Resumed())
        self._mailbox.put(None)

    @property
    def ended(self) -> bool:
        """Whether there is nothing more to do here: the job has ended, or is laid down."""
        return self._state.phase == "ended"

    @property
    def deadline(self) -> float | None:
        """When time itself is news, by the clock of `Edges`."""
        if self._state.phase != "open":
            return self._state.deadline
        look = self._edges.clock() + SILENCE
        return look if self._state.deadline is None else min(look, self._state.deadline)

    def run(self) -> None:
        """Runs the job until there is nothing more to do here."""
        try:
            self.begin()
            while not self.ended and not self._leaving.is_set():
                self._wait()
            if not self.ended:
                self._edges.ledger.release(self.job, self.fence)
                self._log.info("handed over", round=self._state.round)
        except Fenced as error:
            self._log.warning("fenced", reason=str(error))
            self._note("record-lost" if isinstance(error, RecordLost) else "fenced", str(error))
        except Unavailable as error:
            # Not the job's fault: its lease runs out, and another replica, or this one, takes it as it is.
            self._log.warning("left as it is", reason=str(error))
        except Exception as error:
            self._log.exception("job failed")
            self._fail(error)
        finally:
            if self._subscription is not None:
                self._edges.bus.cancel(self._subscription)

    def begin(self) -> None:
        """Listens, reads the record, and goes on from where it stands."""
        failpoint("aggregator.claimed")
        self._subscription = self._persistently(
            lambda: self._edges.bus.consume(
                topology.updates(self.job), self._mailbox.put, prefetch=32, on_ready=self._on_ready
            )
        )
        effects = self._persistently(self._recover)
        failpoint("aggregator.resumed")
        if self._state.phase == "looking":  # a wish to stop or pause comes before another round
            self._hear_news()
            self._follow()
        self._do(effects)
        self.turn(None)

    def turn(self, delivery: Delivery | None) -> None:
        """Handles one message, or what else may have happened, and does all that follows from it."""
        if self._fenced.is_set():
            raise Fenced(f"job {self.job} belongs to another aggregator now")
        if delivery is not None:
            self._idle = 0
            settle(self._edges.bus, delivery, self._on_event, self._leaving)
        self._hear_news()
        if delivery is None:
            self._happenings.append(rounds.Ticked())
        self._follow()

    # --- the loop -------------------------------------------------------------------------------

    def _wait(self) -> None:
        """Waits for one message, or for the moment when time itself is news."""
        deadline = self.deadline
        timeout = None if deadline is None else max(0.0, deadline - self._edges.clock())
        try:
            delivery = self._mailbox.get(timeout=timeout)
        except queue.Empty:
            delivery = None
            self.look_for_lost_work()
        self.turn(delivery)

    def _hear_news(self) -> None:
        while self._news:
            self._happenings.append(self._news.popleft())

    def _follow(self) -> None:
        while self._happenings:
            self._state, effects = rounds.step(self._state, self._happenings.popleft(), self._edges.clock())
            self._do(effects)

    def _do(self, effects: tuple[rounds.Effect, ...]) -> None:
        for effect in effects:
            self._persistently(lambda effect=effect: self._apply(effect))  # type: ignore[misc]

    def _persistently(self, action: Callable[[], Result]) -> Result:
        """Does `action`, again with back-off while a server is away; each one may be done twice without harm."""
        deadline = self._edges.clock() + PATIENCE
        delay = 0.1
        while True:
            try:
                return action()
            except Unavailable as error:
                if self._edges.clock() >= deadline or self._leaving.is_set():
                    raise
                if self._fenced.is_set():
                    raise Fenced(f"job {self.job} belongs to another aggregator now") from error
                self._log.warning("server away, trying again", reason=str(error))
                self._note("server-away", str(error))
                self._leaving.wait(delay * random.uniform(0.5, 1))  # noqa: S311 - jitter
                delay = min(2 * delay, 5.0)

    def _note(self, fault: str, detail: str) -> None:
        """Counts a fault and writes it into the job's log, now or when Redis is there again."""
        self._unsaid.append((fault, detail, self._state.round if hasattr(self, "_state") else -1))
        try:
            while self._unsaid:
                name, text, number = self._unsaid[0]
                self._edges.ledger.note(name, text, self.job, number)
                del self._unsaid[0]
        except Unavailable:
            del self._unsaid[:-100]

    # --- what is heard --------------------------------------------------------------------------

    def _on_ready(self) -> None:
        """Called on the link's thread whenever consuming begins: after the first time, events may have been lost."""
        if self._subscription is not None:
            self._news.append(rounds.Interrupted())
            self._mailbox.put(None)

    def _on_event(self, event: AnyEvent) -> None:
        match event:
            case ModelUpdate():
                self._on_model_update(event)
            case ModelEvaluated():
                self._on_model_evaluated(event)
            case StopTraining():
                self._edges.ledger.want(self.job, Wanted("stopped", event.reason))  # for whoever owns the job next
                self.want(Wanted("stopped", event.reason))
            case PauseTraining():
                self.want(self._edges.ledger.required(self.job).wanted)  # it may have been resumed since
            case TrainerJoined():
                self._happenings.append(rounds.Joined())
            case _:
                raise BadMessage(f"{event.type} is not for an aggregator")

    def _on_model_update(self, update: ModelUpdate) -> None:
        """Checks, counts once, folds; what is refused is recorded with the reason and changes nothing."""
        number = self._state.round
        if self._state.phase != "open":
            raise Stale(f"{update.client} sent an update for round {update.round}; none is open")
        try:
            if update.round != number:
                raise Refused(f"sent an update for round {update.round} while round {number} is open")
            if update.tries > 1:
                self._note("tried-again", f"{update.client} answered in try {update.tries}")
            if update.error is not None:
                self._on_failure(update)
                return
            standing = self._edges.ledger.standing(self.job, number, update.client)
            if standing == "ok":
                standing = self._take_in(update)
            self._judge(update, standing)
        except Refused as refused:
            self._edges.ledger.reject(self.job, self.fence, number, update.client, str(refused))
            self._log.warning("refused", round=number, client=update.client, reason=str(refused))
            self._note("refused", f"{update.client}: {refused}")

    def _on_failure(self, update: ModelUpdate) -> None:
        if update.client not in self._state.cohort:
            raise Refused("is not in the round's cohort")
        reason = f"{COULD_NOT}{update.error}"
        self._edges.ledger.reject(self.job, self.fence, update.round, update.client, reason)
        self._log.warning("client failed", round=update.round, client=update.client, reason=update.error)
        self._note("client-failed", f"{update.client}: {update.error}")
        self._happenings.append(rounds.Failed(update.client))

    def _take_in(self, update: ModelUpdate) -> str:
        """Accepts a checked update and folds it; answers what the ledger said."""
        began = time.monotonic()
        entry = self._tally.receive(update)
        failpoint("aggregator.received")
        answer = self._edges.ledger.accept(self.job, self.fence, update.round, update.client, entry)
        if answer != "ok":
            return answer
        failpoint("aggregator.accepted")
        self._tally.count(update.client, update.examples)
        self._log.info(
            "accepted",
            round=update.round,
            client=update.client,
            trainer=update.trainer,
            examples=update.examples,
            seconds=round(time.monotonic() - began, 4),
        )
        return answer

    def _judge(self, update: ModelUpdate, standing: str) -> None:
        match standing:
            case "ok":
                self._happenings.append(rounds.Accepted(update.client))
            case "duplicate":
                self._on_duplicate(update)
            case "late":
                raise Refused(f"came after the deadline of round {update.round}")
            case "stranger":
                raise Refused("is not in the round's cohort")

    def _on_duplicate(self, update: ModelUpdate) -> None:
        found = self._edges.ledger.accepted(self.job, update.round, update.client)
        if update.update is None or found.get("blob", {}).get("digest") != update.update.digest:
            raise Refused("a second update: the first one counts")
        if update.client not in self._tally.counted:
            # Accepted in the step before one that failed: counted by the ledger, and not yet in the fold.
            self._tally.count_again(update.client, found)
            self._happenings.append(rounds.Accepted(update.client))
            return
        self._note("duplicate", f"{update.client} has been counted")
        raise Stale(f"{update.client} has been counted in round {update.round}")

    def _on_model_evaluated(self, event: ModelEvaluated) -> None:
        if event.error is not None:
            self._log.warning("not evaluated", round=event.round, reason=event.error)
            self._note("not-evaluated", event.error)
        elif event.examples:
            self._metrics = {**self._metrics, **event.metrics}
            # The ledger first: it knows whether the job is still ours to write about.
            self._edges.ledger.set_metrics(self.job, self.fence, self._metrics)
            record = {"job": self.job, **event.model_dump(include={"round", "model", "examples", "metrics"})}
            self._edges.blobs.put_json(names.evaluation_blob(self.job, event.round), record)
            self._log.info("evaluated", round=event.round, trainer=event.trainer, metrics=event.metrics)
        self._happenings.append(rounds.Evaluated(event.round))

    # --- what is done ---------------------------------------------------------------------------

    def _apply(self, effect: rounds.Effect) -> None:  # noqa: C901 - one line per case
        match effect:
            case rounds.Look():
                self._alive = groups(self._edges.roster.alive())
                self._happenings.append(rounds.Looked(self._alive))
            case rounds.Wait(detail):
                self._say("waiting", detail)
            case rounds.Open():
                self._open(effect)
            case rounds.Review(number):
                self._review(number)
            case rounds.Ring(number, attempt, cohort):
                self._ring_again(number, attempt, cohort)
            case rounds.Close(number):
                self._close(number)
            case rounds.Abandon():
                self._abandon(effect)
            case rounds.Evaluate(number):
                self._evaluate(number)
            case rounds.Pause(reason):
                self._pause(reason)
            case rounds.End(outcome, reason):
                self._end(outcome, reason)

    def _say(self, status: Literal["running", "waiting"], detail: str) -> None:
        self._waiting = status == "waiting"
        self._edges.ledger.describe(self.job, self.fence, status, detail)
        self._edges.bus.publish(JobStatus(job=self.job, status=status, detail=detail), required=False)
        self._log.info(status, detail=detail)

    def _open(self, effect: rounds.Open) -> None:
        spec, number, cohort = self._spec, effect.round, effect.cohort
        if self._waiting:
            self._say("running", f"round {number} of {spec.rounds.count}")
        seconds = spec.rounds.deadline
        deadline = self._edges.ledger.open_round(self.job, self.fence, number, effect.attempt, cohort, seconds)
        self._first_opened = self._first_opened or deadline - seconds
        self._tally.begin(len(cohort))
        self._idle = 0
        failpoint("aggregator.opened")
        if effect.ring:
            self._ring(number, effect.attempt, cohort, deadline)
            failpoint("aggregator.announced")
        self._happenings.append(rounds.Opened(seconds))
        self._log.info("opened", round=number, attempt=effect.attempt, cohort=len(cohort))

    def _ring(
        self, number: int, attempt: int, cohort: tuple[str, ...], deadline: float, *, again: bool = False
    ) -> None:
        """Publishes round-start, one for each group and slice of the cohort."""
        base = self._tally.model.blob if self._tally.model else None
        for group, members in _by_group(self._spec, cohort).items():
            self._edges.bus.declare_once(topology.rounds(group))
            for part in slices(members):
                self._edges.bus.publish(
                    RoundStart(
                        job=self.job,
                        group=group,
                        round=number,
                        attempt=attempt,
                        base=base,
                        cohort=part,
                        spec=self._spec,
                        deadline=deadline,
                        fence=self.fence,
                        again=again,
                    )
                )

    def _ring_again(self, number: int, attempt: int, cohort: tuple[str, ...]) -> None:
        record = self._record_of(number)
        self._ring(number, attempt, cohort, record.deadline, again=True)
        failpoint("aggregator.announced")
        self._log.info("rang", round=number, attempt=attempt, cohort=len(cohort))
        if self._state.rings > 1:
            self._note("rang-again", f"asked {len(cohort)} clients again: {', '.join(cohort[:5])}")

    def _review(self, number: int) -> None:
        """Takes in what the store holds of the open round: an event may be lost, its blob is not."""
        spec = self._spec.rounds
        left = self._edges.ledger.extend(self.job, self.fence, number, spec.deadline, rounds.EXTENDED * spec.deadline)
        for update in recovery.updates(self._edges.blobs, self.job, number, self._state.unanswered):
            try:
                self._on_model_update(update)
            except Stale as stale:
                if isinstance(stale, Fenced):
                    raise
        self._idle = 0
        self._happenings.append(rounds.Reviewed(left))

    def look_for_lost_work(self) -> None:
        """After a silence: clients that nobody trains and that wait in no queue must be asked again.

        A net below the events: a queue may be deleted with what is in it, and nobody is told.
        """
        if self._state.phase != "open":
            return
        try:
            at_work = busy(self._edges.roster.alive())
            silent = [
                group
                for group in _by_group(self._spec, self._state.unanswered)
                if at_work.get(group) == 0 and not self._queued(group)
            ]
        except Unavailable as error:
            self._log.debug("not looked", reason=str(error))
            return
        self._idle = self._idle + 1 if silent else 0
        if self._idle >= 2:  # a task between its queue and a slot is seen in neither
            self._log.warning("work is lost", round=self._state.round, groups=silent[:5])
            self._note("work-lost", f"nobody trains for {', '.join(silent[:5])}, and no task waits there")
            self._news.append(rounds.Interrupted())

    def _queued(self, group: str) -> bool:
        """Whether work waits in a group's queues."""
        depths = (self._edges.bus.depth(name(group)) for name in (names.rounds_queue, names.tasks_queue))
        return any(depth is not None and depth[0] > 0 for depth in depths)

    def _close(self, number: int) -> None:
        """The steps from a frozen set to a committed round; done again after a failure, they give the same."""
        ledger, blobs, tally = self._edges.ledger, self._edges.blobs, self._tally
        began = time.monotonic()
        accepted = ledger.close_round(self.job, self.fence, number, len(tally.counted))
        failpoint("aggregator.closed")
        record = self._record_of(number)
        base, grid = None, None
        if number and tally.model is not None:
            base, grid = tally.model.blob, closing.grid_of(self._spec, len(record.cohort))
        model = tally.advance(number, len(record.cohort), accepted)
        failpoint("aggregator.stepped")
        blobs.put(model.key, tally.file, digest=model.digest, metadata={"job": self.job, "round": number})
        failpoint("aggregator.stored")
        faults = [line for line in ledger.log(self.job) if line["round"] == number]
        committed = ledger.now()
        commit = closing.manifest(
            job=self.job,
            number=number,
            fence=self.fence,
            record=record,
            spec=self._spec,
            base=base,
            model=model,
            grid=grid,
            accepted=accepted,
            faults=faults,
            committed=committed,
        )
        ledger.check_owned(self.job, self.fence)  # one that slept through its lease must not write over a manifest
        blobs.put_json(names.manifest_blob(self.job, number), commit)
        failpoint("aggregator.recorded")
        ledger.commit_round(self.job, self.fence, number)
        failpoint("aggregator.committed")
        self._tell_end(commit)
        failpoint("aggregator.told")
        # Last, because what comes before may be done again, and then on the same base.
        if tally.model is not None:
            tally.model.blob = model
        self._committed = number
        self._metrics = {**self._metrics, **commit["metrics"]}
        self._happenings.append(rounds.Committed())
        self._log.info(
            "committed",
            round=number,
            updates=len(accepted),
            rejected=len(record.rejected),
            model=model.digest[:12],
            tail=round(time.monotonic() - began, 4),
            seconds=commit["seconds"],
        )
        self._clearing = self._edges.later.submit(self._clear_away, number)

    def _tell_end(self, manifest: dict[str, Any]) -> None:
        """Publishes the round-end of a committed round."""
        end = RoundEnd.model_validate(
            {
                **{name: manifest[name] for name in ("job", "round", "attempt", "metrics", "model", "seconds")},
                "outcome": "committed",
                "accepted": len(manifest["updates"]),
                "rejected": len(manifest["rejected"]),
                "fence": self.fence,
            }
        )
        self._edges.bus.publish(end, required=False)

    def _record_of(self, number: int) -> RoundRecord:
        record = self._edges.ledger.round(self.job, number)
        if record is None:
            raise RecordLost(f"Redis has lost the record of round {number} of {self.job}")
        return record

    def _clear_away(self, number: int) -> None:
        """Removes what a committed round leaves behind, while the next one runs."""
        try:
            if not self._spec.keep_updates:
                self._edges.blobs.delete(names.updates_prefix(self.job, number))
            self._edges.ledger.drop_round(self.job, number)
        except Unavailable as error:
            self._log.warning("not cleared away", round=number, reason=str(error))

    def _abandon(self, effect: rounds.Abandon) -> None:
        record = self._record_of(effect.round)
        self._edges.ledger.fail_round(self.job, self.fence, effect.round, effect.reason)
        about = {
            "job": self.job,
            "round": effect.round,
            "attempt": effect.attempt,
            "outcome": effect.outcome,
            "reason": effect.reason,
            "cohort": list(record.cohort),
            "accepted": sorted(record.accepted),
            "rejected": record.rejected,
        }
        self._edges.blobs.put_json(names.abandoned_blob(self.job, effect.round, effect.attempt), about)
        self._edges.bus.publish(
            RoundEnd(
                job=self.job,
                round=effect.round,
                attempt=effect.attempt,
                outcome=effect.outcome,
                reason=effect.reason,
                accepted=len(self._state.accepted),
                rejected=len(self._state.failed),
                fence=self.fence,
            ),
            required=False,
        )
        self._log.warning("abandoned", round=effect.round, attempt=effect.attempt, reason=effect.reason)
        if effect.outcome == "failed":
            self._note("round-failed", effect.reason)

    def _evaluate(self, number: int) -> None:
        model = self._tally.model
        group = self._spec.pool or next((silo for silo in self._spec.clients if self._alive.get(silo)), None)
        if model is None or group is None:
            return
        self._edges.bus.declare_once(topology.rounds(group))
        self._edges.bus.publish(
            EvaluateModel(job=self.job, group=group, round=number, model=model.blob, spec=self._spec)
        )

    def _pause(self, reason: str) -> None:
        if self._clearing is not None:
            self._clearing.result()
        self._edges.ledger.release(self.job, self.fence, "paused", reason)
        self._edges.bus.publish(JobStatus(job=self.job, status="paused", detail=reason), required=False)
        self._log.info("paused", reason=reason, round=self._state.round)

    def _end(self, outcome: rounds.Outcome, reason: str) -> None:
        ledger, blobs, tally = self._edges.ledger, self._edges.blobs, self._tally
        if self._clearing is not None:
            self._clearing.result()
        ledger.check_owned(self.job, self.fence)
        if not self._spec.keep_updates:
            blobs.delete(names.rounds_prefix(self.job), holding="/updates/")  # what came too late to be counted
        now = ledger.now()
        model = None
        if tally.model is not None:
            final = tally.model.blob.model_copy(update={"key": names.final_model_blob(self.job)})
            model = blobs.put(final.key, tally.file, digest=final.digest, metadata={"job": self.job})
        result = {
            "job": self.job,
            "outcome": outcome,
            "reason": reason,
            "rounds": max(0, self._committed),
            "metrics": self._metrics,
            "model": model.model_dump() if model else None,
            "seconds": round(now - self._first_opened, 3) if self._first_opened else 0.0,
            "started": self._first_opened,
            "ended": now,
        }
        ledger.check_owned(self.job, self.fence)
        blobs.put_json(names.result_blob(self.job), result)
        failpoint("aggregator.result")
        self._conclude(result)

    def _conclude(self, result: dict[str, Any]) -> None:
        """What follows from a job's result, by whoever owned it when it was written or after."""
        end = TrainingEnd.model_validate(
            {name: result[name] for name in TrainingEnd.model_fields if name in result} | {"fence": self.fence}
        )
        self._edges.ledger.set_metrics(self.job, self.fence, end.metrics)
        if self._subscription is not None:
            self._edges.bus.cancel(self._subscription)
        # Before the ledger says that it is over, or the queue of an owner that dies here would stay.
        self._edges.bus.delete(names.updates_queue(self.job))
        self._edges.ledger.end(self.job, self.fence, end.outcome, end.reason)
        failpoint("aggregator.ended")
        self._edges.bus.publish(end, required=False)
        self._log.info(
            "ended",
            outcome=end.outcome,
            reason=end.reason,
            rounds=end.rounds,
            seconds=end.seconds,
            metrics=end.metrics,
        )

    # --- from another owner ---------------------------------------------------------------------

    def _recover(self) -> tuple[rounds.Effect, ...]:
        """Reads the record, brings the ledger up to the store, and says what is to be done first."""
        ledger, blobs = self._edges.ledger, self._edges.blobs
        record = ledger.required(self.job)
        about = recovery.optional(blobs, names.job_blob(self.job))
        if about is None:
            raise BadInput(f"job {self.job} was never announced: it has no job.json; start it again")
        self._spec = spec = JobSpec.model_validate(about["spec"])
        self._tally = Tally(blobs, self.job, spec)
        self._state = rounds.State(spec=spec)
        result = recovery.optional(blobs, names.result_blob(self.job))
        if result is not None:
            self._state = rounds.State(spec, "ended")
            self._conclude(result)
            return ()
        self._metrics = record.metrics
        committed = self._catch_up(record)
        self._state, effects = self._resume(record, committed)
        if record.claims > 1 or committed >= 0:
            self._log.info("took over", round=self._state.round, phase=self._state.phase, claims=record.claims)
            self._note("takeover", f"fence {self.fence}, round {self._state.round}, {self._state.phase}")
        wish = recovery.wanted(blobs, self.job)
        self.want(record.wanted if wish is None or record.wanted.status == "stopped" else wish)
        return effects

    def _catch_up(self, record: JobRecord) -> int:
        """The last committed round, its model loaded; the ledger knows of it when this returns."""
        ledger, blobs = self._edges.ledger, self._edges.blobs
        committed = recovery.committed(blobs, self.job, record.round)
        if committed > record.round:
            ledger.advance(self.job, self.fence, committed)
        if committed < 0:
            return committed
        manifest = blobs.get_json(names.manifest_blob(self.job, committed))
        self._tally.load(BlobRef.model_validate(manifest["model"]))
        self._committed = committed
        self._first_opened = record.started
        self._metrics = {**manifest["metrics"], **self._metrics}
        # Its owner may have died before it said so, or before it tidied up.
        self._tell_end(manifest)
        self._clearing = self._edges.later.submit(self._clear_away, committed)
        return committed

    def _resume(self, record: JobRecord, committed: int) -> rounds.Step:
        """Where the engine begins: with the open round of an earlier owner, or with the next one."""
        spec, ledger, now = self._spec, self._edges.ledger, self._edges.clock()
        if record.claims > CLAIMS:
            given_up = f"its aggregator died {record.claims - 1} times without committing a round"
            return rounds.State(spec, "ended", committed + 1), (rounds.End("failed", given_up),)
        pending = ledger.round(self.job, committed + 1)
        match pending.state if pending else "none":
            case "open" if pending:
                return self._reopen(pending)
            case "closed" if pending:
                return rounds.closing(spec, pending.number, pending.attempt, pending.cohort)
            case "failed" if pending:
                return rounds.abandoned(spec, pending.number, pending.attempt, pending.reason)
        waited = ledger.now() - record.waiting if record.waiting else 0.0
        evaluated = committed < 0 or self._edges.blobs.exists(names.evaluation_blob(self.job, committed))
        self._alive = groups(self._edges.roster.alive())
        return rounds.begin(spec, committed, now=now, waited=waited, evaluated=evaluated)

    def _reopen(self, pending: RoundRecord) -> rounds.Step:
        """Folds what was accepted, from what the store keeps of it."""
        self._waiting = False
        self._tally.begin(len(pending.cohort))
        for client, entry in pending.accepted.items():
            try:
                self._tally.count_again(client, entry)
            except (NotFound, Refused) as error:
                self._edges.ledger.exclude(
                    self.job, self.fence, pending.number, client, f"its accepted update cannot be had: {error}"
                )
                self._note("excluded", f"{client}: {error}")
        failed = frozenset(client for client, reason in pending.rejected.items() if reason.startswith(COULD_NOT))
        return rounds.reopened(
            self._spec,
            pending.number,
            pending.attempt,
            pending.cohort,
            frozenset(self._tally.counted),
            failed - self._tally.counted,
        )

    def _fail(self, error: Exception) -> None:
        """The job's last word after an error that its runner could not handle."""
        reason = f"the aggregator gave up: {error or type(error).__name__}"
        try:
            if hasattr(self, "_tally"):
                self._end("failed", reason)
            else:
                self._edges.ledger.end(self.job, self.fence, "failed", str(error))
        except Exception:
            self._log.exception("the end could not be recorded")


def _by_group(spec: JobSpec, cohort: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """The cohort's members by whose queue their work goes to."""
    if spec.pool is not None:
        return {spec.pool: cohort} if cohort else {}
    return {client: (client,) for client in cohort}
