"""Named points at which a test ends, stops or fails a process on purpose; inert unless `FEDQ_FAILPOINT` is set.

`FEDQ_FAILPOINT=name=kill@n` sends SIGKILL to the process when it reaches the point for the n-th time (the first if
`@n` is left out); `stop` sends SIGSTOP, `raise` raises. With `:path` after it, the first process to reach the point
makes that file, and the others pass: a process that is started again does not die again. Commas separate several
points. While none is set, a point costs one look at a dict. The idea is from FreeBSD's fail(9), as etcd uses it.
"""

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass

from shared.errors import BadInput, Unavailable

POINTS: dict[str, str] = {  #: every point, and the state of the work at it
    "aggregator.claimed": "owns a job, and has read nothing of it",
    "aggregator.resumed": "has read the record, and has done nothing",
    "aggregator.opened": "a round is in the ledger, and nobody has been asked",
    "aggregator.announced": "the cohort has been asked",
    "aggregator.received": "an update was checked, and is not counted",
    "aggregator.accepted": "an update was counted, and is not folded nor acknowledged",
    "aggregator.closed": "the accepted updates are frozen",
    "aggregator.stepped": "the next model is in memory alone",
    "aggregator.stored": "the next model is in the store, its manifest is not",
    "aggregator.recorded": "the manifest is in the store, the ledger does not know",
    "aggregator.committed": "the ledger knows, nobody has been told",
    "aggregator.told": "round-end was published",
    "aggregator.result": "result.json is in the store, the ledger does not know",
    "aggregator.ended": "the job has ended in the ledger, nobody has been told",
    "trainer.taken": "a task was taken, the base model is not here",
    "trainer.fetched": "the base model is here, training has not begun",
    "trainer.trained": "training is over, nothing was uploaded",
    "trainer.uploading": "a part of the update was sent",
    "trainer.uploaded": "the update is in the store, nobody has been told",
    "trainer.told": "model-update was published, the task is not acknowledged",
    "trainer.heard": "a round-start was heard, no task is on its queue",
    "trainer.dispatched": "the tasks are on their queue, the round-start is not acknowledged",
}

_ACTIONS = ("kill", "stop", "raise")


@dataclass
class _Armed:
    action: str
    left: int
    once: str = ""  # the file that the first process to act makes

    def is_due(self) -> bool:
        self.left -= 1
        if self.left != 0 or not self.once:
            return self.left == 0
        try:
            os.close(os.open(self.once, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return True


def parse(text: str) -> dict[str, _Armed]:
    """The points that the value of `FEDQ_FAILPOINT` sets, or `BadInput` that names the mistake in it."""
    armed = {}
    for part in filter(None, text.replace(" ", "").split(",")):
        name, _, rest = part.partition("=")
        about, _, once = rest.partition(":")
        action, _, count = about.partition("@")
        if name not in POINTS:
            raise BadInput(f"FEDQ_FAILPOINT: there is no point {name!r}; known: {', '.join(POINTS)}")
        if action not in _ACTIONS or not (count or "1").isdecimal() or int(count or "1") < 1:
            raise BadInput(f"FEDQ_FAILPOINT: {part!r} is not name=action@n:path; actions: {', '.join(_ACTIONS)}")
        armed[name] = _Armed(action, int(count or "1"), once)
    return armed


_armed: dict[str, _Armed] = {}
_watch: Callable[[str], None] | None = None


def arm(text: str | None = None) -> None:
    """Sets the points of `text`, or of `FEDQ_FAILPOINT`; a process calls this once when it begins."""
    _armed.clear()
    _armed.update(parse(os.environ.get("FEDQ_FAILPOINT", "") if text is None else text))


def watch(watcher: Callable[[str], None] | None) -> None:
    """Sets `watcher` to be called with the name of each point reached: a simulator kills by an exception from it."""
    global _watch  # noqa: PLW0603 - one watcher for one process
    _watch = watcher


def failpoint(name: str) -> None:
    """Marks a point at which a test may end, stop or fail this process."""
    if _watch is not None:
        _watch(name)
    if not _armed:
        return
    armed = _armed.get(name)
    if armed is not None and armed.is_due():
        print(f'{{"event": "failpoint", "name": "{name}", "action": "{armed.action}"}}', file=sys.stderr, flush=True)  # noqa: T201 - a log may be held back
        if armed.action == "raise":
            raise Unavailable(f"failpoint {name}")
        os.kill(os.getpid(), signal.SIGKILL if armed.action == "kill" else signal.SIGSTOP)
