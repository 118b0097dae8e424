"""Log lines of all services about one job, sorted by time, from any orchestrator."""

import queue
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime

from rich.text import Text

from services.cli.ops.log_lines import LogLine, Reader
from services.cli.ops.orchestrators import On, tools
from services.cli.ops.orchestrators.choice import chosen
from services.cli.report.tables import in_short
from services.cli.ui import output
from shared.errors import BadInput
from shared.names import JOB_ID

SETTLING = 0.2  #: seconds by which lines of several services may arrive out of order
EVENT = len("round-start")  #: width of the column with the event's name, in characters
PAST = 5.0  #: seconds for past lines to arrive if more are to follow

_COLOURS = {"warning": "yellow", "error": "red", "critical": "red"}
_PLACED = (
    "event",
    "level",
    "timestamp",
    "service",
    "job",
    "exception",
)  #: fields that have a fixed place or are not shown


def logs(job: str, on: On | None, namespace: str | None, *, follow: bool, as_json: bool) -> None:
    """Prints the lines about `job`; with `follow`, also future lines until an interrupt."""
    if not re.fullmatch(JOB_ID, job):
        raise BadInput(f"{job or repr(job)} is no job's id, such as digits-k3x9qa; `fedq jobs` lists them")
    place = chosen(on, namespace, tuple(On))
    printer = _Printer(as_json)
    try:
        with tools.ending_in_order(), Reader(place.sources(follow), job) as reader:
            for line in _sorted(reader, follow):
                printer.show(line)
            failure = reader.failure
    except KeyboardInterrupt:
        if follow:
            return  # Ctrl-C is the normal end of following
        raise
    if failure is not None:
        raise failure
    if not printer.lines:
        output.note(f"no service of {place.place} has a line about job {job}")


def _sorted(reader: Reader, follow: bool) -> Iterator[LogLine]:
    """All lines sorted by time; with `follow`, first the past lines, then new ones in batches of `SETTLING` seconds."""
    held: list[LogLine] = []
    asked, due = datetime.now(UTC), 0.0
    began = time.monotonic()
    while True:
        left = due - time.monotonic() if held and follow else None
        try:
            if left is not None and left <= 0:
                raise queue.Empty
            line = reader.lines.get(timeout=left)
        except queue.Empty:
            yield from _in_order(held)
            continue
        if line is None:
            yield from _in_order(held)
            return
        now = time.monotonic()
        if not held or (line.at < asked and now < began + PAST):
            due = now + SETTLING
        held.append(line)


def _in_order(held: list[LogLine]) -> Iterator[LogLine]:
    yield from sorted(held, key=lambda line: line.at)
    held.clear()


class _Printer:
    """Printer of log lines on standard output."""

    def __init__(self, as_json: bool) -> None:
        self.lines = 0
        self._as_json = as_json
        self._terminal = output.Terminal()
        self._width = 0

    def show(self, line: LogLine) -> None:
        self.lines += 1
        if self._as_json:
            output.emit({"source": line.source, **line.fields}, line=True)
            return
        self._width = max(self._width, len(line.source))
        colour = _COLOURS.get(str(line.fields.get("level")), "")
        shown = Text(f"{line.at.astimezone():%H:%M:%S.%f}"[:-3], "dim")
        shown.append(f"  {line.source:<{self._width}}  ", "cyan")
        shown.append(f"{line.fields.get('event', '')!s:<{EVENT}}", colour or "bold")
        for name, value in line.fields.items():
            if name not in _PLACED and (told := in_short(value)):
                shown.append(f"  {name}=", "dim").append(told, colour)
        if exception := line.fields.get("exception"):
            shown.append(f"\n{exception}", colour)
        shown.rstrip()
        self._terminal.print(shown, soft_wrap=True)
