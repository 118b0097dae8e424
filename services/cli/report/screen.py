"""Views of a watched job: a live table on a terminal, a few lines per round in a file, or JSON for programs."""

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from services.cli.report.progress import EndedRound, JobProgress
from services.cli.report.watching import View
from services.cli.ui import output
from shared.events import AnyEvent, ModelEvaluated, ModelUpdate, RoundStart

PAUSE = 10.0  #: seconds between two lines that only report a round's progress
REASONS = 50  #: distinct reasons of clients' failures that are printed immediately
FRAME = 9  #: lines of the live table that are not rounds


@contextmanager
def view(as_json: bool) -> "Iterator[View]":
    """Yields the view that suits standard output."""
    if as_json:
        yield Lines()
    elif sys.stdout.isatty():
        screen = Screen()
        with Live(get_renderable=screen.picture, console=output.Terminal(), refresh_per_second=4) as live:
            screen.live = live
            yield screen
    else:
        yield PlainView()


class PlainView:
    """View as plain lines: each round's outcome and occasional progress, so that a long job's log stays readable.

    An event that only reports a round's progress is printed if no line was printed for `PAUSE` seconds; a new reason
    of a client's failure is always printed. The clients' evaluation arrives in parts: only the last part, which
    covers all clients, is printed, before the next event.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._printed = -math.inf
        self._measured = ""
        self._reasons: set[str] = set()

    def show(self, progress: JobProgress, sentence: str, event: AnyEvent | None = None, /) -> None:
        if isinstance(event, ModelEvaluated) and event.members and sentence:
            self._measured = sentence
            return
        if self._is_passing(event) and self._clock() - self._printed < PAUSE:
            return
        self._print(self._measured)
        self._measured = ""
        self._print(sentence if progress.end is None else "")

    def _is_passing(self, event: AnyEvent | None) -> bool:
        """Tells whether an event only reports a round's progress; the first failure with a new reason does not."""
        if isinstance(event, ModelUpdate) and event.error is not None and event.error not in self._reasons:
            self._reasons.add(event.error)
            return len(self._reasons) > REASONS
        return isinstance(event, RoundStart | ModelUpdate)

    def _print(self, sentence: str) -> None:
        if sentence:
            output.say(sentence)
            self._printed = self._clock()


class Lines:
    """View as lines of JSON: each event as the bus carries it, and `job-status` for changes found in the record."""

    def show(self, progress: JobProgress, sentence: str, event: AnyEvent | None = None, /) -> None:
        if not sentence:
            return
        if event is None:
            fields = {"job": progress.job, "status": progress.status, "detail": sentence}
            output.emit({"event": "job-status", **fields}, line=True)
            return
        left_out = {"spec"} if isinstance(event, RoundStart) else None  # `fedq show --json` prints the spec
        output.emit({"event": event.type, **event.model_dump(mode="json", exclude=left_out)}, line=True)


class Screen:
    """View as a live table, redrawn with each event and four times a second for its clock."""

    def __init__(self) -> None:
        self.live: Live | None = None
        self._progress: JobProgress | None = None
        self._round = -1
        self._since = time.monotonic()

    def show(self, progress: JobProgress, _sentence: str, _event: AnyEvent | None = None, /) -> None:
        self._progress = progress
        if progress.round != self._round:
            self._round, self._since = progress.round, time.monotonic()
        if self.live is not None:
            self.live.refresh()

    def picture(self) -> RenderableType:
        progress = self._progress
        if progress is None:
            return Text("")
        height = self.live.console.height if self.live is not None else 24
        rows = [progress.rows[number] for number in sorted(progress.rows) if number > 0][-max(3, height - FRAME) :]
        parts: list[RenderableType] = [self._head(progress)]
        if rows:
            parts += [Text(""), _table(rows)]
        if progress.end is None:
            parts += [Text(""), self._open_round(progress)]
        return Group(*parts)

    def _head(self, progress: JobProgress) -> RenderableType:
        head = Table.grid(padding=(0, 2))
        bar = ProgressBar(total=max(1, progress.count), completed=max(0, progress.committed), width=40)
        number = f"{max(0, progress.committed)}/{progress.count} rounds"
        head.add_row(Text(progress.job, style="bold"), bar, number, Text(progress.status, _COLOURS[progress.status]))
        return head

    def _open_round(self, progress: JobProgress) -> Text:
        line = Text()
        if progress.cohort and progress.round > progress.committed:
            line.append(f"round {progress.round}: ", "bold")
            line.append(f"{len(progress.answered)} of {progress.size} updates in")
            line.append(f", {time.monotonic() - self._since:.0f} s")
        if progress.failed:
            client, reason = next(iter(progress.failed.items()))
            line.append(f"\n{len(progress.failed)} failed, {client}: {reason}", "red")
        if waits_for := progress.note or progress.detail:
            line.append(f"\n{waits_for}" if line else waits_for, "yellow")
        return line


_COLOURS = {
    "queued": "yellow",
    "waiting": "yellow",
    "running": "cyan",
    "paused": "yellow",
    "finished": "green",
    "stopped": "magenta",
    "failed": "red",
}


def _table(rows: list[EndedRound]) -> Table:
    columns = ("round", "loss", "accuracy", "clients' loss", "clients' acc.", "updates", "rejected", "time")
    made = output.table(*columns, numbers=columns)
    for row in rows:
        made.add_row(
            str(row.number),
            output.figure(row.loss),
            output.figure(row.accuracy),
            output.figure(row.client_loss),
            output.figure(row.client_accuracy),
            str(row.updates),
            str(row.rejected or ""),
            f"{row.seconds:.1f}",
        )
    return made
