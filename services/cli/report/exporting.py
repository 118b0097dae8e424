"""A model as a file that tells what it is: its tensors as they were committed, and in the header how to use them."""

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from services.cli.report import saving
from services.cli.report.history import PastRound
from shared.aggregation.weights import METADATA, File
from shared.events import BlobRef
from shared.s3.store import Blobs

_ALIGN = 64  #: bytes; the data begins where the model's own file has it begin, on a cache line


def export(blobs: Blobs, model: BlobRef, about: Mapping[str, str], path: Path) -> None:
    """Saves a model as a safetensors file at `path` with `about` in its metadata; its digest is checked on the way."""
    file = blobs.get(model)
    header, data = _header(file, about)
    with saving.replacing(path) as fresh, fresh.open("wb") as out:
        out.write(header)
        data.tofile(out)


def about(job: str, spec: Mapping[str, Any], rounds: list[PastRound], model: BlobRef) -> dict[str, str]:
    """Metadata of a model, as strings: safetensors allows no others.

    `fedq.model` is the section of the job file; `fedq.inputs` is what round 0 recorded of the data: shape, classes,
    labels in the order of the logits, and (value - offset) / scale as the model has a value. It is left out where the
    round did not record it.
    """
    number = next((past.number for past in reversed(rounds) if past.manifest["model"]["digest"] == model.digest), None)
    inputs = rounds[0].manifest.get("inputs") if rounds else None
    found = {"model": spec["model"], "inputs": inputs, "round": number}
    told = {f"fedq.{key}": json.dumps(value, allow_nan=False) for key, value in found.items() if value is not None}
    return {**told, "fedq.job": job, "fedq.digest": model.digest, "fedq.version": version("fedq")}


def _header(file: File, about: Mapping[str, str]) -> tuple[bytes, File]:
    """The header of a model's file with `about` added to its metadata, and the data after it."""
    end = 8 + int.from_bytes(file[:8].tobytes(), "little")
    entries = json.loads(file[8:end].tobytes())
    metadata = {**entries.pop(METADATA, {}), **about}
    text = json.dumps({METADATA: metadata, **entries}, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(8 + len(text)) % _ALIGN)
    return len(text).to_bytes(8, "little") + text, file[end:]
