"""Leases of this replica: it claims jobs, renews their leases, adopts jobs without an owner, and hands its jobs over.

A replica that was suspended and wakes finds its jobs fenced. If Redis was emptied, each replica restores it from the
object store.
"""

import queue
import threading

import structlog

from services.aggregator import recovery
from services.aggregator.coordinator import Coordinator, Edges
from shared import names
from shared.amqp import topology
from shared.amqp.bus import settle
from shared.amqp.connection import Delivery, Subscription
from shared.errors import BadMessage, Fenced, Stale, Unavailable
from shared.events import AnyEvent, StartTraining
from shared.process.probes import Probes

log = structlog.get_logger()

RETRY = 1.0  #: seconds before a failed attempt to consume commands or to restore Redis is repeated
NEVER = 2**62  #: a pulse later than any time of Redis: Redis has not been compared with the object store yet


class JobLeases:
    """The jobs of one aggregator process."""

    def __init__(self, name: str, edges: Edges, probes: Probes | None = None, *, lease: float, most: int) -> None:
        self.name = name
        self._edges = edges
        probes = probes or Probes()
        self._taking, self._keeping = probes.loop(), probes.loop()  # of the two threads below
        self._lease = lease
        self._most = most
        self._stopping = threading.Event()
        self._awake = threading.Event()  # wakes the thread that keeps leases
        self._pulse = NEVER  # Redis's time at this replica's last check, in ms since the epoch
        self._restoring: threading.Thread | None = None
        self._lock = threading.Condition()
        self._running: dict[str, tuple[Coordinator, threading.Thread]] = {}
        self._inbox: queue.SimpleQueue[Delivery | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=target, name=target.__name__, daemon=True)
            for target in (self._take_jobs, self._keep_leases)
        ]

    def start(self) -> None:
        self._edges.bus.declare(topology.commands(), topology.dead_letters())
        for thread in self._threads:
            thread.start()

    def stop(self, timeout: float) -> None:
        """Hands every job over, and waits at most `timeout` seconds for each thread to end."""
        self._stopping.set()
        self._awake.set()
        self._inbox.put(None)
        with self._lock:
            self._lock.notify_all()
            running = list(self._running.values())
        for coordinator, _ in running:
            coordinator.leave()
        for _, thread in running:
            thread.join(timeout)
        for thread in self._threads:
            thread.join(timeout)

    def _take_jobs(self) -> None:
        """Consumes commands while there is room for another job; a full replica leaves them to the others."""
        subscription: Subscription | None = None
        while not self._stopping.is_set():
            self._taking.turned()
            if subscription is not None and not self._room():
                self._edges.bus.cancel(subscription)  # also requeues the deliveries that were not settled
                subscription = None
            with self._lock:
                if not self._lock.wait_for(self._has_room, self._taking.interval):
                    continue
            if self._stopping.is_set():
                break
            subscription = subscription or self._subscribe()
            if subscription is None:
                continue
            try:
                delivery = self._inbox.get(timeout=self._taking.interval)
            except queue.Empty:
                continue
            if delivery is None:
                break
            if self._room():  # the other thread may have adopted jobs meanwhile
                settle(self._edges.bus, delivery, self._on_command, self._stopping)
        if subscription is not None:
            self._edges.bus.cancel(subscription)

    def _subscribe(self) -> Subscription | None:
        """Has the next command delivered to a new inbox; returns None, after a pause, if RabbitMQ is away."""
        inbox: queue.SimpleQueue[Delivery | None] = queue.SimpleQueue()
        self._inbox = inbox
        try:
            return self._edges.bus.consume(topology.commands(), inbox.put, prefetch=1)
        except Unavailable as error:
            log.warning("no commands", reason=str(error))
            self._stopping.wait(RETRY)
            return None

    def _room(self) -> bool:
        """Returns True if another job may run here, or if this replica stops and no thread should wait for room."""
        with self._lock:
            return self._has_room()

    def _has_room(self) -> bool:
        """Like `_room`, for a caller that holds the lock."""
        return len(self._running) < self._most or self._stopping.is_set()

    def _on_command(self, event: AnyEvent) -> None:
        """Records and claims the job of a start-training command, and runs it."""
        self._taking.turned()  # `settle` may try one command again for longer than a loop may go without a turn
        if not isinstance(event, StartTraining):
            raise BadMessage(f"{event.type} is not a command for an aggregator")
        ledger, blobs = self._edges.ledger, self._edges.blobs
        if blobs.exists(names.result_blob(event.job)):
            raise Stale(f"job {event.job} has ended")
        # The blob first, then the ledger's record that refers to it. `fedq start` has written both; another tool that
        # publishes the command may not have.
        if not blobs.exists(names.job_blob(event.job)):
            record = {"job": event.job, "spec": event.spec.model_dump(mode="json")}
            blobs.put_json(names.job_blob(event.job), record)
        ledger.create(event.job, event.spec.rounds.count)
        self._run(event.job, ledger.claim(event.job, self.name, self._lease))

    def _run(self, job: str, fence: int) -> None:
        """Starts a coordinator for a claimed job on a new thread."""
        coordinator = Coordinator(self._edges, job, fence)

        def main() -> None:
            try:
                coordinator.run()
            finally:
                with self._lock:
                    # A job that was paused and resumed may run here again already, under a newer coordinator.
                    if self._running.get(job, (None, None))[0] is coordinator:
                        del self._running[job]
                    self._lock.notify_all()
                self._awake.set()  # the coordinator may have released a job that can be adopted

        thread = threading.Thread(target=main, name=job, daemon=True)
        with self._lock:
            self._running[job] = (coordinator, thread)
        log.info("took", job=job, fence=fence)
        thread.start()

    def _keep_leases(self) -> None:
        """Renews the leases held here and adopts jobs without an owner: three times a lease, and when one runs out."""
        wait = 0.0
        while not self._stopping.is_set():
            self._keeping.wait(self._awake, wait)
            self._awake.clear()
            wait = self._lease / 3
            if self._stopping.is_set():
                return
            with self._lock:
                running = dict(self._running)
            try:
                self._watch_redis()
                self._renew(running)
                next_expiry = self._adopt(set(running))
                if next_expiry is not None:
                    wait = min(wait, next_expiry)
            except Unavailable as error:
                log.warning("leases not renewed", reason=str(error))
            except Exception:
                log.exception("leases not renewed")

    def _renew(self, running: "dict[str, tuple[Coordinator, threading.Thread]]") -> None:
        for job, (coordinator, _) in running.items():
            try:
                coordinator.want(self._edges.ledger.renew(job, coordinator.fence, self._lease))
            except Fenced:
                coordinator.fence_off()

    def _adopt(self, mine: set[str]) -> float | None:
        """Claims orphaned jobs while there is room; returns the seconds until the next lease runs out, or None."""
        orphans, next_expiry = self._edges.ledger.orphans()
        for job in orphans:
            if not self._room():
                return None
            if job in mine:
                continue  # its coordinator here is about to notice that the lease is lost
            try:
                fence = self._edges.ledger.claim(job, self.name, self._lease)
            except Stale:
                continue  # another replica was faster
            self._run(job, fence)
        return next_expiry

    def _watch_redis(self) -> None:
        """Starts a restore if Redis was emptied, or returned to an earlier state, since this replica's last check.

        Every replica checks and restores on its own, since the first one that notices may die, or lose Redis again.
        """
        stored, now = self._edges.ledger.pulse(self.name, self._pulse)
        if stored >= self._pulse:
            self._pulse = now
            return
        if self._restoring is not None and self._restoring.is_alive():
            return
        if self._pulse < NEVER:
            log.error("Redis lost what it had; restoring from the object store")
            self._edges.ledger.drop_owners(self._pulse)  # fences the owners that claimed a job before the loss
            self._pulse = NEVER
            self._edges.ledger.note("record-lost", "Redis lost what it had")
        self._restoring = threading.Thread(target=self._restore, name="restore", daemon=True)
        self._restoring.start()

    def _restore(self) -> None:
        """Restores Redis from the object store, on a separate thread so that leases are renewed meanwhile."""
        while not self._stopping.is_set():
            try:
                _, begun = self._edges.ledger.pulse(self.name, -1)
                restored = recovery.restore(self._edges.blobs, self._edges.ledger)
                stored, now = self._edges.ledger.pulse(self.name, begun)
                if stored < begun:
                    continue  # Redis lost its data again during the restore
                self._pulse = now
                if restored:
                    log.warning("restored from the object store", jobs=restored)
                    self._awake.set()
                    self._edges.ledger.note("restored", f"{restored} jobs")
                return
            except Unavailable as error:
                log.warning("not restored yet", reason=str(error))
                self._stopping.wait(RETRY)
                continue
            except Exception:
                log.exception("not restored")
                return
