"""Log lines of several services, read as they come, in the services' JSON or console format."""

import json
import queue
import re
import subprocess
import tempfile
import threading
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import IO, Any, Self

from services.cli.ops.orchestrators import tools
from services.cli.ops.orchestrators.tools import Source
from shared.errors import FedqError

ENDING = 5.0  #: seconds for a process that reads logs to end

_PREFIXES = (
    re.compile(r"\[pod/(?P<source>[^/\]]+)[^\]]*\] (?P<text>.*)"),  # the prefix of kubectl
    re.compile(r"(?P<source>[\w.-]+) +\| ?(?P<text>.*)"),  # the prefix of docker compose
)
_CONSOLE = re.compile(
    r"(?P<timestamp>\d{4}-\d\d-\d\d[T ][\d:.]+Z?) \[(?P<level>\w+) *\] (?P<event>.*?) *(?P<fields>\w+=.*)?"
)
_FIELD = re.compile(r"(\w+)=('(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|\S*)")
_CONTROL = re.compile(r"\x1b\[[0-9;]*[A-Za-z]|\r")  #: colors, and what docker compose prints before each line


@dataclass(frozen=True)
class LogLine:
    """Line of a service's log, or a continuation of the line before it, such as a line of a traceback."""

    source: str  # the replica that wrote it
    at: datetime
    fields: dict[str, Any]
    text: str  # as it was written; for a continuation, the text of the line that it continues


class Reader:
    """Reader of the log lines about a job from all `sources` into `lines`; a None follows once all have ended."""

    def __init__(self, sources: Iterable[Source], job: str) -> None:
        self.lines: queue.SimpleQueue[LogLine | None] = queue.SimpleQueue()
        self.failure: FedqError | None = None  # the error of a source, set once all have ended
        self._named = re.compile(rf"(?<![a-z0-9-]){re.escape(job)}(?![a-z0-9-])")
        self._sources = list(sources)
        self._left = len(self._sources)
        self._lock = threading.Lock()
        self._processes: list[subprocess.Popen[str]] = []
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        if not self._sources:
            self.lines.put(None)
        for source in self._sources:
            errors: IO[str] = tempfile.TemporaryFile("w+", errors="replace")
            process = tools.begin(source.command, errors)
            thread = threading.Thread(target=self._read, args=(source, process, errors), daemon=True)
            self._processes.append(process)
            self._threads.append(thread)
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for process in self._processes:
            with suppress(ProcessLookupError):
                process.terminate()
        for thread in self._threads:
            thread.join(ENDING)

    def _read(self, source: Source, process: "subprocess.Popen[str]", errors: IO[str]) -> None:
        last: dict[str, LogLine] = {}
        complaint = ""  # an error of kubectl, which continues with the other containers
        with errors:
            with process:
                for raw in process.stdout or ():
                    if source.service is None and raw.startswith("error: "):
                        complaint = raw
                    line = _parsed(raw.rstrip("\n"), source.service, last)
                    if line is not None:
                        last[line.source] = line
                        if self._named.search(line.text):
                            self.lines.put(line)
            if process.returncode > 0:
                errors.seek(0)
                self.failure = tools.failure(source.command, errors.read(), process.returncode)
            elif complaint and not last:  # kubectl could not read a single log
                self.failure = tools.failure(source.command, complaint, process.returncode)
        with self._lock:
            self._left -= 1
            if not self._left:
                self.lines.put(None)


def _parsed(raw: str, source: str | None, last: dict[str, LogLine]) -> LogLine | None:
    """A parsed log line; None for a line without a time if no line comes before it."""
    text = _CONTROL.sub("", raw)
    if source is None:
        found = next((found for pattern in _PREFIXES if (found := pattern.fullmatch(text))), None)
        if found is None:
            return None  # the program that reads the logs wrote it, not a service
        source, text = found["source"], found["text"]
    fields = _fields(text)
    if fields is not None:
        with suppress(KeyError, ValueError, TypeError):
            at = datetime.fromisoformat(fields["timestamp"])
            return LogLine(source, at.astimezone(), fields, text)
    before = last.get(source)
    return None if before is None else LogLine(source, before.at, {"event": text}, before.text)


def _fields(text: str) -> dict[str, Any] | None:
    if text.startswith("{"):
        with suppress(ValueError):
            found: dict[str, Any] = json.loads(text)
            return found
    if (console := _CONSOLE.fullmatch(text)) is None:
        return None
    named = {name: value.strip("'\"") for name, value in _FIELD.findall(console["fields"] or "")}
    return {"timestamp": console["timestamp"], "level": console["level"], "event": console["event"], **named}
