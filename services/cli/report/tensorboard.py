"""TensorBoard tracking: a job as event files; no other module imports tensorboardX.

Each job has a separate folder, with one file per `fedq track`. Figures in earlier files are not written again.
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

SETTINGS = "settings/text_summary"  #: the tag that tensorboardX gives to a text added as "settings"
# A record has its length, a checksum of the length, the data, and a checksum of the data.
PARTS = struct.Struct("<QI")
CHECKSUM = 4


class TensorBoard:
    """Sink that writes TensorBoard event files into `<folder>/<job>`."""

    def __init__(self, folder: Path, job: str, spec: Mapping[str, Any]) -> None:
        place = folder / job
        self._known: set[tuple[str, int]] = set()
        try:
            place.mkdir(parents=True, exist_ok=True)
            for file in sorted(place.glob("events.out.tfevents.*")):
                self._known |= {(value.tag, event.step) for event in events(file) for value in event.summary.value}
            # Without a suffix, two files created in the same second would have the same name.
            self._writer = SummaryWriter(str(place), filename_suffix=f".{secrets.token_hex(4)}")
        except OSError as error:
            raise BadInput(f"{place}: cannot be written: {error.strerror}") from error
        if (SETTINGS, 0) not in self._known:
            # An indented text is a code block in Markdown.
            text = "\n".join(f"    {line}" for line in _yaml(spec).splitlines())
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
    """The complete records of an event file; the last one may be cut off and is skipped."""
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
