"""Calls of `docker` and `kubectl`: their output, or an error that explains in a sentence why they failed."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import IO, NoReturn

from shared.errors import BadInput, FedqError, Unavailable

QUERY = 15.0  #: seconds that an answer may take
CHANGE = 900.0  #: seconds that a change may take, because a stopped trainer finishes its work first


class NotHere(BadInput):
    """Error raised if the program is not installed or not set up."""


_CAUSES: tuple[tuple[str, type[FedqError], str], ...] = (
    (
        r"current-context|cannot locate context|no configuration has been provided|localhost:8080 was refused",
        NotHere,
        "kubectl has no cluster to talk to: `kubectl config use-context NAME` chooses one",
    ),
    (
        r"\(Forbidden\)|is forbidden",
        Unavailable,
        "the cluster forbids it: {reason}; ask whoever runs it for that right",
    ),
    (r"\(Unauthorized\)|must be logged in", Unavailable, "the cluster does not know us: {reason}; log in again"),
    (
        r"connection to the server .* was refused|Unable to connect to the server|the server was unable to return",
        Unavailable,
        "the cluster does not answer: {reason}",
    ),
    (
        r"Cannot connect to the Docker daemon|failed to connect to the docker API",
        Unavailable,
        "Docker's daemon does not answer: start it",
    ),
    (
        r"permission denied while trying to connect",
        Unavailable,
        "Docker's daemon lets only its group in: join the group docker, or use sudo",
    ),
    (
        r"'compose' is not a docker command|unknown docker command|unknown shorthand flag|unknown flag: --project-name",
        NotHere,
        "Docker has no `compose` here: install its plugin, Compose v2",
    ),
)


@dataclass(frozen=True)
class Source:
    """Command that prints log lines."""

    service: str | None  # the service that wrote the lines; None if each line begins with its name
    command: tuple[str, ...]


def run(words: Sequence[str], *, seconds: float = QUERY) -> str:
    """Output of a command; `BadInput` or `Unavailable` if it fails, or takes longer than `seconds`."""
    try:
        done = subprocess.run(
            words,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
            stdin=subprocess.DEVNULL,
            env=environment(),
            check=False,
        )
    except FileNotFoundError:
        raise NotHere(f"{words[0]} is not installed here, or not on the PATH") from None
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{shown(words)} gave no answer within {seconds:g} s") from None
    if done.returncode:
        raise failure(words, done.stderr or done.stdout, done.returncode)
    return done.stdout


def begin(words: Sequence[str], errors: IO[str] | int) -> "subprocess.Popen[str]":
    """Starts a command whose output is read while it runs; its standard error goes to `errors`."""
    try:
        return subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            errors="replace",
            env=environment(),
            process_group=0,  # Ctrl-C reaches only this process, which ends the child in order
        )
    except FileNotFoundError:
        raise NotHere(f"{words[0]} is not installed here, or not on the PATH") from None


@contextmanager
def ending_in_order() -> Iterator[None]:
    """Makes SIGTERM and a closed terminal end the block as Ctrl-C does, so that no child process is left behind."""

    def end(number: int, _frame: FrameType | None) -> NoReturn:
        sys.exit(128 + number)

    # Under nohup, SIGHUP is ignored and must stay so.
    signals = [one for one in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(one) is not signal.SIG_IGN]
    before = {number: signal.signal(number, end) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def failure(words: Sequence[str], text: str, code: int) -> FedqError:
    """The error that a command reported in `text` before it ended with `code`."""
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [f"it ended with {code} and no word"]
    for pattern, kind, sentence in _CAUSES:
        for line in lines:
            if re.search(pattern, line):
                return kind(sentence.format(reason=_reason(line)))
    return Unavailable(f"{shown(words)} failed: {_reason(lines[-1])}")


def environment() -> dict[str, str]:
    """This process's environment without `FEDQ_*`, because these programs need no fedq passwords."""
    return {name: value for name, value in os.environ.items() if not name.startswith("FEDQ_")}


def shown(words: Sequence[str]) -> str:
    """A command as quoted in a sentence: the program and its verb, without flags."""
    return f"`{' '.join([word for word in words if not word.startswith('-')][:3])}`"


def _reason(line: str) -> str:
    line = line.removesuffix(" - did you specify the right host or port?")
    return re.sub(r"^(error|Error response from daemon|Error from server( \(\w+\))?): ", "", line).rstrip(".")
