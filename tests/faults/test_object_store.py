"""What an object store may do to us, each before the real server: a call ends well, or with the right error in time.

Every test asserts that its faults were made, and reads what was uploaded past the proxy.
"""

import hashlib
import io
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
import pytest
from minio import Minio
from pydantic import SecretStr

from deploy.native.stack import Stack
from shared.errors import Refused, Unavailable
from shared.events import BlobRef
from shared.process import settings
from shared.s3 import store as module
from shared.s3.store import Blobs, NotFound
from tests.faults.s3_proxy import S3Proxy
from tests.faults.tcp_proxy import TcpProxy
from tests.harness import until

TIMEOUT = 1.5  # seconds, of an answer
HASTE = 1.0  # seconds of patience, where a fault does not end
IN_TIME = 30.0  # seconds in which a call ends that moves no bytes to speak of, whatever else the machine has to do
BODY = np.random.default_rng(0).integers(0, 256, 1_500_000, np.uint8)


@pytest.fixture
def proxy(stack: Stack) -> Iterator[S3Proxy]:
    """Before the session's server; it leaves no thread."""
    before = set(threading.enumerate())
    with S3Proxy(stack.s3.url) as running:
        yield running
    assert set(threading.enumerate()) <= before


def client(stack: Stack, url: str, timeout: float, patience: float) -> Blobs:
    access, secret = stack.s3.keys("operator")
    store = settings.Store(
        s3_url=SecretStr(url), s3_access_key=SecretStr(access), s3_secret_key=SecretStr(secret), s3_timeout_s=timeout
    )
    return Blobs(store, patience=patience)


@pytest.fixture
def blobs(stack: Stack, proxy: S3Proxy, monkeypatch: pytest.MonkeyPatch) -> Blobs:
    """A client of the proxy, which waits less than others between two tries."""
    monkeypatch.setattr(module, "PAUSES", (0.05, 0.5))
    return client(stack, proxy.url, timeout=TIMEOUT, patience=20.0)


@pytest.fixture
def hasty(stack: Stack, blobs: Blobs, proxy: S3Proxy) -> Blobs:
    """Another, which gives up soon."""
    return client(stack, proxy.url, timeout=HASTE / 2, patience=HASTE)


@pytest.fixture
def direct(stack: Stack) -> Blobs:
    """The same bucket, past the proxy."""
    return client(stack, stack.s3.url, timeout=30.0, patience=60.0)


@pytest.fixture
def minio(stack: Stack) -> Minio:
    """The same, as any other tool has it."""
    access, secret = stack.s3.keys("operator")
    return Minio(stack.s3.url.removeprefix("http://"), access, secret, secure=False, region="us-east-1")


@pytest.fixture
def key(stack: Stack) -> Iterator[str]:
    """One of this test's own."""
    folder = f"jobs/t-{secrets.token_hex(3)}/"
    yield f"{folder}blob"
    client(stack, stack.s3.url, timeout=30.0, patience=60.0).delete(folder)


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> int:
    """What is longer than this goes in parts of it: the least that S3 allows."""
    monkeypatch.setattr(module, "SINGLE_PUT", 5 << 20)
    monkeypatch.setattr(module, "PART", 5 << 20)
    return 5 << 20


def timed(call: Callable[[], Any], error: type[Exception], sentence: str) -> float:
    """The seconds until it fails as it must."""
    began = time.monotonic()
    with pytest.raises(error, match=sentence):
        call()
    return time.monotonic() - began


# --- the proxy ------------------------------------------------------------------------------------


def test_the_proxy_changes_nothing_unasked(blobs: Blobs, direct: Blobs, proxy: S3Proxy, key: str) -> None:
    """Put, get, list, stat and delete; nothing that works costs a second request."""
    ref = blobs.put(key, BODY, metadata={"client": "c"})
    assert np.array_equal(blobs.get(ref), BODY)
    assert np.array_equal(direct.get(ref), BODY)
    assert blobs.stat(key) == direct.stat(key) == (len(BODY), {"client": "c", "digest": ref.digest})
    assert blobs.list(key) == [key]
    assert blobs.delete(key) == 1
    assert not blobs.exists(key)

    assert [method for method, _ in proxy.requests] == ["PUT", "GET", "HEAD", "GET", "GET", "POST", "HEAD"]


def test_a_rule_that_never_fires_is_an_error(blobs: Blobs, proxy: S3Proxy, key: str) -> None:
    """One for another key, or that would break a body later than it ends."""
    proxy.rule("PUT", "another", status=503)
    proxy.rule("PUT", key, reset_request=100)
    blobs.put(key, b"short")
    with pytest.raises(AssertionError, match=f"never fired: PUT another, PUT {key}"):
        proxy.assert_fired()


# --- an upload ------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [500, 503, 507])
def test_an_upload_outlasts_a_burst(blobs: Blobs, direct: Blobs, proxy: S3Proxy, key: str, status: int) -> None:
    """Of refusals, to the upload and to the question whether it is there."""
    uploads = proxy.rule("PUT", key, status=status, times=3)
    looks = proxy.rule("HEAD", key, status=status, times=2)
    ref = blobs.put(key, BODY)

    assert (uploads.fired, looks.fired) == (3, 2)
    assert np.array_equal(direct.get(ref), BODY)


@pytest.mark.parametrize("place", [0, 1, 700_000, 1_499_999])
def test_an_upload_outlasts_a_reset(blobs: Blobs, direct: Blobs, proxy: S3Proxy, key: str, place: int) -> None:
    """In the middle of its body, twice; what the server has of it is not taken for it."""
    rule = proxy.rule("PUT", key, reset_request=place, times=2)
    ref = blobs.put(key, BODY)

    assert rule.fired == 2
    assert np.array_equal(direct.get(ref), BODY)


def test_an_upload_outlasts_a_stall(blobs: Blobs, direct: Blobs, proxy: S3Proxy, key: str) -> None:
    """It is waited for as long as the time-out says."""
    rule = proxy.rule("PUT", key, stall=30)
    began = time.monotonic()
    ref = blobs.put(key, b"body")

    assert rule.fired == 1
    assert TIMEOUT <= time.monotonic() - began < 20.0
    assert direct.get(ref).tobytes() == b"body"


def test_a_lost_reply_costs_no_second_upload(blobs: Blobs, direct: Blobs, proxy: S3Proxy, key: str) -> None:
    """The server has it, as a look shows."""
    rule = proxy.rule("PUT", key, lose_reply=True)
    ref = blobs.put(key, BODY)

    assert rule.fired == 1
    assert [method for method, _ in proxy.requests] == ["PUT", "HEAD"]
    assert np.array_equal(direct.get(ref), BODY)


def test_replies_that_are_all_lost_are_no_failure(blobs: Blobs, direct: Blobs, proxy: S3Proxy, key: str) -> None:
    """Of the upload, and of the first looks too."""
    rule = proxy.rule("PUT", key, lose_reply=True, times=None)
    looks = proxy.rule("HEAD", key, lose_reply=True, times=2)
    ref = blobs.put(key, BODY)

    assert (rule.fired, looks.fired) == (3, 2)
    assert np.array_equal(direct.get(ref), BODY)


def test_an_upload_over_an_older_blob_is_not_confused(blobs: Blobs, direct: Blobs, proxy: S3Proxy, key: str) -> None:
    """What lies under the key is another of the same size: the reset upload is sent again."""
    direct.put(key, BODY[::-1].copy())
    proxy.rule("PUT", key, reset_request=1000)
    ref = blobs.put(key, BODY)

    proxy.assert_fired()
    assert np.array_equal(direct.get(ref), BODY)


def test_a_full_store_is_called_full(hasty: Blobs, direct: Blobs, proxy: S3Proxy, key: str) -> None:
    """In words that say what to do."""
    rule = proxy.rule("PUT", key, status=507, times=None)
    took = timed(
        lambda: hasty.put(key, BODY), Unavailable, rf"^{hasty.place} is full \(507 XMinioStorageFull\); free some space"
    )

    assert took < IN_TIME
    assert rule.fired > 1
    assert not direct.exists(key)


def test_an_upload_that_is_garbled_on_its_way_is_refused_by_its_readers(
    blobs: Blobs, direct: Blobs, proxy: S3Proxy, key: str
) -> None:
    """This server does not check; whoever reads does, and says so after more than one look."""
    proxy.rule("PUT", key, flip_request=700_000)
    ref = blobs.put(key, BODY)

    proxy.assert_fired()
    for reader in (blobs, direct):
        with pytest.raises(Refused, match=f"^{key}: its digest is .* instead of {ref.digest[:12]}…$"):
            reader.get(ref)
    assert proxy.count("GET", key) == module.ATTEMPTS


def test_a_record_that_is_garbled_on_its_way_is_refused(blobs: Blobs, direct: Blobs, proxy: S3Proxy, key: str) -> None:
    """Though it is still JSON: its digest lies beside it."""
    proxy.rule("PUT", key, flip_request=12)
    blobs.put_json(key, {"round": 10})

    proxy.assert_fired()
    with pytest.raises(Refused, match=f"^{key}: its digest is"):
        direct.get_json(key)


# --- one in parts ---------------------------------------------------------------------------------


def ref_of(key: str, body: np.ndarray) -> BlobRef:
    return BlobRef(key=key, size=len(body), digest=hashlib.sha256(body).hexdigest())


def in_parts(direct: Blobs, ref: BlobRef, body: np.ndarray) -> bool:
    """Whether the store has it whole, with what is said of it, and nothing else."""
    size, about = direct.stat(ref.key)
    return (
        np.array_equal(direct.get(ref), body)
        and (size, about) == (len(body), {"client": "c", "digest": ref_of(ref.key, body).digest})
        and direct.list(ref.key.rpartition("/")[0] + "/") == [ref.key]
    )


@pytest.mark.parametrize(
    ("method", "pattern", "fault"),
    [
        ("PUT", "partNumber=2", {"reset_request": 2_000_000, "times": 2}),
        ("PUT", "partNumber=1", {"lose_reply": True}),
        ("PUT", "partNumber=3", {"stall": 30}),
        ("PUT", "partNumber", {"status": 503, "times": 3}),
        ("POST", "uploads", {"status": 503, "times": 2}),
        ("POST", "uploads", {"lose_reply": True}),
        ("POST", "uploadId", {"status": 500, "times": 2}),
        ("POST", "uploadId", {"reset_request": 50}),
        ("POST", "uploadId", {"truncate": 20}),
        ("POST", "uploadId", {"lose_reply": True}),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else value,
)
def test_an_upload_in_parts_outlasts_a_fault(
    blobs: Blobs, direct: Blobs, proxy: S3Proxy, key: str, parts: int, method: str, pattern: str, fault: dict[str, Any]
) -> None:
    """In mid-part, at its beginning, and where the parts are put together; no part that arrived is sent again."""
    body = np.resize(BODY, 2 * parts + 1000)
    rule = proxy.rule(method, pattern, **fault)
    ref = blobs.put(key, body, metadata={"client": "c"})

    assert rule.fired == fault.get("times", 1)
    assert in_parts(direct, ref, body)
    failed = rule.fired if method == "PUT" else 0
    assert proxy.count("PUT") == 3 + failed
    if pattern == "uploadId" and fault.get("lose_reply"):
        assert proxy.count("POST", "uploadId") == 1  # a look showed that it was done


def test_an_upload_in_parts_that_fails_is_taken_back(
    hasty: Blobs, direct: Blobs, minio: Minio, proxy: S3Proxy, key: str, parts: int
) -> None:
    """The store keeps no parts that nobody will put together."""
    proxy.rule("PUT", "partNumber=2", status=503, times=None)
    timed(lambda: hasty.put(key, np.resize(BODY, 2 * parts)), Unavailable, "answers 503 SlowDown: It was told to")

    proxy.assert_fired()
    assert proxy.requests[-1][0] == "DELETE"
    assert not direct.exists(key)
    assert list(minio._list_multipart_uploads(direct.bucket, prefix=key).uploads) == []


def test_parts_that_may_be_together_are_not_taken_back(
    hasty: Blobs, blobs: Blobs, direct: Blobs, proxy: S3Proxy, key: str, parts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server put them together, and we hear nothing of it for ever: the next try finds the blob."""
    monkeypatch.setattr(module, "SLOWEST", 1e8)
    body = np.resize(BODY, 2 * parts)
    proxy.rule("POST", "uploadId", lose_reply=True, times=None)
    proxy.rule("HEAD", key, stall=30, times=None)
    timed(lambda: hasty.put(key, body, metadata={"client": "c"}), Unavailable, f"^{hasty.place} ")

    proxy.assert_fired()
    assert proxy.count("DELETE") == 0
    assert in_parts(direct, ref_of(key, body), body)
    proxy.clear()
    assert in_parts(direct, blobs.put(key, body, metadata={"client": "c"}), body)


# --- a download -----------------------------------------------------------------------------------

DOWNLOADS: list[dict[str, Any]] = [
    {"status": 503, "times": 3},
    {"status": 500},
    {"stall": 30},
    {"reset_response": 0},
    {"reset_response": 700_000, "times": 2},
    {"truncate": 700_000, "times": 2},
    {"truncate": 0},
    {"truncate": 700_000, "honest": False, "times": 2},
    {"flip_response": 0, "times": 2},
    {"flip_response": 1_499_999},
    {"lose_reply": True, "times": 2},
]


@pytest.mark.parametrize("fault", DOWNLOADS, ids=str)
def test_a_download_outlasts_a_fault(
    blobs: Blobs, direct: Blobs, proxy: S3Proxy, key: str, fault: dict[str, Any]
) -> None:
    """Busy, silent, broken off, cut short with a right length or a wrong one, garbled: asked again, it is right."""
    ref = direct.put(key, BODY)
    rule = proxy.rule("GET", key, **fault)

    assert np.array_equal(blobs.get(ref), BODY)
    assert rule.fired == fault.get("times", 1)


@pytest.mark.parametrize(
    ("fault", "error", "sentence"),
    [
        ({"status": 503}, Unavailable, "^{place} answers 503 SlowDown: It was told to.$"),
        ({"stall": 30}, Unavailable, "^{place} cannot be reached .*timed out.*; check FEDQ_S3_URL$"),
        ({"reset_response": 9}, Unavailable, "^{place} cannot be reached .*reset.*; check FEDQ_S3_URL$"),
        ({"truncate": 9}, Unavailable, "^{place} cannot be reached .*IncompleteRead.*; check FEDQ_S3_URL$"),
        ({"truncate": 9, "honest": False}, Refused, "^{key} has 9 bytes instead of 1500000$"),
        ({"flip_response": 9}, Refused, "^{key}: its digest is .* instead of"),
        ({"bandwidth": 100}, Unavailable, "^{place} is too slow"),
    ],
    ids=str,
)
def test_a_download_that_never_comes_right_ends(
    hasty: Blobs,
    direct: Blobs,
    proxy: S3Proxy,
    key: str,
    monkeypatch: pytest.MonkeyPatch,
    fault: dict[str, Any],
    error: type[Exception],
    sentence: str,
) -> None:
    """In time, with the reason; what has the wrong bytes sooner."""
    monkeypatch.setattr(module, "SLOWEST", 1e9)
    ref = direct.put(key, BODY)
    rule = proxy.rule("GET", key, times=None, **fault)
    took = timed(lambda: hasty.get(ref), error, sentence.format(place=hasty.place, key=key))

    assert rule.fired >= 1
    assert took < IN_TIME
    if error is Refused:
        assert rule.fired == module.ATTEMPTS


def test_a_slow_line_is_no_fault(hasty: Blobs, direct: Blobs, proxy: S3Proxy, key: str) -> None:
    """A blob may take longer than the time-out and our patience while it moves, both ways."""
    rule = proxy.rule("*", key, bandwidth=1_000_000, times=None)
    began = time.monotonic()
    ref = hasty.put(key, BODY)
    assert time.monotonic() - began > HASTE
    assert np.array_equal(direct.get(ref), BODY)
    began = time.monotonic()
    assert np.array_equal(hasty.get(ref), BODY)
    assert time.monotonic() - began > HASTE

    assert rule.fired > 1
    assert proxy.count("PUT") == 1


# --- a record -------------------------------------------------------------------------------------

RECORD = {"round": 10}
TEXT = b'{\n  "round": 10\n}\n'  # its digit is at 14


@pytest.mark.parametrize(
    "fault",
    [
        {"status": 503, "times": 3},
        {"stall": 30},
        {"reset_response": 9},
        {"truncate": 9, "times": 2},
        {"truncate": 9, "times": 2, "honest": False},
        {"truncate": 0, "honest": False},
        {"flip_response": 0, "times": 2},
        {"lose_reply": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("described", [True, False], ids=["ours", "anybody's"])
def test_a_record_outlasts_a_fault(
    blobs: Blobs, minio: Minio, proxy: S3Proxy, key: str, fault: dict[str, Any], described: bool
) -> None:
    """One that comes short or garbled is asked for again, also where no digest lies beside it."""
    about = {"digest": hashlib.sha256(TEXT).hexdigest()} if described else {}
    minio.put_object(blobs.bucket, key, io.BytesIO(TEXT), len(TEXT), metadata=about)
    rule = proxy.rule("GET", key, **fault)

    assert blobs.get_json(key) == RECORD
    assert rule.fired == fault.get("times", 1)


@pytest.mark.parametrize(
    ("fault", "error", "sentence"),
    [
        # Which of the two depends on where in a try the time runs out.
        ({"truncate": 9}, Unavailable, "^{place} (cannot be reached .*IncompleteRead|is too slow)"),
        ({"truncate": 9, "honest": False}, Refused, "^{key}: its digest is"),
        ({"flip_response": 14}, Refused, "^{key}: its digest is"),
        ({"stall": 30}, Unavailable, "^{place} cannot be reached .*timed out"),
        ({"bandwidth": 10}, Unavailable, "^{place} is too slow"),
    ],
    ids=str,
)
def test_a_record_that_never_comes_right_ends(
    hasty: Blobs, direct: Blobs, proxy: S3Proxy, key: str, fault: dict[str, Any], error: type[Exception], sentence: str
) -> None:
    """In time, with the reason; one whose flipped bit makes another number too."""
    direct.put_json(key, RECORD)
    rule = proxy.rule("GET", key, times=None, **fault)
    took = timed(lambda: hasty.get_json(key), error, sentence.format(place=hasty.place, key=key))

    assert rule.fired >= 1
    assert took < IN_TIME


# --- what is asked of the bucket ------------------------------------------------------------------

QUESTIONS: dict[str, tuple[str, Callable[[Blobs, str], Any]]] = {
    "list": ("GET", lambda blobs, key: blobs.list(key) == [key]),
    "folders": ("GET", lambda blobs, key: key.split("/")[1] in blobs.folders("jobs/")),
    "stat": ("HEAD", lambda blobs, key: blobs.stat(key)[0] == 4),
    "exists": ("HEAD", lambda blobs, key: blobs.exists(key)),
    "exists not": ("HEAD", lambda blobs, key: not blobs.exists(f"{key}-not")),
    "delete": ("POST", lambda blobs, key: blobs.delete(key) == 1),
    "delete, listing": ("GET", lambda blobs, key: blobs.delete(key) == 1),
}
FAULTS: list[dict[str, Any]] = [{"status": 503, "times": 4}, {"lose_reply": True}, {"stall": 30}, {"truncate": 30}]


@pytest.mark.parametrize(
    ("question", "fault"),
    [
        (question, fault)
        for question, (method, _) in QUESTIONS.items()
        for fault in FAULTS
        if not (method == "HEAD" and "truncate" in fault)  # its answer has no body
        and not ("stall" in fault and question != "list")  # they take seconds
    ],
    ids=str,
)
def test_a_question_outlasts_a_fault(
    blobs: Blobs, direct: Blobs, proxy: S3Proxy, key: str, fault: dict[str, Any], question: str
) -> None:
    """A burst of refusals, no answer, or half of one; what was deleted unheard is counted."""
    method, holds = QUESTIONS[question]
    direct.put(key, b"body")
    rule = proxy.rule(method, **fault)

    assert holds(blobs, key)
    assert rule.fired == fault.get("times", 1)
    assert direct.exists(key) != question.startswith("delete")


def test_the_probe_outlasts_a_burst(blobs: Blobs, proxy: S3Proxy) -> None:
    """Each of its questions, and leaves nothing."""
    for method in ("HEAD", "PUT", "GET", "POST"):
        proxy.rule(method, status=503, times=2)

    assert "Seaweed" in blobs.probe()
    proxy.assert_fired()
    assert blobs.list("probe/") == []


@pytest.mark.parametrize("fault", [{"flip_response": 1}, {"truncate": 100, "honest": False}], ids=str)
def test_a_listing_that_is_no_xml_is_asked_for_again(
    blobs: Blobs, hasty: Blobs, direct: Blobs, proxy: S3Proxy, key: str, fault: dict[str, Any]
) -> None:
    """It says that the answer was none where it never gets better; on a busy machine its second may be over first."""
    direct.put(key, b"body")
    rule = proxy.rule("GET", "prefix", times=2, **fault)

    assert blobs.list(key) == [key]
    assert rule.fired == 2
    rule.times = None
    assert timed(lambda: hasty.list(key), Unavailable, "answers what is not S3's|is too slow") < IN_TIME


@pytest.mark.parametrize("fault", [{"status": 503}, {"stall": 30}, {"bandwidth": 50}], ids=str)
def test_a_question_that_is_never_answered_ends(
    hasty: Blobs, direct: Blobs, proxy: S3Proxy, key: str, fault: dict[str, Any]
) -> None:
    """In time, however the server keeps us waiting."""
    direct.put(key, b"body")
    proxy.rule("*", times=None, **fault)

    assert timed(lambda: hasty.list(key), Unavailable, f"^{hasty.place} ") < IN_TIME
    proxy.assert_fired()


def test_what_is_missing_is_missing_at_once(blobs: Blobs, proxy: S3Proxy, key: str) -> None:
    """That is an answer, and asked for once."""
    with pytest.raises(NotFound):
        blobs.get_json(key)
    assert len(proxy.requests) == 1


# --- the line to it -------------------------------------------------------------------------------


@pytest.fixture
def line(stack: Stack) -> Iterator[TcpProxy]:
    """To the session's server; it leaves no thread."""
    before = set(threading.enumerate())
    with TcpProxy("127.0.0.1", stack.state.ports["s3"]) as running:
        yield running
    assert set(threading.enumerate()) <= before


def test_a_long_and_thin_line_is_no_fault(stack: Stack, direct: Blobs, line: TcpProxy, key: str) -> None:
    """0.1 s each way, and a megabyte or so a second; one connection does for all."""
    far = client(stack, f"http://{line.address}", timeout=HASTE, patience=HASTE)
    line.latency, line.bandwidth = 0.1, 1_200_000
    ref = far.put(key, BODY)
    assert np.array_equal(direct.get(ref), BODY)
    assert np.array_equal(far.get(ref), BODY)

    line.assert_fired("latency", "bandwidth")
    # The line counts a piece once it is sent, and the client may have it, and be here, before that.
    until(lambda: line.delivered["up"] > len(BODY) < line.delivered["down"], 10, "the blob to be counted twice")
    assert line.accepted == 1


@pytest.mark.parametrize(
    ("ways", "call"),
    [
        ((), lambda blobs, ref: blobs.get(ref)),
        (("up",), lambda blobs, ref: blobs.put(f"{ref.key}-2", b"body")),
        (("down",), lambda blobs, ref: blobs.exists(ref.key)),
    ],
    ids=["both", "up", "down"],
)
def test_a_mute_line_is_given_up(
    stack: Stack, line: TcpProxy, key: str, ways: tuple[Literal["up", "down"], ...], call: Callable[..., Any]
) -> None:
    """In time, whichever way nothing passes; when it heals, the same client goes on."""
    far = client(stack, f"http://{line.address}", timeout=HASTE / 2, patience=HASTE)
    ref = far.put(key, BODY)
    line.mute(*ways)
    assert timed(lambda: call(far, ref), Unavailable, f"^{far.place} cannot be reached .*timed out") < IN_TIME
    line.assert_fired("mute")

    line.heal()
    assert np.array_equal(far.get(ref), BODY)


def test_a_line_that_breaks_is_dialled_again(
    stack: Stack, direct: Blobs, line: TcpProxy, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two calls, and in the middle of an upload; while nobody listens it says so, and then goes on."""
    far = client(stack, f"http://{line.address}", timeout=2.0, patience=20.0)
    far.put(key, b"body")
    line.reset_all()
    assert far.exists(key)
    breaks = [line.reset_all]
    ref = far.put(key, BODY, on_piece=lambda: breaks.pop()() if breaks else None)
    assert np.array_equal(direct.get(ref), BODY)

    line.down()
    monkeypatch.setattr(module, "BRIEFLY", HASTE)
    assert timed(lambda: far.exists(key), Unavailable, "refused.*check FEDQ_S3_URL$") < IN_TIME
    line.heal()
    assert far.exists(key)
    line.assert_fired("reset", "down")
