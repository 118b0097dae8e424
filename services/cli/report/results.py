"""Results of a job: the figures of each round, the learning curve, and the model.

The saved model is self-describing: it has the tensors as they were committed, and a header that says how to use them.
"""

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from services.cli.report import history, rows, saving
from services.cli.report.history import PastRound
from services.cli.report.progress import last_line, missing
from services.cli.servers import Servers
from services.cli.ui import output
from shared.aggregation.weights import METADATA, File
from shared.errors import BadInput
from shared.events import BlobRef, TrainingEnd
from shared.s3.store import Blobs

#: Metrics that a table shows first, with headings on two lines to be narrow. A metric that no round has is left out.
#: All others follow by name, including metrics of the user's code.
FIGURES = {
    "loss": "loss",
    "accuracy": "accuracy",
    "client_loss": "clients'\nloss",
    "client_accuracy": "clients'\nacc.",
    "local_loss": "held-out\nloss",
    "local_accuracy": "held-out\nacc.",
    "local_accuracy_worst_decile": "worst\ntenth",
}
OTHERS = 6  #: columns for other metrics; JSON and CSV have all of them
ALIGN = 64  #: bytes; aligns the data to a cache line, as in the committed model's file


def results(
    servers: Servers,
    job: str,
    *,
    export: Path | None,
    plot: Path | None,
    table: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Prints every committed round of a running or ended job, and saves the requested files."""
    for path in (export, plot, table):
        if path is not None:
            saving.check_target(path, force)
    spec = history.known_spec(servers.blobs, servers.ledger, job)
    rounds = history.rounds(servers.blobs, job)
    end = history.end(servers.blobs, job)
    if as_json:
        output.emit({
            "job": job,
            "rounds": [_document(past) for past in rounds],
            "result": end.model_dump(mode="json") if end else None,
        })  # fmt: skip
    else:
        _print(rounds)
        if told := _traffic(rounds):
            output.say(told)
        output.say(_ending(job, end, len(rounds) - 1, spec["rounds"]["count"]))
    if export is not None:
        model = end.model if end and end.model else _last_model(job, rounds)
        save_model(servers.blobs, model, metadata_of(job, spec, rounds, model), export)
        output.note(f"saved {export}: the model of digest {model.digest[:12]}, {export.stat().st_size} bytes")
    if table is not None:
        with saving.replacing(table) as fresh:
            rows.save(rounds, fresh)
        output.note(f"saved {table}")
    if plot is not None:
        from services.cli.report.plotting import learning_curve

        if len(rounds) < 2:
            raise BadInput(f"job {job} has no committed round to draw yet")
        with saving.replacing(plot) as fresh:
            learning_curve(job, rounds, fresh)
        output.note(f"saved {plot}")


def _ending(job: str, end: TrainingEnd | None, done: int, count: int) -> str:
    if end is None:
        return f"job {job} has not ended: {max(0, done)} of {count} rounds so far"
    if end.outcome == "finished":
        return last_line(end)
    reason = "; ".join(part for part in (end.reason, missing(end.missing)) if part)
    return f"job {job} {end.outcome} after {end.rounds} rounds: {reason}"


def _print(rounds: list[PastRound]) -> None:
    reported = history.reported(rounds)
    shown = [(name, title) for name, title in FIGURES.items() if name in reported]
    others = [name for name in reported if name not in FIGURES]
    titles = (*(title for _, title in shown), *(name.replace("_", "_\n") for name in others[:OTHERS]))
    columns = ("round", *titles, "updates", "rejected", "time")
    made = output.table(*columns, numbers=columns)
    for past in rounds:
        figures = past.figures
        made.add_row(
            str(past.number),
            *(output.figure(figures.get(name)) for name, _ in shown),
            *(output.in_four(figures.get(name)) for name in others[:OTHERS]),
            str(past.accepted),
            str(past.rejected),
            f"{past.manifest.seconds:.1f}",
        )
    output.Terminal().print(made)
    if len(others) > OTHERS:
        print(f"and {len(others) - OTHERS} more metrics; --json and --csv have all")


def _traffic(rounds: list[PastRound]) -> str:
    """Bytes transferred by all rounds after the first and by all evaluations; empty if not recorded."""
    known = [past for past in rounds if past.number and past.traffic.keys() >= {"up", "up_plain", "down"}]
    up, plain, down = (sum(past.traffic[name] for past in known) for name in ("up", "up_plain", "down"))
    if not up:
        return ""
    updates = sum(past.accepted for past in known)
    files = sum(past.traffic.get("files", 0) for past in known)
    folded = f" for {updates} updates in {files} files" if 0 < files < updates else ""
    fewer = f", {plain / up:.1f} times fewer than as float32" if up < plain else ""
    down += sum(past.traffic["evaluation"] for past in rounds)
    return f"updates: {output.size(up)} up{folded}{fewer}; models: {output.size(down)} down"


def _document(past: PastRound) -> dict[str, object]:
    about = {
        "updates": past.accepted,
        "rejected": past.rejected,
        "seconds": past.manifest.seconds,
        "traffic": past.traffic,
        "model": past.manifest.model.model_dump(),
        "metrics": past.figures,  # all metrics, because a name below may collide with a key of this document
    }
    return {"round": past.number, **{name: past.figures[name] for name in past.figures if name != "round"}, **about}


def _last_model(job: str, rounds: list[PastRound]) -> BlobRef:
    if not rounds:
        raise BadInput(f"job {job} has no model yet")
    return rounds[-1].manifest.model


def save_model(blobs: Blobs, model: BlobRef, about: Mapping[str, str], path: Path) -> None:
    """Saves a model as a safetensors file at `path` with `about` in its metadata; checks its digest while reading."""
    file = blobs.get(model)
    header, data = _header(file, about)
    with saving.replacing(path) as fresh, fresh.open("wb") as out:
        out.write(header)
        data.tofile(out)


def metadata_of(job: str, spec: Mapping[str, Any], rounds: list[PastRound], model: BlobRef) -> dict[str, str]:
    """Metadata of a model, as strings, because safetensors allows only those.

    `fedq.model` is the section of the job file; `fedq.inputs` is what round 0 recorded of the data: shape, classes,
    labels in the order of the logits, and the scaling: the model's input is (value - offset) / scale. It is left out
    if the round did not record it.
    """
    number = next((past.number for past in reversed(rounds) if past.manifest.model.digest == model.digest), None)
    described = rounds[0].manifest.inputs if rounds else None
    inputs = described.model_dump(mode="json") if described is not None else None
    found = {"model": spec["model"], "inputs": inputs, "round": number}
    told = {f"fedq.{key}": json.dumps(value, allow_nan=False) for key, value in found.items() if value is not None}
    return {**told, "fedq.job": job, "fedq.digest": model.digest, "fedq.version": version("fedq")}


def _header(file: File, about: Mapping[str, str]) -> tuple[bytes, File]:
    """The header of a model's file with `about` added to its metadata, and the data that follows it."""
    end = 8 + int.from_bytes(file[:8].tobytes(), "little")
    entries = json.loads(file[8:end].tobytes())
    metadata = {**entries.pop(METADATA, {}), **about}
    text = json.dumps({METADATA: metadata, **entries}, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(8 + len(text)) % ALIGN)
    return len(text).to_bytes(8, "little") + text, file[end:]
