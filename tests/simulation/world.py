"""One job, its aggregators and its trainers in one thread, on servers in memory and a clock that jumps.

The aggregator's code is the real one. Everything it asks of a server, and every failpoint, is a boundary at which the
nemesis may kill the replica, stop it for a while or fail the call, before its effect or after. While a replica is
held up in the middle of a step, the others go on: the world runs on inside of its call.
"""

import heapq
import itertools
import logging
import random as global_random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from random import Random
from types import SimpleNamespace
from typing import Any

import structlog

from services.aggregator import leases as owner_module
from services.aggregator.coordinator import Coordinator, Edges
from services.aggregator.leases import JobLeases
from shared import names
from shared.aggregation import stored_updates
from shared.amqp import topology
from shared.amqp.bus import settle
from shared.errors import Fenced, LedgerLost, Unavailable
from shared.events import PauseTraining, StartTraining, StopTraining
from shared.job.job_spec import JobSpec
from shared.process import failpoints
from shared.record import parts
from shared.redis.ledger import ENDED, JobRecord, Wanted
from tests.simulation.fakes import Broker, Delivery, FakeBlobs, FakeBus, FakeRoster, Inline, Subscription
from tests.simulation.invariants import JOB, Violation
from tests.simulation.model import ModelLedger
from tests.simulation.nemesis import Nemesis
from tests.simulation.observer import Observer
from tests.simulation.trainers import Trainers

LEASE = 15.0
START = 1.7e9  #: seconds since the epoch
DEPTH = 3  #: replicas that are held up in the middle of a step at once
CALM = 3600.0  #: seconds in which a job must end once nothing fails any more
CALM_STEPS = 5_000
AFTERWARDS = 20  #: steps that are watched once the job has ended


class Killed(BaseException):
    """The process is gone; nothing of it may catch this."""


@dataclass
class Running:
    """A runner, and when time is news to it."""

    runner: Coordinator
    due: float | None = 0.0
    begun: bool = False
    busy: bool = False  # a step of it is on the stack
    woken: bool = False  # another thread has put word into its mailbox

    def is_due(self, now: float) -> bool:
        mailbox = self.runner._mailbox
        while not mailbox.empty():
            mailbox.get()
            self.woken = True
        return self.woken or (self.due is not None and now >= self.due)


@dataclass
class Replica:
    """One aggregator process."""

    name: str
    edges: Edges
    owner: "SimOwner"
    dead: bool = False
    stopped_until: float = 0.0
    keep_due: float = 0.0
    keeping: bool = False
    leaving: bool = False
    threads: list[Callable[[], None]] = field(default_factory=list)
    running: dict[str, Running] = field(default_factory=dict)


class World:
    """All there is; `step` lets one thing happen."""

    def __init__(self, spec: JobSpec, random: Random, nemesis: Nemesis, *, replicas: int = 2) -> None:
        self.spec = spec
        self.random = random
        self.nemesis = nemesis
        self.now = START
        self.steps = 0
        self.boundaries = 0
        self.broken = False  # a promise was: there is nothing more to be learnt
        self.reached: Counter[str] = Counter()
        self.partings: Counter[str] = Counter()  # why replicas let go of a job that was not at its end
        self.broker = Broker(random)
        self.blobs = FakeBlobs()
        self.ledger = ModelLedger(self.clock)
        self.trainers = Trainers(self)
        self.observer = Observer(self)
        self.replicas: list[Replica] = []
        self.acting: list[Replica] = []  # whose step is on the stack
        self.trace: Callable[[str], None] = lambda _: None
        self.snapshots: list[Any] = []
        self._wanted_replicas = replicas
        self._born = itertools.count()
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._ticket = itertools.count()

    def clock(self) -> float:
        return self.now

    # --- the story ------------------------------------------------------------------------------

    def begin(self) -> None:
        """The job is announced as `fedq start` does it, and the processes start."""
        self.broker.declare(topology.commands(), topology.dead_letters(), topology.updates(JOB))
        self.blobs.put_json(names.job_blob(JOB), {"job": JOB, "spec": self.spec.model_dump(mode="json")})
        self.ledger.create(JOB, self.spec.rounds.count)
        self.trainers.begin()
        for _ in range(self._wanted_replicas):
            self.start_replica()
        self.broker.publish(StartTraining(job=JOB, spec=self.spec))

    def run(self, steps: int) -> None:
        """So many steps with the nemesis about, or until the job has ended; then without it to the job's end."""
        while self.steps < steps and not self.is_over():
            self.step()
        self.calm_down()

    def calm_down(self) -> None:
        """Faults cease, and the job comes to its end within a bounded time."""
        self.nemesis.cease()
        self.trainers.recover()
        self.broker.copies = lambda _: 1
        self.broker.shuffled = False
        for replica in self.replicas:
            replica.stopped_until = 0.0
        while len(self.replicas) < self._wanted_replicas:
            self.start_replica()
        deadline, most = self.now + CALM, self.steps + CALM_STEPS
        while not self.is_over():
            assert self.now < deadline, f"P5: the job is {self.job()} long after all faults ceased"
            assert self.steps < most, f"P5: the job is {self.job()} though much has happened since faults ceased"
            self.step()
        for _ in range(AFTERWARDS):
            self.step()
        assert self.is_over(), f"P5: the job had ended and is {self.job()}"
        try:
            self.observer.check_end()
        except Violation as violation:
            raise AssertionError(str(violation)) from violation

    def is_over(self) -> bool:
        """The job has ended for good, as far as Redis and the store say, and nobody works at it."""
        record = self.job()
        busy = any(replica.running for replica in self.replicas)
        return record is not None and record.status in (*ENDED, "paused") and not busy and not self.acting

    def job(self) -> JobRecord | None:
        return self.ledger.job(JOB)

    # --- one step -------------------------------------------------------------------------------

    def step(self, until: float = float("inf")) -> None:
        """One of the things that can happen now; else time passes, to the next moment when something can."""
        try:
            self._step(until)
        except Violation as violation:
            if self.acting:
                raise
            self.broken = True
            raise AssertionError(f"{violation} (step {self.steps})") from violation

    def _step(self, until: float) -> None:
        self.steps += 1
        self.now += self.random.expovariate(500)
        self.nemesis.strike(self)
        ready = list(self._ready())
        if ready:
            self.random.choice(ready)()
        else:
            self.now = max(self.now, min(until, self._next_moment()))
        self.observer.check()

    def live(self, seconds: float) -> None:
        """Time passes for somebody in the middle of a step, and the others use it."""
        until = self.now + seconds
        if len(self.acting) <= DEPTH:
            while self.now < until:
                self.step(until)
        self.now = max(self.now, until)

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._timers, (self.now + seconds, next(self._ticket), action))

    def _ready(self) -> Iterator[Callable[[], None]]:
        self.broker.pump()
        if self._timers and self._timers[0][0] <= self.now:
            yield heapq.heappop(self._timers)[2]
            return
        yield from self.trainers.ready()
        for replica in self.replicas:
            if self.now >= replica.stopped_until:
                yield from self._ready_of(replica)

    def _ready_of(self, replica: Replica) -> Iterator[Callable[[], None]]:
        if replica.leaving and not replica.running and not replica.keeping:
            yield lambda: self._retire(replica)
            return
        if self.now >= replica.keep_due and not replica.keeping:
            yield lambda: self._keep(replica)
        if replica.threads:
            yield lambda: self._act(replica, replica.threads.pop())
        if self.broker.queues.get(names.COMMANDS) and not replica.running and not replica.leaving:
            yield lambda: self._act(replica, lambda: self._command(replica))
        for running in list(replica.running.values()):
            if running.busy:
                continue
            subscription = subscription_of(running.runner)
            if not running.begun:
                yield lambda running=running: self._drive(replica, running, running.runner.begin)
            elif subscription is not None and subscription.held:
                yield lambda running=running, subscription=subscription: self._deliver(replica, running, subscription)
            elif running.is_due(self.now):
                yield lambda running=running: self._tick(replica, running)

    def _next_moment(self) -> float:
        moments = [self._timers[0][0]] if self._timers else []
        for replica in self.replicas:
            own = [replica.keep_due, *(running.due for running in replica.running.values() if running.due is not None)]
            moments += [max(moment, replica.stopped_until) for moment in own]
        return min((moment for moment in moments if moment > self.now), default=self.now + 1.0)

    # --- replicas -------------------------------------------------------------------------------

    def start_replica(self) -> None:
        name = f"aggregator-{next(self._born)}"
        edges = Edges(
            bus=Boundary(self, name, "bus", FakeBus(self.broker)),  # type: ignore[arg-type]
            blobs=Boundary(self, name, "blobs", self.blobs),  # type: ignore[arg-type]
            ledger=Boundary(self, name, "ledger", self.ledger),  # type: ignore[arg-type]
            roster=Boundary(self, name, "roster", FakeRoster(self.trainers.alive)),  # type: ignore[arg-type]
            later=Inline(),
            clock=self.clock,
        )
        replica = Replica(name, edges, owner=None)  # type: ignore[arg-type]
        self.replicas.append(replica)
        self.acting.append(replica)
        replica.owner = SimOwner(self, replica)
        self.acting.pop()
        self.trace(f"{name} starts")

    def kill(self, replica: Replica) -> None:
        """Nothing of the process goes on, its messages go back, and its lease runs out; another is started later."""
        replica.dead = True
        self.replicas.remove(replica)
        self.trace(f"{replica.name} is killed")
        for running in replica.running.values():
            if subscription := subscription_of(running.runner):
                self.broker.cancel(subscription)
        self.after(self.random.uniform(0, 20), self._replace)

    def _replace(self) -> None:
        if len(self.replicas) < self._wanted_replicas:
            self.start_replica()

    def hand_over(self, replica: Replica) -> None:
        """It is asked to leave: SIGTERM."""
        self.trace(f"{replica.name} is asked to leave")
        replica.leaving = True
        for running in replica.running.values():
            running.runner.leave()

    def _retire(self, replica: Replica) -> None:
        self.replicas.remove(replica)
        self._replace()

    def disconnect(self, replica: Replica) -> None:
        """Its connection breaks and is made again: what it held is delivered again, to whomever."""
        self.trace(f"{replica.name} is disconnected")
        for running in replica.running.values():
            if subscription := subscription_of(running.runner):
                self.broker.lose(subscription)
                subscription.on_ready()

    def delete_queue(self, name: str) -> None:
        """Somebody deletes a queue with what is in it; whoever consumes it declares it again."""
        self.trace(f"{name} is deleted")
        self.broker.delete(name)
        for subscription in self.broker.subscriptions:
            if subscription.queue.name == name:
                self.broker.declare(subscription.queue)
                subscription.on_ready()

    def _act(self, replica: Replica, action: Callable[[], None]) -> None:
        self.acting.append(replica)
        try:
            action()
        except Killed:
            assert replica.dead
        finally:
            self.acting.pop()

    def _keep(self, replica: Replica) -> None:
        replica.keeping = True
        self._act(replica, lambda: self._keep_leases(replica))
        replica.keeping = False

    def _keep_leases(self, replica: Replica) -> None:
        """A turn of `Owner._keep_leases`."""
        wait = LEASE / 3
        owner = replica.owner
        try:
            running = dict(owner._running)
            owner._watch_redis()
            owner._renew(running)
            soonest = None if replica.leaving else owner._adopt(set(running))
            wait = min(wait, wait if soonest is None else soonest)
        except Unavailable:
            pass
        except Exception as error:
            self.observer.surprise(replica.name, error)
        replica.keep_due = self.now + wait

    def _command(self, replica: Replica) -> None:
        subscription = Subscription(topology.commands(), lambda: None, 1)
        subscription.held.append(self.broker.queues[names.COMMANDS].pop(0))
        delivery = self.broker.take(subscription)
        try:
            settle(replica.edges.bus, delivery, replica.owner._on_command, Patience(self, replica))  # type: ignore[arg-type]
        except Fenced as error:
            self.observer.surprise(replica.name, error)
        finally:
            self.broker.lose(subscription)

    def _deliver(self, replica: Replica, running: Running, subscription: Subscription) -> None:
        delivery = CheckedDelivery(self, replica, self.broker.take(subscription))
        self._drive(replica, running, lambda: running.runner.turn(delivery))  # type: ignore[arg-type]

    def _tick(self, replica: Replica, running: Running) -> None:
        """As `Runner._wait` does it: after a silence, work that was lost is looked for."""

        def tick() -> None:
            if not running.woken:
                running.runner.look_for_lost_work()
            running.woken = False
            running.runner.turn(None)

        self._drive(replica, running, tick)

    def _drive(self, replica: Replica, running: Running, action: Callable[[], None]) -> None:
        """Lets a runner do one thing; what becomes of an error is what `Runner.run` makes of it."""
        running.busy, running.begun = True, True

        def act() -> None:
            runner, over = running.runner, True
            try:
                action()
                over = runner.ended
                if not over and runner._leaving.is_set():
                    replica.edges.ledger.release(runner.job, runner.fence)
                    over = True
                running.due = runner.deadline
            except Fenced as error:
                self.trace(f"{replica.name} is fenced: {error}")
                self.partings[type(error).__name__] += 1
                runner._faults.note("record-lost" if isinstance(error, LedgerLost) else "fenced", str(error))
            except Unavailable as error:
                self.trace(f"{replica.name} leaves the job: {error}")
                self.partings["Unavailable"] += 1
            except Exception as error:
                record = self.job()
                if record is not None and record.fence == runner.fence:  # a zombie may be surprised
                    self.observer.surprise(replica.name, error)
                runner._fail(error)
            if over:
                if subscription := subscription_of(runner):
                    replica.edges.bus.cancel(subscription)  # type: ignore[arg-type]
                self._forget(replica, runner)

        self._act(replica, act)
        running.busy = False

    def _forget(self, replica: Replica, runner: Coordinator) -> None:
        replica.running.pop(runner.job, None)
        replica.owner._running.pop(runner.job, None)
        self.observer.fenced.discard(replica.name)
        replica.keep_due = self.now

    # --- boundaries -----------------------------------------------------------------------------

    def effect(self, name: str, where: str, call: Callable[[], Any]) -> Any:
        """What a replica asks of a server; it may not survive it."""
        replica = self.acting[-1]
        assert replica.name == name
        self._meet(replica, f"before {where}")
        found = call()
        self._meet(replica, f"after {where}")
        return found

    def failpoint(self, name: str) -> None:
        self.reached[name] += 1
        self._meet(self.acting[-1], f"at {name}")

    def _meet(self, replica: Replica, where: str) -> None:
        if replica.dead:
            raise Killed
        self.boundaries += 1
        match self.nemesis.fate(self, where):
            case "kill":
                self.trace(f"{replica.name}: {where}")
                self.kill(replica)
            case "stop":
                self.trace(f"{replica.name} is stopped {where}")
                self.stop(replica, self.nemesis.nap())
            case "fail":
                self.trace(f"{replica.name}: fails {where}")
                raise Unavailable(f"failed {where}")
        if replica.dead:
            raise Killed

    def stop(self, replica: Replica, seconds: float) -> None:
        """The process is stopped (SIGSTOP) in the middle of a step, and goes on later as if nothing had been."""
        replica.stopped_until = self.now + seconds
        self.live(seconds)
        while not replica.dead and self.now < replica.stopped_until:
            self.live(replica.stopped_until - self.now)

    # --- the record goes back -------------------------------------------------------------------

    def flush(self) -> None:
        self.trace("Redis is flushed")
        self.ledger.flush()
        self.observer.went_back()

    def rollback(self, snapshot: Any) -> None:
        self.trace("Redis goes back")
        self.ledger.rollback(snapshot)
        self.observer.went_back()

    def want(self, wanted: Wanted) -> None:
        """An operator's request, as `fedq stop`, `pause` and `resume` tell it: into bucket, ledger, bell."""
        record = self.job()
        if record is None or record.status in ENDED:
            return
        self.trace(f"an operator wants it {wanted.status}")
        self.blobs.put_json(names.wanted_blob(JOB), {"wanted": wanted.status, "reason": wanted.reason})
        self.ledger.want(JOB, wanted)
        if record.status == "paused" and wanted.status != "paused":
            self.ledger.revive(JOB, record.rounds)
            self.ledger.want(JOB, wanted)  # after reviving, which wants it to run
        bell = {"stopped": StopTraining, "paused": PauseTraining}.get(wanted.status)
        event = bell(job=JOB, reason=wanted.reason) if bell else StartTraining(job=JOB, spec=self.spec)
        self.broker.publish(event, required=False)

    @contextmanager
    def installed(self) -> Iterator["World"]:
        """The real code runs in this world: failpoints, randomness, logs and threads are the world's."""
        before, config, state = owner_module.threading, structlog.get_config(), global_random.getstate()
        owner_module.threading = SimpleNamespace(  # type: ignore[assignment]
            Thread=lambda *, target, **_: Thread(self, target),
            Event=lambda: Patience(self, self.acting[-1]),
            Condition=before.Condition,
        )
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
        global_random.seed(self.random.random())
        failpoints.watch(self.failpoint)
        cut = parts.FEW, parts.MOST
        if self.spec.seed % 2:  # half of the jobs are too large for records in one piece
            parts.FEW, parts.MOST = 1, 2
        threads, stored_updates.ThreadPoolExecutor = stored_updates.ThreadPoolExecutor, lambda _: Inline()  # type: ignore[assignment, misc]
        try:
            yield self
        finally:
            stored_updates.ThreadPoolExecutor = threads  # type: ignore[misc]
            parts.FEW, parts.MOST = cut
            failpoints.watch(None)
            global_random.setstate(state)
            structlog.configure(**config)
            owner_module.threading = before


class SimOwner(JobLeases):
    """The real owner; whoever drives the world runs what its threads would."""

    def __init__(self, world: World, replica: Replica) -> None:
        super().__init__(replica.name, replica.edges, lease=LEASE, most=1)
        self._world, self._replica = world, replica

    def _run(self, job: str, fence: int) -> None:
        runner = Coordinator(self._edges, job, fence, Patience(self._world, self._replica))  # type: ignore[arg-type]
        self._running[job] = (runner, None)  # type: ignore[assignment]
        self._replica.running[job] = Running(runner)
        self._world.trace(f"{self._replica.name} takes the job under {fence}")


class Boundary:
    """A server as one replica sees it."""

    def __init__(self, world: World, replica: str, server: str, fake: Any) -> None:
        self._world, self._replica, self._server, self._fake = world, replica, server, fake

    def __getattr__(self, method: str) -> Any:
        call, where = getattr(self._fake, method), f"{self._server}.{method}"

        def guarded(*arguments: Any, **options: Any) -> Any:
            replica = self._world.acting[-1]

            def effect() -> Any:
                return self._world.observer.watch(replica, where, call, arguments, options)

            return self._world.effect(self._replica, where, effect)

        return guarded


class CheckedDelivery:
    """A message in a replica's hands; it may die before it settles it."""

    def __init__(self, world: World, replica: Replica, delivery: Delivery) -> None:
        self._world, self._replica, self._delivery = world, replica, delivery

    def __getattr__(self, name: str) -> Any:
        return getattr(self._delivery, name)

    def ack(self) -> None:
        self._world.effect(self._replica.name, "delivery.ack", self._delivery.ack)

    def requeue(self) -> None:
        self._world.effect(self._replica.name, "delivery.requeue", self._delivery.requeue)


class Patience:
    """A `threading.Event` that nobody sets: to wait for it is to let the world go on."""

    def __init__(self, world: World, replica: Replica) -> None:
        self._world, self._replica = world, replica
        self._set = False

    def is_set(self) -> bool:
        return self._set

    def set(self) -> None:
        self._set = True

    def clear(self) -> None:
        self._set = False

    def wait(self, seconds: float) -> bool:
        self._world.live(seconds)
        if self._replica.dead:
            raise Killed
        return self._set


class Thread:
    """A thread of the acting replica: one more thing that can happen."""

    def __init__(self, world: World, target: Callable[[], None]) -> None:
        self._replica, self._target = world.acting[-1], target
        self._alive = False

    def start(self) -> None:
        self._alive = True
        self._replica.threads.append(self._main)

    def is_alive(self) -> bool:
        return self._alive

    def _main(self) -> None:
        self._target()
        self._alive = False


def subscription_of(runner: Coordinator) -> Subscription | None:
    found: Any = runner._subscription
    return found
