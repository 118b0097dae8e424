"""Processes of a slot for jobs with the user's code: one for each, so that the slot stays as it was.

Whatever the user's code leaves behind (a grad mode, a default dtype, a folder, threads, a changed module) ends with
that process. It starts with the job's first task here, in about a second, and ends when another such job needs its
place, or as soon as this trainer hears that its own is over. A task that goes on for a whole deadline after its round
hangs, and the process is killed: a step that is slow, or loads large data, has that time to come to its end.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import structlog

from services.trainer.signals import ROUND, Signals
from services.trainer.slot import job_process_main
from services.trainer.slot.warming import Place
from services.trainer.train_task import HandedBack, TrainTask
from shared.errors import Unavailable
from shared.events import EvaluateModel

log = structlog.get_logger()

WARM_UP = 120.0  #: seconds that such a process may take to import torch
HEED = 3.0  #: seconds that a task may still take after its job is over
LEAVE = 5.0  #: seconds in which the process may end by itself, once it closed its socket

_NAMES = {number.value: number.name for number in signal.Signals}


class _Child:
    """One such process: its start, its answers over a socket, and the reason of its end."""

    def __init__(self, place: Place) -> None:
        """Starts the process, and waits until it has imported torch; `Unavailable` if it is not ready in `WARM_UP`."""
        self._channel, theirs = socket.socketpair()
        told = {"place": asdict(place), "channel": theirs.fileno(), "parent": os.getpid()}
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", job_process_main.__name__, json.dumps(told)],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        self._channel.settimeout(WARM_UP)
        self._heard()
        # A client may train as long as its round lasts; stopping the slot kills both.
        self._channel.settimeout(None)

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, line: bytes) -> dict[str, str]:
        """The answer to a task; `Unavailable` if there is none, and then the process has ended."""
        try:
            self._channel.sendall(line)
        except OSError as error:
            raise self._ended() from error
        return self._heard()

    def kill(self) -> None:
        """Kills the process alone; the thread that waits for its answer sees it end."""
        self._process.kill()

    def close(self) -> None:
        """Ends the process with its whole group: the commands that the user's code has started."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._channel.close()

    def _heard(self) -> dict[str, str]:
        heard = b""
        try:
            while not heard.endswith(b"\n"):
                part = self._channel.recv(65536)
                if not part:
                    raise self._ended()
                heard += part
        except TimeoutError:
            self.close()
            raise Unavailable(f"the process for the job's own code was not ready in {WARM_UP:g} s") from None
        except ConnectionError as error:
            raise self._ended() from error
        try:
            found = json.loads(heard)
            return {"fate": found["fate"], "reason": found["reason"]}
        except (ValueError, KeyError, TypeError):  # the user's code wrote to the socket, or a fork of it answered too
            self.close()
            said = heard[:60].decode("ascii", "replace")
            raise Unavailable(f"the process for the job's own code said what is no answer: {said!r}") from None

    def _ended(self) -> Unavailable:
        """The reason why there is no answer, and no process any more."""
        try:
            self._process.wait(LEAVE)
        except subprocess.TimeoutExpired:
            self.close()
            return Unavailable("the process for the job's own code closed the socket that it answers on")
        self.close()
        code = self._process.returncode
        if code == -signal.SIGKILL:
            how = "was killed (SIGKILL), by lack of memory perhaps"
        elif code < 0:  # the kernel sends no other signal for lack of memory
            how = f"was killed ({_NAMES.get(-code, f'signal {-code}')})"
        else:
            how = f"ended with exit code {code}; its log has more"
        return Unavailable(f"the process for the job's own code {how}")


class JobProcess:
    """The process of a slot for the job that it now works for: one at a time, ended once its job is over."""

    def __init__(self, place: Place) -> None:
        self._place, self._signals = place, Signals(Path(place.signals))
        self._child: _Child | None = None
        self._work: TrainTask | EvaluateModel | None = None  # the latest task
        self._late: TrainTask | None = None  # the task that has outlasted its round, once
        self._over: TrainTask | EvaluateModel | None = None  # the task that was killed as it was not wanted any more
        self._busy = threading.Lock()
        threading.Thread(target=self._listen, name="job-process", daemon=True).start()

    def do(self, work: TrainTask | EvaluateModel, tries: int) -> None:
        """Has a task done, as `Slot.do` does it; `Unavailable` too if the process ended at it."""
        try:
            with self._busy:
                self._do(work, tries)
        except Unavailable:
            if self._over is not work:
                raise
            log.info("abandoned", job=work.job, round=work.round, reason="nobody waits for it any more")

    def _do(self, work: TrainTask | EvaluateModel, tries: int) -> None:
        if self._work is not None and self._work.job != work.job:
            self.close()
        answer = self._asked(work, tries)
        if answer["fate"] == job_process_main.RENEW:
            log.info("starts anew", job=work.job, reason="the job's code was changed")
            self.close()
            answer = self._asked(work, tries)
        match answer["fate"]:
            case job_process_main.HANDED_BACK:
                raise HandedBack(answer["reason"])
            case job_process_main.UNAVAILABLE:
                raise Unavailable(answer["reason"])

    def tidy(self) -> None:
        """Ends the process of a job that is over, or that has gone on without this slot."""
        with self._busy:
            if self._work is not None and self._signals.is_over(self._work.job, self._work.round + 1, 0, 0):
                self.close()

    def _listen(self) -> None:
        for line in self._signals.told():
            if line == ROUND:
                self._end_round()
            else:
                fence, _, job = line.partition(" ")
                self._end_job(job, int(fence))

    def _end_round(self) -> None:
        """Gives a task of a round that is over one more deadline of that round, then kills it."""
        work = self._work
        if not isinstance(work, TrainTask) or work is self._late or not self._busy.locked():
            return
        if self._signals.is_over(*work.work):
            self._late = work
            timer = threading.Timer(work.spec.rounds.deadline, self._kill, (work,))
            timer.daemon = True
            timer.start()

    def _end_job(self, job: str, fence: int) -> None:
        """Ends the process of a job that is over, within `HEED` seconds if it is at work."""
        work = self._work
        if work is None or work.job != job or (isinstance(work, TrainTask) and work.fence > fence):
            return
        if not self._busy.acquire(timeout=HEED):
            self._kill(work)
            return
        try:
            if self._work is work:
                self.close()
        finally:
            self._busy.release()

    def _kill(self, work: TrainTask | EvaluateModel) -> None:
        """Kills the process if it is still at this work; the thread that waits for its answer sees it end."""
        child = self._child
        if self._work is not work or child is None or not self._busy.locked():
            return
        self._over = work
        log.warning("killed what did not heed that it is over", job=work.job, round=work.round)
        child.kill()

    def close(self) -> None:
        """Ends the process, if there is one."""
        if self._child is not None:
            self._child.close()
        self._child = self._work = None

    def _asked(self, work: TrainTask | EvaluateModel, tries: int) -> dict[str, str]:
        if self._child is None or not self._child.is_alive:
            self.close()
            self._child = _Child(self._place)
        self._work = work
        try:
            return self._child.ask(job_process_main.line(work, tries))
        except Unavailable:
            self._child = self._work = None  # the process has ended
            raise
