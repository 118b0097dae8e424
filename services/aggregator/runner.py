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

from services.aggregator import closing, intake, rounds
from services.aggregator.closing import Model
from services.aggregator.intake import Intake
from shared import names, topology, weights
from shared.blobs import Blobs
from shared.bus import Bus, settle
from shared.errors import BadMessage, Fenced, Refused, Stale, Unavailable
from shared.events import (
    AnyEvent,
    BlobRef,
    EvaluateModel,
    JobStatus,
    ModelEvaluated,
    ModelUpdate,
    RoundEnd,
    RoundStart,
    StopTraining,
    TrainerJoined,
    TrainingEnd,
    slices,
)
from shared.fold import Fold, Grid
from shared.jobs import JobSpec
from shared.ledger import Ledger
from shared.link import Delivery, Subscription
from shared.roster import Roster, groups

Result = TypeVar("Result")

PATIENCE = 120.0  #: seconds an effect is tried again while a server is away, before the job fails


@dataclass(frozen=True)
class Edges:
    """The servers, and a thread for work that nobody waits for."""

    bus: Bus
    blobs: Blobs
    ledger: Ledger
    roster: Roster
    later: Executor


class Runner:
    """Owns a job from its first round to training-end, or until the lease goes to another."""

    def __init__(self, edges: Edges, job: str, spec: JobSpec, fence: int) -> None:
        self.job = job
        self.fence = fence
        self._spec = spec
        self._edges = edges
        self._log = structlog.get_logger().bind(job=job)
        self._mailbox: queue.SimpleQueue[Delivery | None] = queue.SimpleQueue()
        self._subscription: Subscription | None = None
        self._leaving = threading.Event()
        self._fenced = threading.Event()
        self._happenings: deque[rounds.Happening] = deque()
        self._state = rounds.State(spec=spec)
        self._model: Model | None = None
        self._intake: Intake | None = None
        self._fold: Fold | None = None
        self._folded: set[str] = set()
        self._advanced: BlobRef | None = None  # the new model's place, once the server step is taken
        self._alive: dict[str, int] = {}
        self._waiting = True  # for a first round, as whoever watches sees it
        self._metrics: dict[str, float] = {}
        self._opened = 0.0
        self._first_opened = 0.0
        self._clearing: Future[None] | None = None

    # --- from outside ---------------------------------------------------------------------------

    def leave(self) -> None:
        """Asks the runner to hand the job over to another replica."""
        self._leaving.set()
        self._mailbox.put(None)

    def fence_off(self) -> None:
        """Tells the runner that the job is another's."""
        self._fenced.set()
        self._mailbox.put(None)

    def run(self) -> None:
        """Runs the job to its end."""
        try:
            self._subscription = self._persistently(
                lambda: self._edges.bus.consume(topology.updates(self.job), self._mailbox.put, prefetch=32)
            )
            self._resume()
            while self._state.phase != "ended" and not self._leaving.is_set():
                self._turn()
            if self._state.phase != "ended":
                self._edges.ledger.release(self.job, self.fence)
                self._log.info("handed over", round=self._state.round)
        except Fenced as error:
            self._log.warning("fenced", reason=str(error))
        except Exception as error:
            if self._leaving.is_set() and isinstance(error, Unavailable):
                # Asked to leave while a server is away: the lease runs out, and another replica takes the job as it is.
                self._log.warning("left without handing over", reason=str(error))
            else:
                self._log.exception("job failed")
                self._fail(error)
        finally:
            if self._subscription is not None:
                self._edges.bus.cancel(self._subscription)

    # --- the loop -------------------------------------------------------------------------------

    def _turn(self) -> None:
        """Waits for one message or for the deadline, then does all that follows from it."""
        deadline = self._state.deadline
        timeout = None if deadline is None else max(0.0, deadline - time.monotonic())
        try:
            delivery = self._mailbox.get(timeout=timeout)
        except queue.Empty:
            delivery = None
        if self._fenced.is_set():
            raise Fenced(f"job {self.job} belongs to another aggregator now")
        if delivery is None:
            self._happenings.append(rounds.Ticked())
        else:
            settle(self._edges.bus, delivery, self._on_event, self._leaving)
        self._follow()

    def _follow(self) -> None:
        while self._happenings:
            self._state, effects = rounds.step(self._state, self._happenings.popleft(), time.monotonic())
            for effect in effects:
                self._persistently(lambda effect=effect: self._apply(effect))  # type: ignore[misc]

    def _persistently(self, action: Callable[[], Result]) -> Result:
        """Does `action`, again with back-off while a server is away; each one may be done twice without harm."""
        deadline = time.monotonic() + PATIENCE
        delay = 0.1
        while True:
            try:
                return action()
            except Unavailable as error:
                if time.monotonic() >= deadline or self._leaving.is_set():
                    raise
                self._log.warning("server away, trying again", reason=str(error))
                self._leaving.wait(delay * random.uniform(0.5, 1))  # noqa: S311 - jitter
                delay = min(2 * delay, 5.0)

    # --- what is heard --------------------------------------------------------------------------

    def _on_event(self, event: AnyEvent) -> None:
        match event:
            case ModelUpdate():
                self._on_model_update(event)
            case ModelEvaluated():
                self._on_model_evaluated(event)
            case StopTraining():
                self._happenings.append(rounds.Stopped(event.reason))
            case TrainerJoined():
                self._happenings.append(rounds.Joined())
            case _:
                raise BadMessage(f"{event.type} is not for an aggregator")

    def _on_model_update(self, update: ModelUpdate) -> None:
        """Checks, counts once, folds; what is refused is recorded with the reason and changes nothing."""
        state, number = self._state, self._state.round
        if state.phase != "open":
            raise Stale(f"{update.client} sent an update for round {update.round}; none is open")
        try:
            if update.round != number:
                raise Refused(f"sent an update for round {update.round} while round {number} is open")
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

    def _on_failure(self, update: ModelUpdate) -> None:
        if update.client not in self._state.cohort:
            raise Refused("is not in the round's cohort")
        reason = f"could not train: {update.error}"
        self._edges.ledger.reject(self.job, self.fence, update.round, update.client, reason)
        self._log.warning("client failed", round=update.round, client=update.client, reason=update.error)
        self._happenings.append(rounds.Failed(update.client))

    def _take_in(self, update: ModelUpdate) -> str:
        """Accepts a checked update and folds it; answers what the ledger said."""
        began = time.monotonic()
        entry: dict[str, Any] = {
            "trainer": update.trainer,
            "blob": update.update.model_dump() if update.update else None,
            "examples": update.examples,
            "metrics": update.metrics,
            "timings": update.timings,
        }
        if self._model is None or self._intake is None or self._fold is None:
            file = intake.receive_initial(self._edges.blobs, update, self._spec.limits)
            answer = self._edges.ledger.accept(self.job, self.fence, 0, update.client, entry)
            if answer == "ok" and update.update is not None:
                self._adopt(Model(file, weights.read_layout(file), update.update))
        else:
            deltas, measures = self._intake.receive(update, self._model.blob.digest, self._fold.grid)
            entry |= {"max_abs": measures.max_abs, "norm": measures.norm}
            answer = self._edges.ledger.accept(self.job, self.fence, update.round, update.client, entry)
            if answer == "ok":
                self._fold.add(deltas, update.examples)
        if answer == "ok":
            self._folded.add(update.client)
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
                found = self._edges.ledger.accepted(self.job, update.round, update.client)
                if update.update is not None and found.get("blob", {}).get("digest") == update.update.digest:
                    raise Stale(f"{update.client} has been counted in round {update.round}")
                raise Refused("a second update: the first one counts")
            case "late":
                raise Refused(f"came after the deadline of round {update.round}")
            case "stranger":
                raise Refused("is not in the round's cohort")

    def _on_model_evaluated(self, event: ModelEvaluated) -> None:
        if event.error is not None:
            self._log.warning("not evaluated", round=event.round, reason=event.error)
        elif event.examples:
            self._metrics = {**self._metrics, **event.metrics}
            record = {"job": self.job, **event.model_dump(include={"round", "model", "examples", "metrics"})}
            self._edges.blobs.put_json(names.evaluation_blob(self.job, event.round), record)
            self._edges.ledger.set_metrics(self.job, self.fence, self._metrics)
            self._log.info("evaluated", round=event.round, trainer=event.trainer, metrics=event.metrics)
        self._happenings.append(rounds.Evaluated(event.round))

    # --- what is done ---------------------------------------------------------------------------

    def _apply(self, effect: rounds.Effect) -> None:
        match effect:
            case rounds.Look():
                self._alive = groups(self._edges.roster.alive())
                self._happenings.append(rounds.Looked(self._alive))
            case rounds.Wait(detail):
                self._say("waiting", detail)
            case rounds.Open(number, attempt, cohort):
                self._open(number, attempt, cohort)
            case rounds.Close(number):
                self._close(number)
            case rounds.Abandon():
                self._abandon(effect)
            case rounds.Evaluate(number):
                self._evaluate(number)
            case rounds.End(outcome, reason):
                self._end(outcome, reason)

    def _say(self, status: Literal["running", "waiting"], detail: str) -> None:
        self._waiting = status == "waiting"
        self._edges.ledger.describe(self.job, self.fence, status, detail)
        self._edges.bus.publish(JobStatus(job=self.job, status=status, detail=detail), required=False)
        self._log.info(status, detail=detail)

    def _open(self, number: int, attempt: int, cohort: tuple[str, ...]) -> None:
        spec, ledger = self._spec, self._edges.ledger
        if self._waiting:
            self._say("running", f"round {number} of {spec.rounds.count}")
        deadline = ledger.open_round(self.job, self.fence, number, attempt, cohort, spec.rounds.deadline)
        self._opened = deadline - spec.rounds.deadline
        self._first_opened = self._first_opened or self._opened
        self._folded.clear()
        self._advanced = None
        self._prepare(closing.grid_of(spec, len(cohort)))
        base = self._model.blob if self._model else None
        for group, members in _by_group(spec, cohort).items():
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
                        spec=spec,
                        deadline=deadline,
                    )
                )
        self._happenings.append(rounds.Opened())
        self._log.info("opened", round=number, attempt=attempt, cohort=len(cohort))

    def _prepare(self, grid: Grid) -> None:
        if self._model is None:
            return
        if self._fold is None or self._fold.grid != grid:
            self._fold = None  # its memory goes before the next one's comes
            self._fold = Fold(self._model.layout.size, grid)
        else:
            self._fold.reset()

    def _adopt(self, model: Model) -> None:
        self._model = model
        self._intake = Intake(self._edges.blobs, model.layout, self._spec.limits)
        self._fold = Fold(model.layout.size, closing.grid_of(self._spec, self._spec.cohort_size))

    def _close(self, number: int) -> None:
        """The steps from a frozen set to a committed round; done again after a failure, they give the same."""
        ledger, blobs, spec = self._edges.ledger, self._edges.blobs, self._spec
        began = time.monotonic()
        accepted = ledger.close_round(self.job, self.fence, number)
        record = ledger.round(self.job, number)
        if record is None or self._model is None:
            raise Stale(f"round {number} of {self.job} is not in the ledger")
        base, grid = (self._model.blob, closing.grid_of(spec, len(record.cohort))) if number else (None, None)
        if self._advanced is None:
            self._advanced = self._next_model(number, accepted, grid)
        model = self._advanced
        about = {"job": self.job, "round": number}
        blobs.put(model.key, self._model.file, digest=model.digest, metadata=about)
        committed = ledger.now()
        commit = closing.manifest(
            job=self.job,
            number=number,
            attempt=record.attempt,
            cohort=record.cohort,
            spec=spec,
            base=base,
            model=model,
            grid=grid,
            accepted=accepted,
            rejected=record.rejected,
            opened=record.opened,
            committed=committed,
        )
        blobs.put_json(names.manifest_blob(self.job, number), commit)
        ledger.commit_round(self.job, self.fence, number)
        self._edges.bus.publish(
            RoundEnd(
                job=self.job,
                round=number,
                attempt=record.attempt,
                outcome="committed",
                accepted=len(accepted),
                rejected=len(record.rejected),
                metrics=commit["metrics"],
                model=model,
                seconds=commit["seconds"],
            ),
            required=False,
        )
        # Last, because what comes before may be done again, and then on the same base.
        self._model.blob = model
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

    def _next_model(self, number: int, accepted: dict[str, Any], grid: Grid | None) -> BlobRef:
        if self._model is None or self._fold is None:
            raise Stale(f"round {number} of {self.job} has no base model")
        if number == 0 or grid is None:
            digest = self._model.blob.digest
            return BlobRef(key=names.model_blob(self.job, 0, digest), size=self._model.file.nbytes, digest=digest)
        if self._folded != accepted.keys():
            self._fold = None  # its memory goes before the next one's comes
            self._fold = closing.refold(self._edges.blobs, self._model.layout, accepted, grid)
        return closing.advance(self._model, self._fold, self._spec, self.job, number)

    def _clear_away(self, number: int) -> None:
        """Removes what a committed round leaves behind, while the next one runs."""
        try:
            if not self._spec.keep_updates:
                self._edges.blobs.delete(names.updates_prefix(self.job, number))
            self._edges.ledger.drop_round(self.job, number)
        except Unavailable as error:
            self._log.warning("not cleared away", round=number, reason=str(error))

    def _abandon(self, effect: rounds.Abandon) -> None:
        self._edges.ledger.fail_round(self.job, self.fence, effect.round)
        self._edges.bus.publish(
            RoundEnd(
                job=self.job,
                round=effect.round,
                attempt=effect.attempt,
                outcome=effect.outcome,
                reason=effect.reason,
                accepted=len(self._state.accepted),
                rejected=len(self._state.failed),
            ),
            required=False,
        )
        self._log.warning("abandoned", round=effect.round, attempt=effect.attempt, reason=effect.reason)

    def _evaluate(self, number: int) -> None:
        if self._model is None:
            return
        group = self._spec.pool or next(silo for silo in self._spec.clients if self._alive.get(silo))
        self._edges.bus.declare_once(topology.rounds(group))
        self._edges.bus.publish(
            EvaluateModel(job=self.job, group=group, round=number, model=self._model.blob, spec=self._spec)
        )

    def _end(self, outcome: rounds.Outcome, reason: str) -> None:
        ledger, blobs = self._edges.ledger, self._edges.blobs
        if self._clearing is not None:
            self._clearing.result()
        if not self._spec.keep_updates:
            blobs.delete(names.rounds_prefix(self.job), holding="/updates/")  # what came too late to be counted
        now = ledger.now()
        number = self._state.round if outcome == "finished" else self._state.round - 1
        committed = max(0, number if self._model else 0)
        model = None
        if self._model is not None:
            final = self._model.blob.model_copy(update={"key": names.final_model_blob(self.job)})
            model = blobs.put(final.key, self._model.file, digest=final.digest, metadata={"job": self.job})
        seconds = round(now - self._first_opened, 3) if self._first_opened else 0.0
        blobs.put_json(
            names.result_blob(self.job),
            {
                "job": self.job,
                "outcome": outcome,
                "reason": reason,
                "rounds": committed,
                "metrics": self._metrics,
                "model": model.model_dump() if model else None,
                "seconds": seconds,
                "started": self._first_opened,
                "ended": now,
            },
        )
        ledger.set_metrics(self.job, self.fence, self._metrics)
        ledger.end(self.job, self.fence, outcome, reason)
        if self._subscription is not None:
            self._edges.bus.cancel(self._subscription)
        self._edges.bus.delete(names.updates_queue(self.job))
        self._edges.bus.publish(
            TrainingEnd(
                job=self.job,
                outcome=outcome,
                reason=reason,
                rounds=committed,
                metrics=self._metrics,
                model=model,
                seconds=seconds,
            ),
            required=False,
        )
        self._log.info(
            "ended", outcome=outcome, reason=reason, rounds=committed, seconds=seconds, metrics=self._metrics
        )

    # --- from and to another replica ------------------------------------------------------------

    def _resume(self) -> None:
        """Begins after the last committed round that the store holds."""
        record = self._edges.ledger.required(self.job)
        if record.round >= 0:
            found = self._edges.blobs.get_json(names.manifest_blob(self.job, record.round))
            blob = BlobRef.model_validate(found["model"])
            file = self._edges.blobs.get(blob)
            self._adopt(Model(file, weights.read_layout(file), blob))
            self._first_opened = record.started
        self._state, effects = rounds.begin(self._spec, record.round)
        pending = self._edges.ledger.round(self.job, record.round + 1)
        if pending is not None and pending.state == "closed":
            # Its inputs are frozen: it is finished with these, whoever closed it.
            if self._model is None:
                (first,) = pending.accepted.values()
                blob = BlobRef.model_validate(first["blob"])
                file = self._edges.blobs.get(blob)
                self._adopt(Model(file, weights.read_layout(file), blob))
            self._state, effects = rounds.closing(self._spec, pending.number, pending.attempt, pending.cohort)
        for effect in effects:
            self._persistently(lambda effect=effect: self._apply(effect))  # type: ignore[misc]
        self._follow()

    def _fail(self, error: Exception) -> None:
        """The job's last word after an error that its runner could not handle."""
        try:
            self._end("failed", f"the aggregator gave up: {error or type(error).__name__}")
        except Exception:
            self._log.exception("the end could not be recorded")


def _by_group(spec: JobSpec, cohort: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """The cohort's members by whose queue their work goes to."""
    if spec.pool is not None:
        return {spec.pool: cohort}
    return {client: (client,) for client in cohort}
