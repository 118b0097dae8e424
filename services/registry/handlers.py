"""Handlers of a trainer that joins, leaves or falls silent, and the rule by which one counts as alive."""

import threading
from dataclasses import dataclass

import structlog

from shared.amqp.bus import Bus
from shared.errors import BadMessage, Unavailable
from shared.events import AnyEvent, Heartbeat, TrainerJoined
from shared.process.probes import Probes
from shared.redis.roster import Roster

log = structlog.get_logger()

AWAY = 1.0  #: seconds until the roster is tried again while Redis is away


def lease(interval: float, patience: int) -> float:
    """Seconds for which one heartbeat keeps a trainer alive: `patience` intervals of silence end it."""
    return interval * patience


@dataclass
class Counts:
    """Counts of events since this process started; each number is written by one thread only."""

    heartbeats: int = 0
    joined: int = 0
    left: int = 0
    lost: int = 0


class Registrar:
    """Keeper of the roster: it handles heartbeats, and ends the leases of trainers that send none."""

    def __init__(self, bus: Bus, roster: Roster, lease: float, probes: Probes) -> None:
        self.counts = Counts()
        self._bus = bus
        self._roster = roster
        self._lease = lease
        self._unannounced: set[str] = set()
        self._stopping = threading.Event()
        self._sweeping = probes.loop()
        self._sweeper = threading.Thread(target=self._sweep, name="sweeper", daemon=True)

    def start(self) -> None:
        self._sweeper.start()

    def stop(self) -> None:
        self._stopping.set()
        self._sweeper.join(1)

    def on_heartbeat(self, event: AnyEvent) -> None:
        """Renews a trainer's lease, or ends it if the heartbeat says that it leaves."""
        if not isinstance(event, Heartbeat):
            raise BadMessage(f"{event.type} is not a heartbeat")
        self.counts.heartbeats += 1
        if event.leaving:
            self._unannounced.discard(event.trainer)
            if self._roster.remove(event.trainer):
                self.counts.left += 1
                log.info("left", trainer=event.trainer, group=event.group)
            return
        if self._roster.admit(event, self._lease):
            self.counts.joined += 1
            self._unannounced.add(event.trainer)
            log.info("joined", trainer=event.trainer, group=event.group, host=event.host, slots=event.slots)
        # A new trainer is remembered until announced: a second try of this handler finds it in the roster already.
        if event.trainer in self._unannounced:
            self._bus.publish(TrainerJoined(trainer=event.trainer, group=event.group), required=False)
            self._unannounced.discard(event.trainer)

    def _sweep(self) -> None:
        """Logs each lost trainer in the moment its lease runs out."""
        while not self._stopping.is_set():
            try:
                for trainer in self._roster.sweep():
                    self.counts.lost += 1
                    log.warning("lost", trainer=trainer, silent_for=self._lease)
                first = self._roster.next_expiry()
                # The roster is empty, and the next trainer to join, at this replica or another, has a whole lease.
                wait = self._lease if first is None else first
            except Unavailable as error:
                log.warning("not swept", reason=str(error))
                wait = AWAY
            except Exception:
                log.exception("not swept")
                wait = AWAY
            self._sweeping.wait(self._stopping, wait)
