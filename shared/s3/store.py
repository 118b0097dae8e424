"""The object store: put, get and list blobs by key, each checked against its SHA-256.

The only module that knows minio-py, and it asks of the server nothing but S3's common ground (`make_key` asks MinIO).
A store that is busy, slow or broken off is asked again for `patience` seconds; what comes and is wrong, a few times.
So every call ends by then, except that a blob may take as long as its bytes need on the slowest line we put up with.
A `Blobs` is safe to share between threads, not between processes.
"""

import hashlib
import html
import io
import itertools
import json
import random
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, TypeVar, cast
from urllib.parse import urlencode, urlsplit
from xml.etree.ElementTree import ParseError

import numpy as np
import numpy.typing as npt
import urllib3
from minio import Minio, MinioAdmin, S3Error
from minio.credentials.credentials import Credentials
from minio.credentials.providers import StaticProvider
from minio.deleteobjects import DeleteObject
from minio.error import MinioAdminException, MinioException
from minio.helpers import quote
from minio.signer import sign_v4_s3
from minio.time import to_amz_date, utcnow

from shared.errors import BadInput, Denied, FedqError, Refused, Unavailable, tls_trouble
from shared.events import BlobRef
from shared.process.settings import Store
from shared.s3 import json_records

Bytes = bytes | npt.NDArray[np.uint8]
Result = TypeVar("Result")

PATIENCE = 60.0  #: seconds in which a call may begin another try
BRIEFLY = 3.0  #: of them, where the store is full or nobody listens: callers know better what else to do
CONNECT = 5.0  #: seconds to connect, and to send a piece
PAUSES = (0.2, 5.0)  #: seconds between two tries: at most the first, doubled each time up to the last
PIECE = 1 << 18  #: bytes sent at a time, each within the connect time-out
SLOWEST = 1e5  #: bytes a second, of a line of 1 Mbit/s; what moves more slowly does not move
BUFFERED = 4 << 20  #: bytes of an upload that may be on their way when the last is sent
CHUNK = 1 << 20  #: bytes received, copied and hashed at a time: they stay in the cache
SINGLE_PUT = 4 << 30  #: bytes; S3 takes at most 5 GiB in one request
PART = 64 << 20  #: bytes of a part of what is longer
MAX_RECORD = 64 << 20  #: bytes of a JSON record that will be read
ATTEMPTS = 3  #: downloads of what proves wrong, before it is taken for what the store has

_NOTHING = memoryview(b"")


class NotFound(FedqError):
    """There is no such key in the bucket."""


class NoKeys(FedqError):
    """The store lets us make no keys."""


class Faltered(Unavailable):
    """The store was busy, slow or broken off; `lasting` where it is full or absent, which seldom changes soon."""

    lasting = False


class Blobs:
    """One bucket of an S3 service."""

    def __init__(self, settings: Store, *, patience: float = PATIENCE) -> None:
        url = urlsplit(settings.s3_url.get_secret_value())
        self.bucket = settings.s3_bucket
        self.place = f"{url.scheme}://{url.netloc}/{self.bucket}"
        self._endpoint = f"{url.scheme}://{url.netloc}"
        self._region = settings.s3_region
        self._credentials = Credentials(
            settings.s3_access_key.get_secret_value(), settings.s3_secret_key.get_secret_value()
        )
        self._patience = patience
        # minio-py's own pool would wait for 30 minutes on a server that answers nothing.
        self._http = _Http(self.place, settings.s3_timeout_s)
        self._client = Minio(
            url.netloc,
            access_key=self._credentials.access_key,
            secret_key=self._credentials.secret_key,
            secure=url.scheme == "https",
            region=self._region,
            http_client=self._http,
        )

    def put(
        self,
        key: str,
        body: Bytes,
        *,
        digest: str | None = None,
        metadata: Mapping[str, Any] = {},
        on_piece: Callable[[], None] | None = None,
    ) -> BlobRef:
        """Stores `body` under `key`; on return the store has it, whole.

        `on_piece` is called when the first piece of it has been sent, and nobody knows yet whether the rest will be.
        """
        view = (memoryview(body) if isinstance(body, bytes) else body.data).cast("B")
        ref = BlobRef(key=key, size=view.nbytes, digest=digest or hashlib.sha256(view).hexdigest())
        described = {f"x-amz-meta-{name}": str(value) for name, value in metadata.items()}
        described["x-amz-meta-digest"] = ref.digest
        if ref.size > SINGLE_PUT:
            self._put_parts(ref, view, described, on_piece)
        else:
            # The blob's digest is the payload hash that S3 signs: one pass over the bytes gives the name and the
            # signature, and servers that check payloads refuse a garbled one. minio-py would copy and hash them again.
            put = partial(self._request, "PUT", ref.key, view, digest=ref.digest, headers=described, on_piece=on_piece)
            self._finally_there(ref, put)
        return ref

    def put_json(self, key: str, record: Mapping[str, Any]) -> BlobRef:
        """Stores a record as indented JSON, to be read by people too; what is no finite number is null."""
        text = json_records.dumps(record, indent=2).encode() + b"\n"
        if len(text) > MAX_RECORD:
            raise BadInput(f"{key}: a record of {len(text)} bytes could not be read again; {MAX_RECORD} are the most")
        return self.put(key, text)

    def get_into(self, ref: BlobRef, buffer: npt.NDArray[np.uint8]) -> None:
        """Receives a blob into `buffer`, hashing as it comes; `Refused` unless it is what `ref` says."""
        if buffer.nbytes != ref.size:
            raise ValueError(f"{ref.key}: a buffer of {buffer.nbytes} bytes for {ref.size}")
        self._patiently(lambda: self._receive(ref, buffer), ref.size)

    def get_span(self, ref: BlobRef, start: int, buffer: npt.NDArray[np.uint8]) -> None:
        """Fills `buffer` with the bytes of a blob from `start` on; not checked, because no digest covers a part."""
        self._patiently(partial(self._receive_span, ref, start, buffer), buffer.nbytes)

    def get(self, ref: BlobRef) -> npt.NDArray[np.uint8]:
        """A whole blob in a new buffer."""
        buffer = np.empty(ref.size, np.uint8)
        self.get_into(ref, buffer)
        return buffer

    def get_json(self, key: str) -> dict[str, Any]:
        """A record, or `NotFound`; `Refused` unless it is what its writer said, where that is known."""
        return self._patiently(lambda: self._read(key))

    def exists(self, key: str) -> bool:
        try:
            self.stat(key)
        except NotFound:
            return False
        return True

    def stat(self, key: str) -> tuple[int, dict[str, str]]:
        """Bytes of a blob, and its metadata by lower-case names; `NotFound` where there is none."""
        found = self._patiently(lambda: self._client.stat_object(self.bucket, key))
        return found.size or 0, _metadata(found)

    def folders(self, prefix: str) -> list[str]:
        """The names directly below `prefix` that have something below them, in order."""
        found = self._patiently(lambda: list(self._client.list_objects(self.bucket, prefix=prefix)))
        return sorted(item.object_name[len(prefix) : -1] for item in found if item.is_dir and item.object_name)

    def list(self, prefix: str) -> list[str]:
        """The keys below `prefix`, in order."""
        found = self._patiently(lambda: list(self._client.list_objects(self.bucket, prefix=prefix, recursive=True)))
        return sorted(item.object_name for item in found if item.object_name)

    def delete(self, prefix: str, *, holding: str = "") -> int:
        """Removes what is below `prefix` (and has `holding` in its key) and says how many blobs that were."""
        keys = [key for key in self.list(prefix) if holding in key]
        self._patiently(lambda: self._remove(keys))
        return len(keys)

    def remove(self, keys: Sequence[str]) -> None:
        """Removes blobs by their keys; one that is not there is as good as removed."""
        if keys:
            self._patiently(lambda: self._remove(keys))

    def make_bucket(self) -> bool:
        """Makes this bucket, and says whether it was missing."""
        if self._patiently(lambda: self._client.bucket_exists(self.bucket)):
            return False
        self._patiently(lambda: self._client.make_bucket(self.bucket))
        return True

    def make_key(self, access_key: str, secret_key: str, writes: Sequence[str]) -> bool:
        """Gives a key this secret, and the rights to read the bucket and to write below the patterns of `writes`.

        Says whether it was missing. By MinIO's admin API: `NoKeys` where the store has none, or not for us.
        """
        url = urlsplit(self._endpoint)
        admin = MinioAdmin(
            endpoint=url.netloc,
            credentials=StaticProvider(self._credentials.access_key, self._credentials.secret_key),
            region=self._region,
            secure=url.scheme == "https",
            http_client=self._http,
        )
        policy = f"{self.bucket}-{access_key}"

        def attempt() -> bool:
            # First of all: a store without this API may take what we put there for a blob.
            known = policy in json.loads(admin.policy_list())
            admin.policy_add(policy, policy=_policy(self.bucket, writes))
            admin.user_add(access_key, secret_key)
            try:
                admin.attach_policy([policy], user=access_key)
            except MinioAdminException as error:
                if "PolicyChangeAlreadyApplied" not in str(error):
                    raise
            return not known

        try:
            return self._patiently(attempt)
        except (MinioAdminException, ValueError) as error:
            raise NoKeys(f"{self.place} makes us no keys by MinIO's admin API ({_refusal(error)})") from error

    def probe(self) -> str:
        """Checks that this bucket can be listed, written, read and cleared; returns the server's name."""
        # First: a server may make a missing bucket for an administrator who writes to it; and it says what it refuses,
        # as it would not if only asked whether there is one.
        self.list("probe/")
        key = f"probe/{time.time_ns()}"
        ref = self.put(key, b"fedq")
        self.get(ref)
        self.delete(key)
        response = self._patiently(lambda: self._http.request("GET", self._endpoint, redirect=False))
        return str(response.headers.get("Server", "S3"))

    def _patiently(self, attempt: Callable[[], Result], size: int = 0) -> Result:
        """What `attempt` yields, tried again while that may help; `size` bytes take time beyond our patience."""
        began = time.monotonic()
        self._http.end_by(began + self._patience + size / SLOWEST)
        wrong = 0
        for number in itertools.count():
            # Full jitter: those who failed together do not come back together.
            pause = random.uniform(0, min(PAUSES[0] * 2**number, PAUSES[1]))  # noqa: S311
            try:
                with self._translated():
                    return attempt()
            except Refused:
                wrong += 1
                if wrong == ATTEMPTS:
                    raise
            except Faltered as error:
                patience = min(BRIEFLY, self._patience) if error.lasting else self._patience
                if time.monotonic() - began + pause >= patience:
                    raise
            time.sleep(pause)
        raise AssertionError("unreachable")

    def _finally_there(self, ref: BlobRef, send: Callable[[], object]) -> None:
        """Sends a blob, or the last of it, until the store has it."""

        def attempt() -> None:
            try:
                with self._translated():
                    send()
            except Unavailable:
                # The reply may be lost and the upload complete: look before sending again, or giving up.
                if not self._has(ref):
                    raise

        self._patiently(attempt, ref.size)

    def _put_parts(
        self, ref: BlobRef, view: memoryview, described: dict[str, str], on_piece: Callable[[], None] | None
    ) -> None:
        """Uploads what is too long for one request; each part has a call's patience of its own."""
        begun = self._patiently(partial(self._request, "POST", ref.key, query={"uploads": ""}, headers=described))
        upload = {"uploadId": _text(begun.data, "UploadId")}
        listed = ""
        try:
            for number, start in enumerate(range(0, ref.size, PART), 1):
                part, query = view[start : start + PART], {"partNumber": str(number), **upload}
                put = partial(
                    self._request, "PUT", ref.key, part, query=query, on_piece=on_piece if start == 0 else None
                )
                tag = self._patiently(put, len(part)).headers["ETag"]
                listed += f"<Part><PartNumber>{number}</PartNumber><ETag>{tag}</ETag></Part>"
        except BaseException:
            self._http.end_by(time.monotonic() + CONNECT)
            with suppress(FedqError), self._translated():
                self._request("DELETE", ref.key, query=upload)
            raise
        # Not taken back from here on: the store may be putting the parts together whatever we hear of it.
        whole = memoryview(f"<CompleteMultipartUpload>{listed}</CompleteMultipartUpload>".encode())
        self._finally_there(ref, partial(self._request, "POST", ref.key, whole, query=upload))

    def _request(
        self,
        method: str,
        key: str,
        body: memoryview = _NOTHING,
        *,
        digest: str | None = None,
        query: Mapping[str, str] = {},
        headers: Mapping[str, str] = {},
        on_piece: Callable[[], None] | None = None,
    ) -> urllib3.BaseHTTPResponse:
        """One signed request."""
        digest = digest or hashlib.sha256(body).hexdigest()
        date = utcnow()
        url = urlsplit(f"{self._endpoint}/{self.bucket}/{quote(key)}")._replace(query=urlencode(sorted(query.items())))
        described: Any = {
            "Host": url.netloc,
            "Content-Type": "application/octet-stream",
            "Content-Length": str(len(body)),
            "x-amz-content-sha256": digest,
            "x-amz-date": to_amz_date(date),
            **headers,
        }
        signed: Any = sign_v4_s3(
            method=method,
            url=url,
            region=self._region,
            headers=described,
            credentials=self._credentials,
            content_sha256=digest,
            date=date,
        )
        pieces = cast("Iterable[bytes]", _Pieces(body, on_piece, self._http.left))
        response = self._http.request(method, url.geturl(), body=pieces, headers=signed, size=len(body))
        if response.status >= 300 or b"<Error>" in response.data:  # parts may fail to come together after a 200
            if b"<Code>" not in response.data:  # not S3's answer: a proxy's
                raise Unavailable(f"{self.place} answers {response.status} to an upload; is FEDQ_S3_URL right?")
            raise S3Error.fromxml(response)
        return response

    def _has(self, ref: BlobRef) -> bool:
        try:
            with self._translated():
                found = self._client.stat_object(self.bucket, ref.key)
        except FedqError:
            return False
        return found.size == ref.size and _metadata(found).get("digest") == ref.digest

    def _receive(self, ref: BlobRef, buffer: npt.NDArray[np.uint8]) -> None:
        """Fills `buffer`, or `Refused` where what comes is not what `ref` says."""
        digest = hashlib.sha256()
        target = buffer.data
        with self._open(ref.key) as response:
            length = int(response.headers.get("Content-Length", ref.size))
            if length != ref.size:
                raise Refused(f"{ref.key} has {length} bytes instead of {ref.size}")
            position = 0
            for chunk in self._http.body(response):
                target[position : position + len(chunk)] = chunk
                digest.update(chunk)
                position += len(chunk)
            if position != ref.size:
                raise Faltered(f"{self.place} sent {position} of the {ref.size} bytes of {ref.key}")
        _compare(ref.key, digest.hexdigest(), ref.digest)

    def _receive_span(self, ref: BlobRef, start: int, buffer: npt.NDArray[np.uint8]) -> None:
        position = 0
        with self._open(ref.key, start, buffer.nbytes) as response:
            for chunk in self._http.body(response):
                if position + len(chunk) <= buffer.nbytes:
                    buffer[position : position + len(chunk)] = np.frombuffer(chunk, np.uint8)
                position += len(chunk)
        if position != buffer.nbytes:
            raise Faltered(f"{self.place} sent {position} of {buffer.nbytes} bytes of {ref.key}")

    def _read(self, key: str) -> dict[str, Any]:
        body = bytearray()
        with self._open(key) as response:
            for chunk in self._http.body(response):
                body += chunk
                if len(body) > MAX_RECORD:
                    raise Refused(f"{key}: a record of more than {MAX_RECORD} bytes")
            written = response.headers.get("x-amz-meta-digest")
        if written is not None:  # as it is not by other tools
            _compare(key, hashlib.sha256(body).hexdigest(), written)
        return json_records.loads(key, body)

    def _remove(self, keys: Sequence[str]) -> None:
        errors = list(self._client.remove_objects(self.bucket, (DeleteObject(key) for key in keys)))
        if errors:
            kind = Faltered if errors[0].code in _PASSING else Unavailable
            raise kind(f"{self.place} did not remove {errors[0].name}: {errors[0].message}")

    @contextmanager
    def _open(self, key: str, start: int = 0, length: int = 0) -> Iterator[urllib3.BaseHTTPResponse]:
        response = self._client.get_object(self.bucket, key, offset=start, length=length)
        try:
            yield response
        finally:
            response.close()
            response.release_conn()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """minio-py's and urllib3's errors as ours."""
        try:
            yield
        except S3Error as error:
            raise self._refusal(error) from error
        except MinioException as error:
            raise Unavailable(f"{self.place} answers: {error}; is FEDQ_S3_URL right?") from error
        except (ParseError, UnicodeDecodeError) as error:
            raise Faltered(f"{self.place} answers what is not S3's ({error}); is FEDQ_S3_URL right?") from error
        except (urllib3.exceptions.HTTPError, OSError) as error:
            trouble = tls_trouble(error, "FEDQ_S3_URL")
            if trouble is not None:
                found = Faltered(f"{self.place}: {trouble}")
            else:
                found = Faltered(f"{self.place} cannot be reached ({error}); check FEDQ_S3_URL")
            # A line with TLS that breaks off in the middle is as passing as any other.
            found.lasting = trouble is not None or isinstance(error, urllib3.exceptions.NewConnectionError)
            raise found from error

    def _refusal(self, error: S3Error) -> FedqError:
        """What S3's answer means to a person."""
        match error.code:
            case "NoSuchKey" | "NoSuchObject":
                return NotFound(f"{self.place} has no {error.object_name}")
            case "NoSuchBucket":
                return Unavailable(f"{self.place}: there is no such bucket; create it or set FEDQ_S3_BUCKET")
            case code if code in _DENIED:
                return Denied(f"{self.place} refuses these credentials ({code}); check {_DENIED[code]}")
            case "AuthorizationHeaderMalformed" | "IllegalLocationConstraintException" | "PermanentRedirect":
                return Unavailable(f"{self.place} is of another region ({error.message}); check FEDQ_S3_REGION")
            case "BadRequest":  # no code of S3's: a server's that takes no request at all
                return Unavailable(f"{self.place} takes no request; is FEDQ_S3_URL right, http:// or https://?")
            case code:
                kind = Faltered if code in _PASSING else Unavailable
                return kind(f"{self.place} answers {code}: {error.message}")


class _Http(urllib3.PoolManager):
    """Requests that end by their thread's deadline, however slowly an answer trickles, and are sent once."""

    def __init__(self, place: str, read: float) -> None:
        super().__init__(maxsize=16, retries=False)
        self._place, self._read_s = place, read
        self._own = threading.local()

    def end_by(self, deadline: float) -> None:
        self._own.deadline = deadline

    def left(self) -> float:
        """Seconds that this thread's call has, or `Faltered`."""
        left: float = self._own.deadline - time.monotonic()
        if left <= 0:
            raise Faltered(f"{self._place} is too slow; check FEDQ_S3_URL and the line to it")
        return left

    def body(self, response: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
        """What comes, as it comes."""
        while chunk := response.read1(CHUNK, decode_content=False):
            yield chunk
            self.left()

    def urlopen(self, method: str, url: str, redirect: bool = True, **how: Any) -> urllib3.BaseHTTPResponse:  # type: ignore[override]
        left = self.left()
        whole = how.pop("preload_content", True)
        read = self._read_s + min(how.pop("size", 0), BUFFERED) / SLOWEST
        timeout = urllib3.Timeout(connect=min(CONNECT, left), read=min(read, left))
        response = super().urlopen(method, url, redirect, preload_content=False, timeout=timeout, **how)
        falters = response.status == 429 or (response.status >= 500 and response.status != 501)
        if not whole and not falters:
            return response
        try:
            body = b"".join(self.body(response))
        finally:
            response.close()
        if falters:
            raise self._faltered(response, body)
        return urllib3.HTTPResponse(
            io.BytesIO(body),
            response.headers,
            response.status,
            response.version,
            reason=response.reason,
            request_method=method,
        )

    def _faltered(self, response: urllib3.BaseHTTPResponse, body: bytes) -> Faltered:
        said = f"{response.status} {_text(body, 'Code') or response.reason}"
        if response.status != 507:
            return Faltered(f"{self._place} answers {said}: {_text(body, 'Message')}".removesuffix(": "))
        found = Faltered(f"{self._place} is full ({said}); free some space there")
        found.lasting = True
        return found


def _policy(bucket: str, writes: Sequence[str]) -> dict[str, Any]:
    """Rights in the words of S3: to read a bucket, and to write and remove what matches one of `writes`."""
    name = f"arn:aws:s3:::{bucket}"
    reads = [("s3:GetBucketLocation", name), ("s3:ListBucket", name), ("s3:GetObject", f"{name}/*")]
    changes = ["s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload", "s3:ListMultipartUploadParts"]
    statements = [*(([action], [place]) for action, place in reads), (changes, [f"{name}/{keys}" for keys in writes])]
    return {
        "Version": "2012-10-17",
        "Statement": [{"Effect": "Allow", "Action": actions, "Resource": places} for actions, places in statements],
    }


def _refusal(error: Exception) -> str:
    """What a server said to a call of the admin API: MinIO's own words, or the status of one that does not know it."""
    status, _, body = str(error).removeprefix("admin request failed; Status: ").partition(", Body: ")
    try:
        said = json.loads(body)
        return f"{said['Code']}: {said['Message']}".removesuffix(".")
    except (ValueError, KeyError, TypeError):
        return f"it answers {status}" if status.isdecimal() else "it answers what is not MinIO's"


def _compare(key: str, found: str, expected: str) -> None:
    if found != expected:
        raise Refused(f"{key}: its digest is {found[:12]}… instead of {expected[:12]}…")


def _text(body: bytes, tag: str) -> str:
    found = re.search(rf"<{tag}>([^<]*)</{tag}>", body.decode(errors="replace"))
    return html.unescape(found[1]) if found else ""


def _metadata(found: Any) -> dict[str, str]:
    headers = {name.lower(): value for name, value in (found.metadata or {}).items()}
    own = "x-amz-meta-"
    return {name.removeprefix(own): value for name, value in headers.items() if name.startswith(own)}


#: What to look at, by S3's code for what is refused.
_DENIED = {
    "AccessDenied": "FEDQ_S3_ACCESS_KEY, FEDQ_S3_SECRET_KEY and their rights on the bucket FEDQ_S3_BUCKET",
    "InvalidAccessKeyId": "FEDQ_S3_ACCESS_KEY",
    "InvalidToken": "FEDQ_S3_ACCESS_KEY",
    "SignatureDoesNotMatch": "FEDQ_S3_SECRET_KEY",
}

#: S3's codes for what may be otherwise in a moment: a body garbled or broken off on its way among them.
_PASSING = (
    "InternalError", "SlowDown", "ServiceUnavailable", "RequestTimeout", "OperationAborted",
    "IncompleteBody", "BadDigest", "XAmzContentSHA256Mismatch",
)  # fmt: skip


class _Pieces:
    """A memoryview in pieces, because a socket's time-out bounds the whole of one send."""

    def __init__(self, view: memoryview, on_piece: Callable[[], None] | None, left: Callable[[], float]) -> None:
        self._view, self._on_piece, self._left = view, on_piece, left

    def __iter__(self) -> Iterator[memoryview]:
        for start in range(0, len(self._view), PIECE):
            self._left()
            yield self._view[start : start + PIECE]
            if start == 0 and self._on_piece is not None:
                self._on_piece()
