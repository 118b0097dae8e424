"""Coordinator of one job, on its own thread: receives messages, steps the pure state, and applies the effects."""

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import structlog

from services.aggregator import committing, ending, evaluating, job_state, opening, protocol, receiving, recovery
from services.aggregator.context import Edges, Faults, JobContext
from services.aggregator.takeover import take_over
from shared import names
from shared.amqp import topology
from shared.amqp.bus import settle
from shared.amqp.connection import Delivery, Subscription
from shared.errors import BadInput, BadMessage, Fenced, LedgerLost, Stale, Unavailable
from shared.events import AnyEvent, Event, ModelEvaluated, ModelUpdate, PauseTraining, StopTraining, TrainerJoined
from shared.job.job_spec import EXTENDED
from shared.process.failpoints import failpoint
from shared.process.retry import Retry
from shared.record import archive
from shared.redis.ledger import ENDED, JobRecord, Wanted
from shared.redis.roster import busy, groups

__all__ = ["Coordinator", "Edges"]

Result = TypeVar("Result")

PATIENCE = 120.0  #: seconds that an effect is retried while a server is away; then the job is left to the next owner
SILENCE = 5.0  #: seconds without a message for an open round after which its queues are checked


class Coordinator:
    """Runs a job from its claim to training-end, or until the job is paused, handed over or fenced."""

    def __init__(self, edges: Edges, job: str, fence: int, leaving: threading.Event | None = None) -> None:
        self.job = job
        self.fence = fence
        self._edges = edges
        self._log = structlog.get_logger().bind(job=job)
        self._faults = Faults(edges.ledger, job)
        self._mailbox: queue.SimpleQueue[Delivery | None] = queue.SimpleQueue()
        self._news: deque[protocol.Input] = deque()  # inputs from other threads
        self._subscription: Subscription | None = None
        self._leaving = leaving or threading.Event()
        self._fenced = threading.Event()
        self._inputs: deque[protocol.Input] = deque()
        self._wanted = Wanted()
        self._idle = 0  # consecutive checks that found the open round's queues empty and no slot busy
        self._strategy_error: BadInput | None = None  # raised by the user's strategy while a message was handled
        #: Client in flight → its update, which came while no round was open; the next round counts it.
        self._early_updates: dict[str, ModelUpdate] = {}
        self._context: JobContext | None = None
        self._state: job_state.State | None = None

    # --- from outside ---------------------------------------------------------------------------

    def leave(self) -> None:
        """Asks the coordinator to hand the job over to another replica."""
        self._leaving.set()
        self._mailbox.put(None)

    def fence_off(self) -> None:
        """Stops the coordinator, because another owner has claimed the job."""
        self._fenced.set()
        self._mailbox.put(None)

    def want(self, wanted: Wanted) -> None:
        """Passes an operator's request (stop, pause, resume) to the job; a repeat changes nothing."""
        before, self._wanted = self._wanted, wanted
        if wanted == before:
            return
        match wanted.status:
            case "stopped":
                self._news.append(protocol.Stopped(wanted.reason))
            case "paused":
                self._news.append(protocol.Paused(wanted.reason))
            case "running":
                self._news.append(protocol.Resumed())
        self._mailbox.put(None)

    @property
    def ended(self) -> bool:
        """True once the job has ended or was released as paused."""
        return self._state is not None and self._state.phase == "ended"

    @property
    def deadline(self) -> float | None:
        """Time of the next tick, by the clock of `Edges`: the state's deadline, or the next check for lost work."""
        if self._state is None or self._state.phase not in ("open", "waiting"):
            return self._state.deadline if self._state else None
        next_check = self._edges.clock() + SILENCE
        return next_check if self._state.deadline is None else min(next_check, self._state.deadline)

    def run(self) -> None:
        """Runs the job until it has ended here, or this coordinator leaves or loses it."""
        try:
            self.begin()
            while not self.ended and not self._leaving.is_set():
                self._wait()
            if not self.ended:
                self._edges.ledger.release(self.job, self.fence)
                self._log.info("handed over")
        except Fenced as error:
            self._log.warning("fenced", reason=str(error))
            self._faults.note("record-lost" if isinstance(error, LedgerLost) else "fenced", str(error))
            self._delete_leftover_queue()
        except Unavailable as error:
            # The job is not at fault: its lease runs out, and another replica, or this one, claims it in this state.
            self._log.warning("left as it is", reason=str(error))
        except BadInput as error:  # the job's input is at fault, so the log needs no traceback
            self._log.error("job failed", reason=str(error))
            self._fail(error)
        except Exception as error:
            self._log.exception("job failed")
            self._fail(error)
        finally:
            if self._subscription is not None:
                self._edges.bus.cancel(self._subscription)

    def _delete_leftover_queue(self) -> None:
        """Deletes the updates queue if the job has ended: a reconnect of this replica may have declared it again."""
        try:
            if self._subscription is not None:
                self._edges.bus.cancel(self._subscription)
            record = self._edges.ledger.job(self.job)
            if record is not None and record.status in ENDED:
                self._edges.bus.delete(names.updates_queue(self.job))
        except Unavailable as error:
            self._log.debug("not tidied", reason=str(error))

    def begin(self) -> None:
        """Subscribes to the job's updates, reads its record, and continues from there."""
        failpoint("aggregator.claimed")
        self._subscription = self._persistently(
            lambda: self._edges.bus.consume(
                topology.updates(self.job),
                self._mailbox.put,
                prefetch=32,
                on_ready=self._on_ready,
                # An earlier owner that hangs still consumes; the higher priority keeps messages from it.
                priority=self.fence // 1000,
            )
        )
        self._state, first = self._persistently(self._start)
        failpoint("aggregator.resumed")
        if self._state.phase == "looking":  # a request to stop or pause takes effect before another round opens
            self._process_inputs()
        self._apply_all(first)
        self.turn(None)

    def turn(self, delivery: Delivery | None) -> None:
        """Handles one message, or a tick if `delivery` is None, and everything that follows from it."""
        if self._fenced.is_set():
            raise Fenced(f"job {self.job} belongs to another aggregator now")
        if delivery is None:
            self._inputs.append(protocol.Ticked())
        else:
            self._idle = 0
            settle(self._edges.bus, delivery, self._on_event, self._leaving)
            if self._strategy_error is not None:
                raise self._strategy_error
        self._process_inputs()

    def look_for_lost_work(self) -> None:
        """Has clients asked again if no slot trains them and no queue holds their tasks; called after a silence.

        This catches what events miss: a queue may be deleted with its messages and without notice, and an earlier owner
        that hung may have consumed the event that a trainer has joined.
        """
        state, context = self._state, self._context
        if state is None or context is None or state.phase not in ("open", "waiting"):
            return
        try:
            alive = self._edges.roster.alive()
            if state.phase == "waiting":
                if groups(alive) != state.alive or context.spec.simulate is not None:
                    self._news.append(protocol.Joined())
                return
            busy_slots = busy(alive)
            asked = opening.by_group(context.spec, state.unanswered)
            silent = [group for group in asked if busy_slots.get(group) == 0 and not self._queued(group)]
        except Unavailable as error:
            self._log.debug("not looked", reason=str(error))
            return
        self._idle = self._idle + 1 if silent else 0
        if self._idle >= 2:  # one check is not enough: a task on its way from a queue to a slot shows up in neither
            self._idle = 0
            waiting = f"{len(state.unanswered)} of {len(state.cohort)} clients have not answered"
            detail = f"{waiting}, no trainer of {', '.join(silent[:5])} is at work, and no task waits there"
            self._log.warning("work is lost", round=state.round, reason=detail)
            self._faults.note("work-lost", detail, state.round)
            self._news.append(protocol.Interrupted())

    # --- the loop -------------------------------------------------------------------------------

    def _wait(self) -> None:
        """Waits for one message or for the next tick, and handles it."""
        deadline = self.deadline
        timeout = None if deadline is None else max(0.0, deadline - self._edges.clock())
        try:
            delivery = self._mailbox.get(timeout=timeout)
        except queue.Empty:
            delivery = None
            self.look_for_lost_work()
        self.turn(delivery)

    def _process_inputs(self) -> None:
        """Steps the state by each queued input and applies the effects, until no input is left."""
        while self._state is not None:
            while self._news:
                self._inputs.append(news := self._news.popleft())
                if isinstance(news, protocol.Interrupted) and news.reason:
                    self._faults.note("interrupted", news.reason, self._state.round)
            if not self._inputs and self._early_updates and self._state.phase == "open":
                self._persistently(self._receive_early_update)
                continue
            if not self._inputs:
                return
            self._state, following = job_state.step(self._state, self._inputs.popleft(), self._edges.clock())
            self._apply_all(following)

    def _apply_all(self, wanted: tuple[protocol.Effect, ...]) -> None:
        for effect in wanted:
            self._persistently(lambda effect=effect: self._receive_all(self._apply(effect)))  # type: ignore[misc]

    def _receive(self, received: protocol.Input) -> None:
        """Adds an input's facts to the state at once, and queues the input for the next step."""
        if self._state is not None:
            self._state = job_state.learn(self._state, received)
        self._inputs.append(received)

    def _receive_all(self, inputs: Iterable[protocol.Input]) -> None:
        for received in inputs:
            self._receive(received)

    def _persistently(self, action: Callable[[], Result]) -> Result:
        """Runs `action`, again with back-off while a server is away; each action may run twice without harm."""
        retry = Retry(0.1, 5.0, patience=PATIENCE, clock=self._edges.clock)
        while True:
            try:
                return action()
            except Unavailable as error:
                if retry.is_over or self._leaving.is_set():
                    raise
                if self._fenced.is_set():
                    raise Fenced(f"job {self.job} belongs to another aggregator now") from error
                self._log.warning("server away, trying again", reason=str(error))
                self._faults.note("server-away", str(error), self._state.round if self._state else -1)
                self._leaving.wait(retry.pause())

    # --- messages -------------------------------------------------------------------------------

    def _on_ready(self) -> None:
        """Runs on the connection's thread each time consuming begins; after a reconnect, events may have been lost."""
        if self._subscription is not None:
            self._news.append(protocol.Interrupted("the connection to RabbitMQ broke: events may have been lost"))
            self._mailbox.put(None)

    def _on_event(self, event: AnyEvent) -> None:
        if isinstance(event, Event) and event.job != self.job:
            raise BadMessage(f"{event.type} is of job {event.job}; its routing key was of {self.job}")
        match event:
            case ModelUpdate():
                try:
                    self._receive_update(event)
                except BadInput as error:  # the user's strategy is at fault, so trying the message again is no use
                    self._strategy_error = error
            case ModelEvaluated():
                self._receive(evaluating.on_model_evaluated(*self._context_and_state, event))
            case StopTraining():
                self._edges.ledger.want(self.job, Wanted("stopped", event.reason))  # a next owner reads it there
                self.want(Wanted("stopped", event.reason))
            case PauseTraining():
                self.want(self._record().wanted)  # the event may be old, and the job resumed since
            case TrainerJoined():
                self._receive(protocol.Joined())
            case _:
                raise BadMessage(f"{event.type} is not for an aggregator")

    def _receive_early_update(self) -> None:
        """Receives one update that came before the round was open."""
        client, update = next(iter(self._early_updates.items()))
        try:
            self._receive_update(update)
        except Fenced:
            raise
        except Stale as stale:
            self._log.debug("stale", reason=str(stale))
        del self._early_updates[client]

    def _receive_update(self, update: ModelUpdate) -> None:
        assert self._state is not None  # noqa: S101 - messages are handled by `turn`
        if self._state.phase != "open" and self._state.in_flight.get(update.client) == update.round:
            # The client's work outlasts the round it began in. If this process dies, a review finds the update's blob.
            self._early_updates[update.client] = update
            return
        self._receive_all(receiving.on_model_update(*self._context_and_state, update))

    # --- effects --------------------------------------------------------------------------------

    @property
    def _context_and_state(self) -> tuple[JobContext, job_state.State]:
        """The job's context and state."""
        assert self._context is not None  # noqa: S101 - `begin` comes first
        assert self._state is not None  # noqa: S101 - `begin` comes first
        return self._context, self._state

    def _record(self) -> JobRecord:
        record = self._edges.ledger.job(self.job)
        if record is None:
            raise LedgerLost(f"Redis has lost the record of job {self.job}")
        return record

    def _start(self) -> job_state.Step:
        """Builds the job's context and takes the job over; returns the state and the effects to begin with."""
        record = self._record()
        spec = archive.spec(self._edges.blobs, self.job)
        if spec is None:
            raise BadInput(f"job {self.job} was never announced: it has no job.json; start it again")
        self._context = JobContext.of(self._edges, self.job, self.fence, spec, self._faults, self._subscription)
        step = take_over(self._context, record)
        stored = archive.wanted(self._edges.blobs, self.job) or record.wanted
        if stored != record.wanted and record.wanted.status != "stopped":
            self._edges.ledger.want(self.job, stored)  # Redis may have returned to a state before the request
            self.want(stored)
        else:
            self.want(record.wanted)
        return step

    def _apply(self, effect: protocol.Effect) -> Iterable[protocol.Input]:  # noqa: C901, PLR0911 - one line per case
        """Applies an effect to the servers; returns the inputs that result, which may be produced one by one."""
        context, state = self._context_and_state
        match effect:
            case protocol.Look():
                return (opening.look(context, state),)
            case protocol.Wait(detail):
                return (opening.announce(context, "waiting", detail),)
            case protocol.Open():
                return opening.open_round(context, state, effect)
            case protocol.Review():
                return self._review(effect)
            case protocol.AskAgain():
                opening.ask_again(context, state, effect)
            case protocol.Close(number):
                return (committing.commit_round(context, state, number),)
            case protocol.Abandon():
                ending.abandon(context, effect)
            case protocol.Evaluate(number):
                return evaluating.evaluate(context, state, number)
            case protocol.AskAnother(number):
                return evaluating.ask_another(context, state, number)
            case protocol.Pause(reason):
                ending.pause(context, state, reason)
            case protocol.End(outcome, reason):
                ending.end(context, state, outcome, reason)
        return ()

    def _review(self, effect: protocol.Review) -> Iterator[protocol.Input]:
        """Receives the open round's updates from the object store: an event may be lost, its blob is not."""
        context, state = self._context_and_state
        seconds = context.spec.rounds.deadline
        seconds_left = self._edges.ledger.extend(self.job, self.fence, effect.round, seconds, EXTENDED * seconds)
        asked = {client: state.asked(client) for client in state.unanswered}
        for update in recovery.updates(self._edges.blobs, self.job, asked):
            try:
                self._receive_update(update)
            except Fenced:
                raise
            except Stale as stale:
                self._log.debug("stale", reason=str(stale))
        yield protocol.Reviewed(seconds_left)

    def _queued(self, group: str) -> bool:
        """True if work waits in a group's queues; a silo has no queue of tasks."""
        context, _ = self._context_and_state
        queues = (names.rounds_queue, names.tasks_queue) if context.spec.silos is None else (names.rounds_queue,)
        depths = (self._edges.bus.depth(name(group)) for name in queues)
        return any(depth is not None and depth[0] > 0 for depth in depths)

    def _fail(self, error: Exception) -> None:
        """Ends the job as failed, after an error that the coordinator could not handle."""
        reason = f"the aggregator gave up: {error or type(error).__name__}"
        try:
            if self._context is not None and self._state is not None:
                ending.end(self._context, self._state, "failed", reason)
            else:  # takeover failed on the job's record, and writing a result to it might fail for the same reason
                self._edges.ledger.end(self.job, self.fence, "failed", str(error))
        except Exception:
            self._log.exception("the end could not be recorded")
