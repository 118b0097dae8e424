"""Verification of a job by `fedq verify`: takes a snapshot, checks each promise, and prints the findings."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.text import Text

from services.cli.servers import Servers
from services.cli.ui import output
from services.cli.verify import promises
from services.cli.verify.snapshot import Snapshot, Tell, gather

SHOWN = 10  #: problems of one promise on a terminal; --json has all of them


def verify(servers: Servers, job: str, as_json: bool) -> int:
    """Prints the findings and returns the exit code: 0 if every promise holds, else 1."""
    with _telling(as_json) as tell:
        snapshot = gather(servers, job, tell)
    findings = promises.judge(snapshot)
    holds = all(finding.holds for finding in findings)
    if as_json:
        output.emit({
            "job": job,
            "holds": holds,
            "status": _status(snapshot),
            "redis": snapshot.redis is not None,
            "promises": [finding.document() for finding in findings],
            "not_promised": promises.NOT_PROMISED,
        })  # fmt: skip
        return 0 if holds else 1
    terminal = output.Terminal()
    where = "bucket, Redis and dead letters" if snapshot.redis else "bucket and dead letters alone: Redis has lost it"
    terminal.print(Text(job, "bold"), f"{_status(snapshot)}; read from {where}")
    for finding in findings:
        mark, colour = ("✓", "green") if finding.holds else ("✗", "red")
        terminal.print(Text(mark, colour), Text(finding.promise, "bold"), f"{finding.says}: {finding.checked}")
        for problem in finding.problems[:SHOWN]:
            terminal.print(Text(f"     {problem}", "red"))
        if len(finding.problems) > SHOWN:
            terminal.print(f"     and {len(finding.problems) - SHOWN} more; --json has all of them")
        for note in finding.notes[:SHOWN]:
            terminal.print(f"     {note}")
    for sentence in promises.NOT_PROMISED:
        terminal.print(f"not promised: {sentence}")
    broken = [finding.promise for finding in findings if not finding.holds]
    terminal.print("every promise holds" if holds else Text(f"broken: {', '.join(broken)}", "red"))
    return 0 if holds else 1


def _status(snapshot: Snapshot) -> str:
    if snapshot.redis is not None:
        return snapshot.redis.after.status
    return snapshot.result.outcome if snapshot.result else "not ended"


@contextmanager
def _telling(as_json: bool) -> Iterator[Tell]:
    """Yields a function that shows the current step on a terminal, because many updates take a while."""
    if as_json or not sys.stderr.isatty():
        yield lambda _sentence: None
        return
    with Console(stderr=True).status("reading the record") as status:
        yield lambda sentence: status.update(Text(sentence))
