"""The object store as it is, and as it must not be trusted to be."""

import hashlib
import http.server
import multiprocessing
import resource
import secrets
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from minio import Minio
from pydantic import SecretStr

from shared import names
from shared.errors import BadInput, Refused, Unavailable
from shared.events import BlobRef
from shared.process import settings
from shared.record import parts
from shared.s3 import store as module
from shared.s3.store import PATIENCE, PIECE, Blobs, NotFound
from tests.conftest import Servers

SECONDS = 60.0


@pytest.fixture
def blobs(servers: Servers) -> Blobs:
    return servers.blobs()


@pytest.fixture
def folder() -> str:
    """A prefix of this test's own: the bucket is shared."""
    return f"jobs/t-{secrets.token_hex(3)}"


def minio(servers: Servers) -> tuple[Minio, str]:
    """minio-py as anybody would use it, and the bucket."""
    own = servers.settings(settings.Store)
    client = Minio(
        urlsplit(own.s3_url.get_secret_value()).netloc,
        own.s3_access_key.get_secret_value(),
        own.s3_secret_key.get_secret_value(),
        secure=False,
        region=own.s3_region,
    )
    return client, own.s3_bucket


def closed_port() -> int:
    """One where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def changed(servers: Servers, **changes: Any) -> Blobs:
    return Blobs(servers.settings(settings.Store).model_copy(update=changes))


# --- the server as it is ------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, PIECE, PIECE + 1, 5_000_000])
def test_what_is_put_is_got(blobs: Blobs, folder: str, size: int) -> None:
    """To the byte, of any size, from bytes and from an array; the reference is the digest's and the size's."""
    body = np.random.default_rng(size).integers(0, 256, size, np.uint8)
    ref = blobs.put(f"{folder}/array", body)
    other = blobs.put(f"{folder}/bytes", body.tobytes())

    assert ref == BlobRef(key=f"{folder}/array", size=size, digest=hashlib.sha256(body).hexdigest())
    assert other.digest == ref.digest
    assert np.array_equal(blobs.get(ref), body)
    assert np.array_equal(blobs.get(other), body)


@pytest.mark.parametrize(
    "name",
    [
        "a b", "ü", "漢字/ẞ", "a+b", "a%20b", "a&b=c", "(a)'b'!*", "#?;,@$", "~-_.", '"quoted"', "a:b", "k" * 200,
        ".hidden", "a/b/c/d",
    ],
)  # fmt: skip
def test_odd_keys_are_keys(servers: Servers, blobs: Blobs, folder: str, name: str) -> None:
    """Signed, listed, read and removed as they are written; minio-py sees the same name."""
    key = f"{folder}/{name}"
    ref = blobs.put(key, name.encode())
    client, bucket = minio(servers)

    assert blobs.get(ref).tobytes() == name.encode()
    assert blobs.list(f"{folder}/") == [key]
    assert client.stat_object(bucket, key).size == ref.size
    assert blobs.delete(key) == 1
    assert not blobs.exists(key)


def test_metadata_stands_beside_the_blob(servers: Servers, blobs: Blobs, folder: str) -> None:
    """Any S3 client shows what a blob is, without downloading it."""
    about = {"job": "t-abc234", "round": 3, "client": "client-01", "examples": 57}
    ref = blobs.put(f"{folder}/described", b"body", metadata=about)
    client, bucket = minio(servers)
    found = {name.lower(): value for name, value in client.stat_object(bucket, ref.key).metadata.items()}

    assert {name: found[f"x-amz-meta-{name}"] for name in about} == {name: str(value) for name, value in about.items()}
    assert found["x-amz-meta-digest"] == ref.digest


def test_putting_again_changes_nothing(blobs: Blobs, folder: str) -> None:
    """The same key and body, as often as a retry likes."""
    refs = {blobs.put(f"{folder}/blob", b"body") for _ in range(3)}

    assert len(refs) == 1
    assert blobs.list(f"{folder}/") == [f"{folder}/blob"]
    assert blobs.get(refs.pop()).tobytes() == b"body"


def test_a_blob_that_is_another_is_refused(blobs: Blobs, folder: str) -> None:
    """One of the right size and the wrong digest, with both digests' beginnings."""
    ref = blobs.put(f"{folder}/blob", b"body")
    wrong = ref.model_copy(update={"digest": "0" * 64})
    with pytest.raises(Refused, match=rf"^{folder}/blob: its digest is {ref.digest[:12]}… instead of 000000000000…$"):
        blobs.get(wrong)


@pytest.mark.parametrize("size", [0, 3, 5, 5_000_000])
def test_a_blob_of_another_size_is_refused(blobs: Blobs, folder: str, size: int) -> None:
    """Before its bytes are received."""
    ref = blobs.put(f"{folder}/blob", b"body")
    with pytest.raises(Refused, match=rf"^{folder}/blob has 4 bytes instead of {size}$"):
        blobs.get(ref.model_copy(update={"size": size}))


def test_a_buffer_of_another_size_is_a_bug(blobs: Blobs, folder: str) -> None:
    """The caller's own, so it is no refusal."""
    ref = blobs.put(f"{folder}/blob", b"body")
    with pytest.raises(ValueError, match="a buffer of 5 bytes for 4"):
        blobs.get_into(ref, np.empty(5, np.uint8))


def test_what_is_missing_is_not_found(blobs: Blobs, folder: str) -> None:
    """Named, with where it was looked for."""
    absent = BlobRef(key=f"{folder}/absent", size=1, digest="0" * 64)
    for look in (lambda: blobs.get(absent), lambda: blobs.get_json(absent.key)):
        with pytest.raises(NotFound, match=rf"^{blobs.place} has no {absent.key}$"):
            look()
    assert not blobs.exists(absent.key)


def test_records_are_json_for_people(servers: Servers, blobs: Blobs, folder: str) -> None:
    """Indented, in the order they were written, and read as they were."""
    record = {"job": "t", "round": 1, "metrics": {"b": 0.5, "a": None}, "name": "ü"}
    ref = blobs.put_json(f"{folder}/record.json", record)

    assert blobs.get_json(ref.key) == record
    assert list(blobs.get_json(ref.key)["metrics"]) == ["b", "a"]
    assert b'\n  "round": 1,\n' in blobs.get(ref).tobytes()


@pytest.mark.parametrize("body", [b"[1]", b"3", b"", b"{", b"not json", b"\xff\xfe\x00"])
def test_what_is_no_record_is_refused(blobs: Blobs, folder: str, body: bytes) -> None:
    """By name, whatever lies there."""
    blobs.put(f"{folder}/record.json", body)
    with pytest.raises(Refused, match=f"^{folder}/record.json: not a JSON object"):
        blobs.get_json(f"{folder}/record.json")


def test_what_could_not_be_read_is_not_written(blobs: Blobs, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit of a record is one for those who write as for those who read."""
    monkeypatch.setattr(module, "MAX_RECORD", 100)
    with pytest.raises(BadInput, match=f"^{folder}/record.json: a record of 1.. bytes could not be read again"):
        blobs.put_json(f"{folder}/record.json", {"name": "x" * 90})
    assert not blobs.exists(f"{folder}/record.json")


def test_a_record_of_200_000_clients_is_written_and_read_in_bounded_memory(servers: Servers, folder: str) -> None:
    """The texts come to 100 MB, more than may be one record, and one part of 20 is in memory at a time."""
    own = servers.settings(settings.Store)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
        head, before, writing, reading = fresh.submit(round_trip, own, f"{folder}/manifest.json").result(SECONDS * 5)

    assert sum(part["size"] for part in head["parts"]) > 100_000_000
    assert (parts.count(head, "updates"), len(head["parts"])) == (200_000, 20)
    assert writing - before < 90, "lists of all entries by name, and a part"
    assert reading - before < 150, "a part, and its text"


def round_trip(own: settings.Store, key: str) -> tuple[dict[str, Any], float, float, float]:
    """Writes and reads a record in a process of its own: its head, and the process's peak in MB at each step."""
    blobs, many = Blobs(own), 200_000
    clients = [f"client-{number:06d}" for number in range(many)]
    about = {
        "trainer": "trainer-abcdef",
        "blob": {"key": f"jobs/many/{'k' * 100}", "size": 1 << 20, "digest": "d" * 64},
        "metrics": dict.fromkeys(("client_loss", "client_accuracy", "train_loss"), 0.123456789012345),
        "timings": dict.fromkeys(("wait", "fetch", "evaluate", "train", "upload", "total"), 0.123456),
    }
    updates = [{"client": client, **about} for client in clients]
    record = {"job": "many-abc234", "cohort": clients, "updates": updates, "rejected": {}}
    peaks = [peak_mb()]
    blobs.put_json(key, parts.split(blobs, key, record, ("cohort", "updates", "rejected")))
    peaks.append(peak_mb())
    head, place = blobs.get_json(key), 0
    for piece in parts.pieces(blobs, key, head):
        following = place + len(piece["cohort"])
        assert (piece["cohort"], piece["updates"]) == (clients[place:following], updates[place:following])
        place = following
    assert place == many
    return head, peaks[0], peaks[1], peak_mb()


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


def test_keys_are_listed_in_order_and_removed_by_prefix(blobs: Blobs, folder: str) -> None:
    """A folder's, and not those of one whose name begins like it."""
    keys = [f"{folder}/{name}" for name in ("b/2", "a", "b/1", "b/c/3", "bc")]
    for key in keys:
        blobs.put(key, b"")

    assert blobs.list(f"{folder}/") == sorted(keys)
    assert blobs.list(f"{folder}/b/") == [f"{folder}/b/1", f"{folder}/b/2", f"{folder}/b/c/3"]
    assert blobs.delete(f"{folder}/b/") == 3
    assert blobs.list(f"{folder}/") == [f"{folder}/a", f"{folder}/bc"]
    assert blobs.delete(f"{folder}/b/") == 0
    assert blobs.list(f"{folder}/b/") == []


def test_the_probe_leaves_nothing(blobs: Blobs) -> None:
    """It names the server."""
    assert "Seaweed" in blobs.probe()
    assert blobs.list("probe/") == []


@pytest.mark.parametrize(
    "step",
    [
        lambda blobs: blobs.get_json("any"),
        lambda blobs: blobs.list("any"),
        lambda blobs: blobs.probe(),
        lambda blobs: blobs.get(BlobRef(key="any", size=1, digest="0" * 64)),
    ],
    ids=["get_json", "list", "probe", "get"],
)
def test_a_missing_bucket_is_explained(servers: Servers, step: Callable[[Blobs], Any]) -> None:
    """And is not made in passing."""
    with pytest.raises(
        Unavailable, match=r"/no-such-bucket: there is no such bucket; create it or set FEDQ_S3_BUCKET$"
    ):
        step(changed(servers, s3_bucket="no-such-bucket"))
    client, _ = minio(servers)
    assert not client.bucket_exists("no-such-bucket")


@pytest.mark.parametrize("mistake", ["s3_access_key", "s3_secret_key"])
@pytest.mark.parametrize(
    "step",
    [lambda blobs: blobs.put("any", b"1"), lambda blobs: blobs.get_json("any"), lambda blobs: blobs.exists("any")],
    ids=["put", "get_json", "exists"],
)
def test_wrong_keys_are_explained(servers: Servers, mistake: str, step: Callable[[Blobs], Any]) -> None:
    """With the variables to look at, and without their values."""
    variables = f"FEDQ_S3_ACCESS_KEY, FEDQ_S3_SECRET_KEY|FEDQ_{mistake.upper()}"  # S3 tells which, in what has a body
    with pytest.raises(Unavailable, match=rf"refuses these credentials .* check ({variables})") as caught:
        step(changed(servers, **{mistake: SecretStr("s3cret")}))
    assert "s3cret" not in str(caught.value)


def test_a_server_that_is_not_there_is_explained(servers: Servers) -> None:
    """After a few tries, with the address."""
    nowhere = changed(servers, s3_url=SecretStr(f"http://127.0.0.1:{closed_port()}"))
    with pytest.raises(Unavailable, match=r"cannot be reached \(.*refused.*\); check FEDQ_S3_URL$"):
        nowhere.exists("any")


def test_a_trainers_key_writes_updates_and_nothing_else(servers: Servers, blobs: Blobs, folder: str) -> None:
    """It reads all of the bucket; whatever it tries elsewhere, models and records stay as they are."""
    job = folder.removeprefix("jobs/")
    trainer = servers.blobs("trainer")
    model = blobs.put(names.model_blob(job, 1, "1" * 64), b"model")
    blobs.put_json(names.job_blob(job), {"job": job})
    update = trainer.put(names.update_blob(job, 1, "client-0", "2" * 64), b"update", metadata={"client": "client-0"})

    assert blobs.get(update).tobytes() == b"update"
    assert trainer.get(model).tobytes() == b"model"
    assert trainer.get_json(names.job_blob(job)) == {"job": job}
    for key in (model.key, names.job_blob(job), names.manifest_blob(job, 1), names.final_model_blob(job), "other/x"):
        with pytest.raises(Unavailable, match=r"refuses these credentials \(AccessDenied\)"):
            trainer.put(key, b"evil")
    for key in (model.key, names.job_blob(job)):
        with pytest.raises(Unavailable, match=f"did not remove {key}"):
            trainer.delete(key)
    assert blobs.get(model).tobytes() == b"model"
    assert not blobs.exists(names.manifest_blob(job, 1))


# --- a server with faults -----------------------------------------------------------------------


@dataclass
class Faulty:
    """A fake S3 server, because a fault must be scripted: each request asks `faults` how it fails, in turn.

    It stores what it receives whole, checks no signature, and counts.
    """

    faults: dict[str, list[str]] = field(default_factory=dict)  # method → what happens to its next requests
    stored: dict[str, tuple[bytes, dict[str, str]]] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    page: bytes = b""  # the body of an answer that refuses an upload
    pace: float = 0.0  # seconds that it takes to read a quarter of a megabyte
    url: str = ""

    def blobs(self, patience: float = PATIENCE) -> Blobs:
        return Blobs(
            settings.Store(s3_url=SecretStr(self.url), s3_access_key=SecretStr("a"), s3_secret_key=SecretStr("b")),
            patience=patience,
        )


class Handler(http.server.BaseHTTPRequestHandler):
    """One connection to the fake."""

    protocol_version = "HTTP/1.1"
    timeout = SECONDS

    @property
    def faulty(self) -> Faulty:
        return self.server.faulty  # type: ignore[attr-defined,no-any-return]

    def handle(self) -> None:
        try:
            super().handle()
        except ConnectionError:
            self.close_connection = True  # who gives up on us is told nothing more

    def do_PUT(self) -> None:
        fault = self.fault()
        body = bytearray()
        while left := int(self.headers["Content-Length"]) - len(body):
            if self.faulty.pace:
                threading.Event().wait(self.faulty.pace)
            piece = self.rfile.read(min(left, 1 << 18))
            if not piece:
                return
            body += piece
        if not fault.isdigit():
            about = {name: value for name, value in self.headers.items() if name.startswith("x-amz-meta-")}
            self.faulty.stored[unquote(self.path)] = bytes(body), about
        self.answer(fault, self.faulty.page if fault else b"")

    def do_GET(self) -> None:
        fault = self.fault()
        body, about = self.faulty.stored[unquote(self.path)]
        self.answer(fault, body, about)

    def do_HEAD(self) -> None:
        fault = self.fault()
        if unquote(self.path) not in self.faulty.stored:
            fault = fault or "404"
        body, about = self.faulty.stored.get(unquote(self.path), (b"", {}))
        self.answer(fault, body, about)

    def fault(self) -> str:
        self.faulty.requests.append(self.command)
        planned = self.faulty.faults.get(self.command, [])
        return planned.pop(0) if planned else ""

    def answer(self, fault: str, body: bytes, about: dict[str, str] | None = None) -> None:
        if fault == "drop":
            self.close_connection = True
            return
        self.send_response(int(fault) if fault.isdigit() else 200)
        for name, value in (about or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Last-Modified", "Sat, 01 Jan 2000 00:00:00 GMT")
        self.end_headers()
        if fault == "flip":
            body = bytes([body[0] ^ 1]) + body[1:]
        if fault == "cut":
            body, self.close_connection = body[: len(body) // 2], True
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def faulty() -> Iterator[Faulty]:
    found = Faulty()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.faulty = found  # type: ignore[attr-defined]
        server.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)  # a slow reader is felt at once
        found.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield found
        server.shutdown()
        thread.join(SECONDS)


BODY = bytes(range(256)) * 4000


@pytest.mark.parametrize("status", ["429", "500", "503"])
def test_an_upload_outlasts_a_server_that_is_busy(faulty: Faulty, status: str) -> None:
    """Twice, and then it takes the whole body again; each time it is asked first whether it is there."""
    faulty.faults["PUT"] = [status, status]
    ref = faulty.blobs().put("a/b", BODY, metadata={"job": "t"})

    assert faulty.requests == ["PUT", "HEAD", "PUT", "HEAD", "PUT"]
    body, about = faulty.stored["/fedq/a/b"]
    assert (body, about) == (BODY, {"x-amz-meta-job": "t", "x-amz-meta-digest": ref.digest})


def test_an_upload_whose_reply_is_lost_is_looked_for(faulty: Faulty) -> None:
    """It is there, with its size and digest: done, and not sent again."""
    faulty.faults["PUT"] = ["drop"]
    ref = faulty.blobs().put("a/b", BODY)

    assert faulty.stored["/fedq/a/b"][0] == BODY
    assert faulty.requests == ["PUT", "HEAD"]
    assert ref.digest == hashlib.sha256(BODY).hexdigest()


def test_an_upload_that_cannot_be_looked_for_is_sent_again(faulty: Faulty) -> None:
    """Nobody says whether it is there, and the same body under the same key does no harm."""
    faulty.faults = {"PUT": ["drop"], "HEAD": ["503"]}
    faulty.blobs().put("a/b", BODY)

    assert faulty.requests == ["PUT", "HEAD", "PUT"]


def test_an_older_blob_is_not_taken_for_the_upload(faulty: Faulty) -> None:
    """A server that takes nothing has an older blob under the key: the upload has failed, and says so."""
    blobs = faulty.blobs(patience=1.0)
    blobs.put("a/b", BODY[::-1])
    faulty.faults["PUT"] = ["503"] * 1000
    with pytest.raises(Unavailable, match=f"^{faulty.url}/fedq answers 503 Service Unavailable$"):
        blobs.put("a/b", BODY)

    assert faulty.stored["/fedq/a/b"][0] == BODY[::-1]
    assert faulty.requests.count("PUT") > 2


@pytest.mark.parametrize("status", ["400", "413", "501"])
@pytest.mark.parametrize("page", [b"", b"<html>No<br></html>", b"<html>No</html>", b'{"error": "no"}'])
def test_an_answer_that_is_not_s3s_is_explained(faulty: Faulty, status: str, page: bytes) -> None:
    """A proxy before the store answers in its own words: they are no traceback, and its status is in the sentence."""
    faulty.page = page
    faulty.faults["PUT"] = [status]
    with pytest.raises(Unavailable, match=rf"^{faulty.url}/fedq .*{status}"):
        faulty.blobs().put("a/b", BODY)
    assert faulty.requests.count("PUT") == 1  # another try would hear the same


@pytest.mark.parametrize("fault", ["503", "drop", "cut", "flip"])
def test_a_download_outlasts_a_fault(faulty: Faulty, fault: str) -> None:
    """Busy, gone, broken off in the middle, or a bit flipped on the way: asked again, it is right."""
    blobs = faulty.blobs()
    ref = blobs.put("a/b", BODY)
    faulty.faults["GET"] = [fault]

    assert blobs.get(ref).tobytes() == BODY
    assert faulty.requests == ["PUT", "GET", "GET"]


def test_a_download_that_always_breaks_off_fails(faulty: Faulty) -> None:
    """When our patience ends, with the server's address."""
    blobs = faulty.blobs(patience=1.0)
    ref = blobs.put("a/b", BODY)
    faulty.faults["GET"] = ["cut"] * 1000
    with pytest.raises(Unavailable, match=r"/fedq cannot be reached .*check FEDQ_S3_URL"):
        blobs.get(ref)

    assert faulty.requests.count("GET") > 2


def test_a_download_that_is_never_right_is_refused(faulty: Faulty) -> None:
    """After three tries, with the digests."""
    blobs = faulty.blobs()
    ref = blobs.put("a/b", BODY)
    faulty.faults["GET"] = ["flip"] * 50
    with pytest.raises(Refused, match=r"^a/b: its digest is .* instead of"):
        blobs.get(ref)

    assert faulty.requests.count("GET") == 3


def test_a_slow_server_breaks_no_large_upload(faulty: Faulty, monkeypatch: pytest.MonkeyPatch) -> None:
    """It trickles: the whole takes several times the time-out of one send, and no piece of it does."""
    blobs = faulty.blobs()
    monkeypatch.setattr(module, "CONNECT", 0.4)  # white box: 5 s are long
    faulty.pace = 0.03
    body = np.random.default_rng(0).integers(0, 256, 16 << 20, np.uint8)
    ref = blobs.put("a/b", body)

    assert faulty.requests == ["PUT"]
    assert hashlib.sha256(faulty.stored["/fedq/a/b"][0]).hexdigest() == ref.digest
