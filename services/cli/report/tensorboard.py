"""A job as TensorBoard's event files; the only module that knows tensorboardX.

Each job has a folder of its own, and each tracking of it a file there. What earlier files have is not written again.
"""

import secrets
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from services.cli.report.trackers import Point, missing
from shared.errors import BadInput

try:
    from tensorboardX import SummaryWriter  # type: ignore[import-untyped]
    from tensorboardX.proto.event_pb2 import Event  # type: ignore[import-untyped]
except ModuleNotFoundError as error:
    raise missing("tensorboardX") from error

SETTINGS = "settings/text_summary"  #: the tag of a text that is added as "settings"
PARTS = struct.Struct("<QI")  # a record: its length, a checksum of that; the data, and a checksum of it
CHECKSUM = 4


class TensorBoard:
    """Writes into `<folder>/<job>`."""

    def __init__(self, folder: Path, job: str, spec: Mapping[str, Any]) -> None:
        place = folder / job
        self._known: set[tuple[str, int]] = set()
        try:
            place.mkdir(parents=True, exist_ok=True)
            for file in sorted(place.glob("events.out.tfevents.*")):
                self._known |= {(value.tag, event.step) for event in events(file) for value in event.summary.value}
            # Two files of one second would have one name.
            self._writer = SummaryWriter(str(place), filename_suffix=f".{secrets.token_hex(4)}")
        except OSError as error:
            raise BadInput(f"{place}: cannot be written: {error.strerror}") from error
        if (SETTINGS, 0) not in self._known:
            text = "\n".join(f"    {line}" for line in _yaml(spec).splitlines())  # indented: Markdown's way to quote
            self._writer.add_text(SETTINGS.partition("/")[0], text, 0)

    def add(self, points: Sequence[Point], /) -> None:
        for point in points:
            if (point.tag, point.round) not in self._known:
                self._known.add((point.tag, point.round))
                self._writer.add_scalar(point.tag, point.value, point.round, walltime=point.at)
        self._writer.flush()

    def end(self, _outcome: str | None, _at: float | None, /) -> None:
        self._writer.close()


def events(file: Path) -> Iterator[Event]:
    """The records of an event file, as far as they are whole: the last one may not be."""
    data = file.read_bytes()
    start = 0
    while start + PARTS.size <= len(data):
        length, _ = PARTS.unpack_from(data, start)
        body = data[start + PARTS.size : start + PARTS.size + length]
        if len(body) < length:
            return
        event = Event()
        event.ParseFromString(body)
        yield event
        start += PARTS.size + length + CHECKSUM


def _yaml(spec: Mapping[str, Any]) -> str:
    import yaml

    text: str = yaml.safe_dump(dict(spec), sort_keys=False, allow_unicode=True)
    return text
