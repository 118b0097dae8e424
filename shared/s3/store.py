"""The object store: put, get and list blobs by key, each checked against its SHA-256.

The only module that knows minio-py. It uses only calls that all S3 servers have, except `make_key`, which needs MinIO.
If a store is busy, slow or breaks off, a call tries again for `patience` seconds; if a blob comes damaged, a few times.
So every call ends by then, except that a blob may take as long as its bytes need on the slowest line that is allowed.
A `Blobs` is safe to share between threads, but not between processes.
"""

import hashlib
import html
import io
import json
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
from shared.process.retry import Retry
from shared.process.settings import Store
from shared.s3 import json_records

Bytes = bytes | npt.NDArray[np.uint8]
Result = TypeVar("Result")

PATIENCE = 60.0  #: seconds in which a call may begin another try
BRIEFLY = 3.0  #: the same if the store is full or does not listen: the caller knows better what else to do
CONNECT = 5.0  #: seconds to connect, and to send a piece
PAUSES = (0.2, 5.0)  #: seconds between two tries: at most the first, doubled each time up to the last
PIECE = 1 << 18  #: bytes sent at a time, each within the connect time-out
SLOWEST = 1e5  #: bytes per second, of a line of 1 Mbit/s; a slower transfer counts as stuck
BUFFERED = 4 << 20  #: bytes of an upload that may still be in transit when the last one is sent
CHUNK = 1 << 20  #: bytes received, copied and hashed at a time, few enough to stay in the processor's cache
SINGLE_PUT = 4 << 30  #: bytes; S3 takes at most 5 GiB in one request
PART = 64 << 20  #: bytes of a part of a longer blob
MAX_RECORD = 64 << 20  #: bytes of the longest JSON record that is read
ATTEMPTS = 3  #: downloads of a damaged blob, before the damage is attributed to the store and not to the transfer

_NOTHING = memoryview(b"")


class NotFound(FedqError):
    """An error for a key that is not in the bucket."""


class NoKeys(FedqError):
    """An error for a store that does not let fedq make access keys."""


class Faltered(Unavailable):
    """The store was busy, slow or broken off; `lasting` if it is full or absent, which seldom changes soon."""

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
        # The default pool of minio-py would wait for 30 minutes on a server that does not answer.
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
        """Stores `body` under `key`; on return the store has all of it.

        `on_piece` is called after the first piece has been sent, when the rest may still fail.
        """
        view = (memoryview(body) if isinstance(body, bytes) else body.data).cast("B")
        ref = BlobRef(key=key, size=view.nbytes, digest=digest or hashlib.sha256(view).hexdigest())
        described = {f"x-amz-meta-{name}": str(value) for name, value in metadata.items()}
        described["x-amz-meta-digest"] = ref.digest
        if ref.size > SINGLE_PUT:
            self._put_parts(ref, view, described, on_piece)
        else:
            # The blob's digest is the payload hash that S3 signs. So one pass over the bytes gives both the name and
            # the signature, and servers that check payloads refuse a garbled one; minio-py would copy and hash again.
            put = partial(self._request, "PUT", ref.key, view, digest=ref.digest, headers=described, on_piece=on_piece)
            self._finally_there(ref, put)
        return ref

    def put_json(self, key: str, record: Mapping[str, Any]) -> BlobRef:
        """Stores a record as indented JSON, which people can read too; a number that is not finite becomes null."""
        text = json_records.dumps(record, indent=2).encode() + b"\n"
        if len(text) > MAX_RECORD:
            raise BadInput(f"{key}: a record of {len(text)} bytes could not be read again; {MAX_RECORD} are the most")
        return self.put(key, text)

    def get_into(self, ref: BlobRef, buffer: npt.NDArray[np.uint8]) -> None:
        """Receives a blob into `buffer` and hashes it on arrival; `Refused` unless it matches `ref`."""
        if buffer.nbytes != ref.size:
            raise ValueError(f"{ref.key}: a buffer of {buffer.nbytes} bytes for {ref.size}")
        self._patiently(lambda: self._receive(ref, buffer), ref.size)

    def get_span(self, ref: BlobRef, start: int, buffer: npt.NDArray[np.uint8]) -> None:
        """Fills `buffer` with the bytes of a blob from `start` on; unchecked, because no digest covers a part."""
        self._patiently(partial(self._receive_span, ref, start, buffer), buffer.nbytes)

    def get(self, ref: BlobRef) -> npt.NDArray[np.uint8]:
        """A whole blob in a new buffer."""
        buffer = np.empty(ref.size, np.uint8)
        self.get_into(ref, buffer)
        return buffer

    def get_json(self, key: str) -> dict[str, Any]:
        """A record, or `NotFound`; `Refused` if its digest is known and does not match."""
        return self._patiently(lambda: self._read(key))

    def exists(self, key: str) -> bool:
        try:
            self.stat(key)
        except NotFound:
            return False
        return True

    def stat(self, key: str) -> tuple[int, dict[str, str]]:
        """Size of a blob in bytes, and its metadata by lower-case names; `NotFound` if there is no such blob."""
        found = self._patiently(lambda: self._client.stat_object(self.bucket, key))
        return found.size or 0, _metadata(found)

    def folders(self, prefix: str) -> list[str]:
        """The names of the folders directly below `prefix`, in order."""
        found = self._patiently(lambda: list(self._client.list_objects(self.bucket, prefix=prefix)))
        return sorted(item.object_name[len(prefix) : -1] for item in found if item.is_dir and item.object_name)

    def list(self, prefix: str) -> list[str]:
        """The keys below `prefix`, in order."""
        found = self._patiently(lambda: list(self._client.list_objects(self.bucket, prefix=prefix, recursive=True)))
        return sorted(item.object_name for item in found if item.object_name)

    def delete(self, prefix: str, *, holding: str = "") -> int:
        """Removes the blobs below `prefix` (that have `holding` in their keys) and returns their number."""
        keys = [key for key in self.list(prefix) if holding in key]
        self._patiently(lambda: self._remove(keys))
        return len(keys)

    def remove(self, keys: Sequence[str]) -> None:
        """Removes blobs by their keys; a missing one is no error."""
        if keys:
            self._patiently(lambda: self._remove(keys))

    def make_bucket(self) -> bool:
        """Makes this bucket; true if it was missing."""
        if self._patiently(lambda: self._client.bucket_exists(self.bucket)):
            return False
        self._patiently(lambda: self._client.make_bucket(self.bucket))
        return True

    def make_key(self, access_key: str, secret_key: str, writes: Sequence[str]) -> bool:
        """Gives an access key this secret, and rights to read the bucket and to write below the patterns of `writes`.

        True if the key was missing. This uses MinIO's admin API: `NoKeys` if the store lacks it or refuses its use.
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
            # The list comes before any write, because a store without this API may take the written data for a blob.
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
        # The list comes first, because a server may make a missing bucket when an administrator writes to it. A list
        # also gets the reason of a refusal, unlike a question whether the bucket exists.
        self.list("probe/")
        key = f"probe/{time.time_ns()}"
        ref = self.put(key, b"fedq")
        self.get(ref)
        self.delete(key)
        response = self._patiently(lambda: self._http.request("GET", self._endpoint, redirect=False))
        return str(response.headers.get("Server", "S3"))

    def _patiently(self, attempt: Callable[[], Result], size: int = 0) -> Result:
        """The result of `attempt`, which is repeated while that may help; `size` bytes add time to the patience."""
        self._http.end_by(time.monotonic() + self._patience + size / SLOWEST)
        retry = Retry(*PAUSES, patience=self._patience, least=0)
        briefly = Retry(*PAUSES, patience=min(BRIEFLY, self._patience))
        wrong = 0
        while True:
            pause = retry.pause()
            try:
                with self._translated():
                    return attempt()
            except Refused:
                wrong += 1
                if wrong == ATTEMPTS:
                    raise
            except Faltered as error:
                if (briefly if error.lasting else retry).ends_within(pause):
                    raise
            time.sleep(pause)

    def _finally_there(self, ref: BlobRef, send: Callable[[], object]) -> None:
        """Sends a blob, or the request that completes it, until the store has it."""

        def attempt() -> None:
            try:
                with self._translated():
                    send()
            except Unavailable:
                # The upload may be complete and only the reply lost, so the store is asked before another try.
                if not self._has(ref):
                    raise

        self._patiently(attempt, ref.size)

    def _put_parts(
        self, ref: BlobRef, view: memoryview, described: dict[str, str], on_piece: Callable[[], None] | None
    ) -> None:
        """Uploads a blob that is too long for one request, in parts; each part has the patience of a whole call."""
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
        # From here on the upload is not aborted, because the store may be joining the parts even if its reply is lost.
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
        """The response to one signed request."""
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
        if response.status >= 300 or b"<Error>" in response.data:  # S3 may fail to join parts after a 200
            if b"<Code>" not in response.data:  # a proxy's answer, not S3's
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
        """Fills `buffer` with a blob; `Refused` if it does not match `ref`."""
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
        if written is not None:  # other tools write no digest
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
        """Turns errors of minio-py and urllib3 in a `with` block into fedq's."""
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
            # A TLS connection that breaks off in the middle is no lasting trouble: it may work the next time.
            found.lasting = trouble is not None or isinstance(error, urllib3.exceptions.NewConnectionError)
            raise found from error

    def _refusal(self, error: S3Error) -> FedqError:
        """The error for users that stands for S3's answer."""
        match error.code:
            case "NoSuchKey" | "NoSuchObject":
                return NotFound(f"{self.place} has no {error.object_name}")
            case "NoSuchBucket":
                return Unavailable(f"{self.place}: there is no such bucket; create it or set FEDQ_S3_BUCKET")
            case code if code in _DENIED:
                return Denied(f"{self.place} refuses these credentials ({code}); check {_DENIED[code]}")
            case "AuthorizationHeaderMalformed" | "IllegalLocationConstraintException" | "PermanentRedirect":
                return Unavailable(f"{self.place} is of another region ({error.message}); check FEDQ_S3_REGION")
            case "BadRequest":  # not a code of S3: the server takes no request at all
                return Unavailable(f"{self.place} takes no request; is FEDQ_S3_URL right, http:// or https://?")
            case code:
                kind = Faltered if code in _PASSING else Unavailable
                return kind(f"{self.place} answers {code}: {error.message}")


class _Http(urllib3.PoolManager):
    """Connections whose requests are sent once and end by their thread's deadline, however slow the answer."""

    def __init__(self, place: str, read: float) -> None:
        super().__init__(maxsize=16, retries=False)
        self._place, self._read_s = place, read
        self._own = threading.local()

    def end_by(self, deadline: float) -> None:
        self._own.deadline = deadline

    def left(self) -> float:
        """Seconds left for this thread's call, or `Faltered` if there are none."""
        left: float = self._own.deadline - time.monotonic()
        if left <= 0:
            raise Faltered(f"{self._place} is too slow; check FEDQ_S3_URL and the line to it")
        return left

    def body(self, response: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
        """The pieces of a response as they arrive, until the thread's deadline."""
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
    """An S3 policy with the rights to read a bucket, and to write and remove keys that match one of `writes`."""
    name = f"arn:aws:s3:::{bucket}"
    reads = [("s3:GetBucketLocation", name), ("s3:ListBucket", name), ("s3:GetObject", f"{name}/*")]
    changes = ["s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload", "s3:ListMultipartUploadParts"]
    statements = [*(([action], [place]) for action, place in reads), (changes, [f"{name}/{keys}" for keys in writes])]
    return {
        "Version": "2012-10-17",
        "Statement": [{"Effect": "Allow", "Action": actions, "Resource": places} for actions, places in statements],
    }


def _refusal(error: Exception) -> str:
    """A server's reason for refusing a call of the admin API: MinIO's message, or the status if it lacks the API."""
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


#: The settings to check, by S3's code for a refusal.
_DENIED = {
    "AccessDenied": "FEDQ_S3_ACCESS_KEY, FEDQ_S3_SECRET_KEY and their rights on the bucket FEDQ_S3_BUCKET",
    "InvalidAccessKeyId": "FEDQ_S3_ACCESS_KEY",
    "InvalidToken": "FEDQ_S3_ACCESS_KEY",
    "SignatureDoesNotMatch": "FEDQ_S3_SECRET_KEY",
}

#: S3's codes for troubles that may pass in a moment, including a body that was garbled or broken off on its way.
_PASSING = (
    "InternalError", "SlowDown", "ServiceUnavailable", "RequestTimeout", "OperationAborted",
    "IncompleteBody", "BadDigest", "XAmzContentSHA256Mismatch",
)  # fmt: skip


class _Pieces:
    """A memoryview in pieces, because a socket's time-out applies to the whole of one send."""

    def __init__(self, view: memoryview, on_piece: Callable[[], None] | None, left: Callable[[], float]) -> None:
        self._view, self._on_piece, self._left = view, on_piece, left

    def __iter__(self) -> Iterator[memoryview]:
        for start in range(0, len(self._view), PIECE):
            self._left()
            yield self._view[start : start + PIECE]
            if start == 0 and self._on_piece is not None:
                self._on_piece()
