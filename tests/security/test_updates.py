"""What a client says and stores: whatever it is, that client is refused, and the job goes on."""

import json
import math
import struct
from typing import Any

import msgpack
import numpy as np
import pytest

from shared import names
from shared.aggregation import weights
from shared.errors import BadMessage
from shared.events import BlobRef, ModelUpdate, RoundStart, TrainingEnd, decode
from shared.record import receipts
from tests.integration.test_aggregator import UPDATES, Trainers, aggregators, spec, start, trainers, weight

__all__ = ["aggregators", "trainers"]  # fixtures

ONE = spec(rounds={"count": 1, "deadline": "60s", "minimum": 3})
HOSTILE = "client-1"


def crafted(shape: str, name: str = "b") -> np.ndarray:
    """A file of an update's size whose header says this."""
    header = f'{{"{name}":{{"dtype":"F32","shape":{shape},"data_offsets":[0,12]}}}}'.encode()
    whole = struct.pack("<Q", len(header)) + header
    return np.frombuffer(whole + bytes(UPDATES.file_size - len(whole)), np.uint8)


@pytest.mark.parametrize(
    ("shape", "name"),
    [
        ("[Infinity]", "b"),
        ("[1e400]", "b"),
        ("[NaN]", "b"),
        ("[1]", "\\ud800"),
        (f"[{'9' * 60}]", "b"),
        ("[true]", "b"),
    ],
)
@pytest.mark.parametrize("told", [True, False], ids=["told", "found"])
def test_no_header_ends_a_job(
    servers: Any, aggregators: Any, trainers: Trainers, shape: str, name: str, told: bool
) -> None:
    """A43, A44, A45: in an update that is told of, and in one that the aggregator finds when it looks itself."""
    aggregators()

    def answer(event: RoundStart, client: str) -> None:
        if event.round == 0 or client != HOSTILE:
            trainers.answer(event, client)
        elif told:
            trainers.send(event, client, crafted(shape, name))
        else:
            left_behind(trainers, event, client, crafted(shape, name))

    job = start(trainers, ONE)
    end = trainers.until(TrainingEnd, answer)

    assert (end.outcome, end.rounds) == ("finished", 1), end.reason
    manifest = servers.blobs().get_json(names.manifest_blob(job, 1))
    assert [update["client"] for update in manifest["updates"]] == ["client-0", "client-2", "client-3"]
    assert manifest["rejected"][HOSTILE].isprintable()


def left_behind(trainers: Trainers, event: RoundStart, client: str, file: np.ndarray) -> None:
    """An update in the store with its receipt, whose event was lost."""
    digest = weights.digest_of(file)
    key = names.update_blob(event.job, event.round, client, digest)
    assert event.base is not None
    update = ModelUpdate(
        job=event.job, round=event.round, attempt=event.attempt, client=client, trainer="t", base=event.base.digest,
        update=BlobRef(key=key, size=file.nbytes, digest=digest), examples=weight(client),
    )  # fmt: skip
    trainers.blobs.put(key, file, digest=digest, metadata=receipts.receipt(update))


def test_no_figure_ends_a_job_or_spoils_its_record(servers: Any, aggregators: Any, trainers: Trainers) -> None:
    """A46: NaN and Infinity as a client's metrics are null in a record that any parser reads, and the client counts."""
    aggregators()
    figures = {"client_loss": math.nan, "train_loss": math.inf, "auc": -math.inf, "client_accuracy": 0.5}

    def answer(event: RoundStart, client: str) -> None:
        changes = {"metrics": figures} if client == HOSTILE else {}
        trainers.send(event, client, trainers.file(event, client), **changes)

    job = start(trainers, ONE)
    end = trainers.until(TrainingEnd, answer)

    def strict(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    assert end.outcome == "finished"
    size, about = servers.blobs().stat(names.manifest_blob(job, 1))
    ref = BlobRef(key=names.manifest_blob(job, 1), size=size, digest=about["digest"])
    manifest = json.loads(servers.blobs().get(ref).tobytes(), parse_constant=strict)
    (theirs,) = (update["metrics"] for update in manifest["updates"] if update["client"] == HOSTILE)
    assert theirs == {"client_loss": None, "train_loss": None, "auc": None, "client_accuracy": 0.5}


def test_a_reason_with_escape_sequences_is_kept_without_them(
    servers: Any, aggregators: Any, trainers: Trainers
) -> None:
    """A47: what a client says of its failure reaches the record, and so every terminal, as text alone."""
    aggregators()
    hostile = "\x1b]0;owned\x07\x1b[2J\x1b[1;31mroot password: "

    def answer(event: RoundStart, client: str) -> None:
        changes: dict[str, Any] = {}
        if event.round and client == HOSTILE:
            changes = {"error": hostile, "update": None, "examples": 0}
        trainers.send(event, client, trainers.file(event, client), **changes)

    job = start(trainers, ONE)
    trainers.until(TrainingEnd, answer)
    manifest = servers.blobs().get_json(names.manifest_blob(job, 1))

    assert "root password: " in manifest["rejected"][HOSTILE]
    assert manifest["rejected"][HOSTILE].isprintable()
    assert all(line["detail"].isprintable() for line in servers.ledger().log(job))


@pytest.mark.parametrize(
    "body",
    [b"\x91" * 60_000, b"\xdf\xff\xff\xff\xff", b"\xdd\xff\xff\xff\xff", b"\x81\xa3job" + b"\x91" * 500 + b"\xc0",
     msgpack.packb({"schema": 1, "job": "../../etc-abc234"}), msgpack.packb({"schema": 2**63})],
)  # fmt: skip
def test_no_body_is_more_than_a_bad_message(body: bytes) -> None:
    """A49: depth, lengths that are not there, and names with dots and slashes."""
    with pytest.raises(BadMessage):
        decode("model-update", body)
