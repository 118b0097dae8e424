"""Heartbeat of a trainer: it says every few seconds that it is alive and how busy it is."""

import threading
from collections.abc import Callable

import structlog

from shared import events
from shared.amqp.bus import Bus
from shared.errors import Unavailable
from shared.process.probes import Probes

log = structlog.get_logger()

GOODBYE = (
    2.0  #: seconds for the last heartbeat; if it fails, the registry waits until the trainer has been silent for long
)


class HeartbeatThread:
    """A thread that publishes what `describe(leaving)` returns, at once and then every `interval` seconds."""

    def __init__(self, bus: Bus, interval: float, describe: Callable[[bool], events.Heartbeat], probes: Probes) -> None:
        self._bus, self._interval, self._describe, self._probes = bus, interval, describe, probes
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Says goodbye, so that the registry need not wait for silence; the thread says it, as it may hang."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(GOODBYE)

    def _run(self) -> None:
        turning = self._probes.loop()
        self._say()
        while not turning.wait(self._stopping, self._interval):
            self._say()
        self._say(leaving=True)

    def _say(self, *, leaving: bool = False) -> None:
        try:
            self._bus.publish(self._describe(leaving))
        except Unavailable as error:
            log.warning("no heartbeat", reason=str(error))
