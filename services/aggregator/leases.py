"""Which jobs this replica runs: takes them, keeps their leases, adopts what others left, hands over what it leaves.

A paused replica that wakes finds its jobs fenced; one whose Redis was emptied fills it again from the object store.
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

RETRY = 1.0  #: seconds until a replica that could not consume commands tries again
NEVER = 2**62  #: later than Redis's time: what Redis has is not known to be what the object store has


class JobLeases:
    """The jobs of one aggregator process."""

    def __init__(self, name: str, edges: Edges, probes: Probes | None = None, *, lease: float, most: int) -> None:
        self.name = name
        self._edges = edges
        probes = probes or Probes()
        self._taking, self._keeping = probes.loop(), probes.loop()
        self._lease = lease
        self._most = most
        self._stopping = threading.Event()
        self._awake = threading.Event()  # the keeper of leases has something to do
        self._pulse = NEVER  # Redis's time when this replica last looked, in ms
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
        """Hands every job over and waits for the coordinators to have done so."""
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
        """Consumes commands while there is room, so that a full replica leaves them to the others."""
        subscription: Subscription | None = None
        while not self._stopping.is_set():
            self._taking.turned()
            if subscription is not None and not self._room():
                self._edges.bus.cancel(subscription)  # what came and was not taken goes back with it
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
            if self._room():  # jobs may have been adopted meanwhile
                settle(self._edges.bus, delivery, self._on_command, self._stopping)
        if subscription is not None:
            self._edges.bus.cancel(subscription)

    def _subscribe(self) -> Subscription | None:
        """Has the next command delivered to a new inbox; None, after a while, where that cannot be."""
        inbox: queue.SimpleQueue[Delivery | None] = queue.SimpleQueue()
        self._inbox = inbox
        try:
            return self._edges.bus.consume(topology.commands(), inbox.put, prefetch=1)
        except Unavailable as error:
            log.warning("no commands", reason=str(error))
            self._stopping.wait(RETRY)
            return None

    def _room(self) -> bool:
        with self._lock:
            return self._has_room()

    def _has_room(self) -> bool:
        return len(self._running) < self._most or self._stopping.is_set()

    def _on_command(self, event: AnyEvent) -> None:
        self._taking.turned()  # each time it is tried
        if not isinstance(event, StartTraining):
            raise BadMessage(f"{event.type} is not a command for an aggregator")
        ledger, blobs = self._edges.ledger, self._edges.blobs
        if blobs.exists(names.result_blob(event.job)):
            raise Stale(f"job {event.job} has ended")
        # Blob first, then the record that points to it; both are there already, unless another tool published this.
        if not blobs.exists(names.job_blob(event.job)):
            record = {"job": event.job, "spec": event.spec.model_dump(mode="json")}
            blobs.put_json(names.job_blob(event.job), record)
        ledger.create(event.job, event.spec.rounds.count)
        self._run(event.job, ledger.claim(event.job, self.name, self._lease))

    def _run(self, job: str, fence: int) -> None:
        coordinator = Coordinator(self._edges, job, fence)

        def main() -> None:
            try:
                coordinator.run()
            finally:
                with self._lock:
                    if self._running.get(job, (None, None))[0] is coordinator:  # it may be here again, resumed
                        del self._running[job]
                    self._lock.notify_all()
                self._awake.set()  # it may have left a job to be adopted

        thread = threading.Thread(target=main, name=job, daemon=True)
        with self._lock:
            self._running[job] = (coordinator, thread)
        log.info("took", job=job, fence=fence)
        thread.start()

    def _keep_leases(self) -> None:
        """Three times a lease, and whenever one runs out: renews those held here, adopts what nobody owns."""
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
                soonest = self._adopt(set(running))
                wait = min(wait, wait if soonest is None else soonest)
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
        """Claims jobs while there is room; returns the seconds until another lease runs out."""
        orphans, soonest = self._edges.ledger.orphans()
        for job in orphans:
            if not self._room():
                return None
            if job in mine:
                continue  # its coordinator here is about to notice
            try:
                fence = self._edges.ledger.claim(job, self.name, self._lease)
            except Stale:
                continue  # another replica was faster
            self._run(job, fence)
        return soonest

    def _watch_redis(self) -> None:
        """Notices that Redis was emptied, or went back to an earlier state, since this replica last looked.

        Every replica notices for itself: the first one may die, or Redis be away again.
        """
        before, now = self._edges.ledger.pulse(self.name, self._pulse)
        if before >= self._pulse:
            self._pulse = now
            return
        if self._restoring is not None and self._restoring.is_alive():
            return
        if self._pulse < NEVER:
            log.error("Redis lost what it had; restoring from the object store")
            self._edges.ledger.drop_owners(self._pulse)  # whoever owns a job by what is gone
            self._pulse = NEVER
            self._edges.ledger.note("record-lost", "Redis lost what it had")
        self._restoring = threading.Thread(target=self._restore, name="restore", daemon=True)
        self._restoring.start()

    def _restore(self) -> None:
        """On a thread of its own: leases are renewed while the object store is read."""
        while not self._stopping.is_set():
            try:
                _, known = self._edges.ledger.pulse(self.name, -1)
                restored = recovery.restore(self._edges.blobs, self._edges.ledger)
                before, now = self._edges.ledger.pulse(self.name, known)
                if before < known:
                    continue  # lost again while it was restored
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
