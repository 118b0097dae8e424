"""Receipts in the metadata of updates' blobs: enough to restore a `model-update` event that was lost.

Pure. The object store is the record, and `model-update` is only its doorbell. So a blob's metadata holds the contents
of the event: an aggregator that finds a blob in a round's `updates/` can receive it as if the event had come.
"""

import json
from collections.abc import Mapping
from typing import Any

from shared import names
from shared.errors import Refused
from shared.events import BlobRef, Inputs, ModelUpdate, StateRef
from shared.s3 import json_records
from shared.text import plain

MAX_METRICS = 1000  #: characters, with `inputs`; S3 keeps 2 KB of metadata, and a client may report more than that


def receipt(update: ModelUpdate) -> dict[str, Any]:
    """The metadata of an update's blob.

    It has no `metrics`, and so is no receipt, if `metrics` and `inputs` are too long, or if the blob is the partial
    fold of several clients, whose figures would not fit.
    """
    about: dict[str, Any] = {
        "job": update.job,
        "round": update.round,
        "attempt": update.attempt,
        "client": update.client,
        "trainer": update.trainer,
        "base": update.base or "",
        "examples": update.examples,
    }
    for name in ("loss", "accuracy"):
        if f"client_{name}" in update.metrics:
            about[name] = update.metrics[f"client_{name}"]
    if update.state is not None:
        about |= {"state": update.state.digest, "state-size": update.state.size}
    if update.members:
        return about
    metrics = json_records.dumps(update.metrics)
    # `json.dumps` escapes labels in other alphabets, because a store signs its headers as ASCII.
    inputs = "" if update.inputs is None else json.dumps(update.inputs.model_dump(mode="json"), separators=(",", ":"))
    if len(metrics) + len(inputs) <= MAX_METRICS and metrics.isascii():
        about["metrics"] = metrics
        if inputs:
            about["inputs"] = inputs
    return about


def told_again(key: str, size: int, metadata: Mapping[str, str]) -> ModelUpdate:
    """The event of the update at `key`, or `Refused` if its metadata does not hold enough."""
    try:
        update = ModelUpdate(
            job=metadata["job"],
            round=int(metadata["round"]),
            attempt=int(metadata["attempt"]),
            client=metadata["client"],
            trainer=metadata["trainer"],
            base=metadata.get("base") or None,  # a store may leave out an empty value
            update=BlobRef(key=key, size=size, digest=metadata["digest"]),
            examples=int(metadata["examples"]),
            metrics=json_records.figures(json_records.loads(key, metadata["metrics"].encode())),
            state=_state(metadata),
            inputs=Inputs.model_validate_json(metadata["inputs"]) if "inputs" in metadata else None,
        )
    except Exception as error:  # metadata of an unknown writer may raise any error in a parser
        raise Refused(f"{key}: its metadata does not tell of an update ({plain(str(error))[:300]})") from error
    if key != names.update_blob(update.job, update.round, update.client, metadata["digest"]):
        raise Refused(f"{key}: its metadata tells of another blob")
    return update


def _state(metadata: Mapping[str, str]) -> StateRef | None:
    digest = metadata.get("state")
    return None if digest is None else StateRef(size=int(metadata["state-size"]), digest=digest)
