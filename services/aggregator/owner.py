"""Which jobs this replica runs: takes them, keeps their leases, adopts what others left, hands over what it leaves."""

import queue
import threading

import structlog

from services.aggregator.runner import Edges, Runner
from shared import names, topology
from shared.bus import settle
from shared.errors import BadMessage, Fenced, Stale, Unavailable
from shared.events import AnyEvent, StartTraining
from shared.jobs import JobSpec
from shared.link import Delivery, Subscription

log = structlog.get_logger()

RETRY = 1.0  #: seconds until a replica that could not consume commands tries again


class Owner:
    """The jobs of one aggregator process."""

    def __init__(self, name: str, edges: Edges, *, lease: float, most: int) -> None:
        self.name = name
        self._edges = edges
        self._lease = lease
        self._most = most
        self._stopping = threading.Event()
        self._lock = threading.Condition()
        self._running: dict[str, tuple[Runner, threading.Thread]] = {}
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
        """Hands every job over and waits for the runners to have done so."""
        self._stopping.set()
        self._inbox.put(None)
        with self._lock:
            self._lock.notify_all()
            running = list(self._running.values())
        for runner, _ in running:
            runner.leave()
        for _, thread in running:
            thread.join(timeout)
        for thread in self._threads:
            thread.join(timeout)

    def _take_jobs(self) -> None:
        """Consumes commands while there is room, so that a full replica leaves them to the others."""
        subscription: Subscription | None = None
        while not self._stopping.is_set():
            with self._lock:
                self._lock.wait_for(lambda: len(self._running) < self._most or self._stopping.is_set())
            if self._stopping.is_set():
                break
            if subscription is None:
                inbox: queue.SimpleQueue[Delivery | None] = queue.SimpleQueue()
                self._inbox = inbox
                try:
                    subscription = self._edges.bus.consume(topology.commands(), inbox.put, prefetch=1)
                except Unavailable as error:
                    log.warning("no commands", reason=str(error))
                    self._stopping.wait(RETRY)
                    continue
            delivery = self._inbox.get()
            if delivery is None:
                break
            settle(self._edges.bus, delivery, self._on_command, self._stopping)
            with self._lock:
                full = len(self._running) >= self._most
            if full:
                self._edges.bus.cancel(subscription)
                subscription = None
        if subscription is not None:
            self._edges.bus.cancel(subscription)

    def _on_command(self, event: AnyEvent) -> None:
        if not isinstance(event, StartTraining):
            raise BadMessage(f"{event.type} is not a command for an aggregator")
        ledger = self._edges.ledger
        if self._edges.blobs.exists(names.result_blob(event.job)):
            raise Stale(f"job {event.job} has ended")
        ledger.create(event.job, event.spec.rounds.count)  # there already, unless another tool published it
        fence = ledger.claim(event.job, self.name, self._lease)
        record = {"job": event.job, "spec": event.spec.model_dump(mode="json")}
        self._edges.blobs.put_json(names.job_blob(event.job), record)
        self._run(event.job, event.spec, fence)

    def _run(self, job: str, spec: JobSpec, fence: int) -> None:
        runner = Runner(self._edges, job, spec, fence)

        def main() -> None:
            try:
                runner.run()
            finally:
                with self._lock:
                    self._running.pop(job, None)
                    self._lock.notify_all()

        thread = threading.Thread(target=main, name=job, daemon=True)
        with self._lock:
            self._running[job] = (runner, thread)
        log.info("took", job=job, fence=fence)
        thread.start()

    def _keep_leases(self) -> None:
        """Three times a lease: renews those held here, and adopts the jobs whose owner is gone."""
        while not self._stopping.wait(self._lease / 3):
            with self._lock:
                running = dict(self._running)
            try:
                for job, (runner, _) in running.items():
                    try:
                        self._edges.ledger.renew(job, runner.fence, self._lease)
                    except Fenced:
                        runner.fence_off()
                if len(running) < self._most:
                    self._adopt(set(running))
            except Unavailable as error:
                log.warning("leases not renewed", reason=str(error))
            except Exception:
                log.exception("leases not renewed")

    def _adopt(self, mine: set[str]) -> None:
        for job in set(self._edges.ledger.orphans()) - mine:
            try:
                fence = self._edges.ledger.claim(job, self.name, self._lease)
            except Stale:
                continue  # another replica was faster
            spec = JobSpec.model_validate(self._edges.blobs.get_json(names.job_blob(job))["spec"])
            self._run(job, spec, fence)
            return  # one a turn: the others are left to other replicas
