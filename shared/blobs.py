"""The object store: put, get and list blobs by key, each checked against its SHA-256.

The only module that knows minio-py, and it asks of the server nothing but S3's common ground.
A `Blobs` is safe to share between threads, not between processes.
"""

import hashlib
import io
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt
import urllib3
from minio import Minio, S3Error
from minio.credentials.credentials import Credentials
from minio.deleteobjects import DeleteObject
from minio.error import MinioException
from minio.helpers import quote
from minio.signer import sign_v4_s3
from minio.time import to_amz_date, utcnow

from shared.errors import FedqError, Refused, Unavailable
from shared.events import BlobRef
from shared.settings import Store

Bytes = bytes | npt.NDArray[np.uint8]

PIECE = 1 << 18  #: bytes sent at a time, each within the connect time-out
CHUNK = 1 << 20  #: bytes received, copied and hashed at a time: they stay in the cache
SINGLE_PUT = 4 << 30  #: bytes; S3 takes at most 5 GiB in one request
PART = 64 << 20  #: bytes of a part of what is longer
MAX_RECORD = 64 << 20  #: bytes of a JSON record that will be read
ATTEMPTS = 3


class NotFound(FedqError):
    """There is no such key in the bucket."""


class Blobs:
    """One bucket of an S3 service."""

    def __init__(self, settings: Store) -> None:
        url = urlsplit(settings.s3_url.get_secret_value())
        self.bucket = settings.s3_bucket
        self.place = f"{url.scheme}://{url.netloc}/{self.bucket}"
        self._endpoint = f"{url.scheme}://{url.netloc}"
        self._region = settings.s3_region
        self._credentials = Credentials(
            settings.s3_access_key.get_secret_value(), settings.s3_secret_key.get_secret_value()
        )
        # minio-py's own pool would wait for 30 minutes on a server that answers nothing.
        self._http = urllib3.PoolManager(
            timeout=urllib3.Timeout(connect=5, read=30),
            maxsize=16,
            retries=urllib3.Retry(3, backoff_factor=0.2, backoff_jitter=0.2, status_forcelist=(500, 502, 503, 504)),
        )
        self._client = Minio(
            url.netloc,
            access_key=self._credentials.access_key,
            secret_key=self._credentials.secret_key,
            secure=url.scheme == "https",
            region=self._region,
            http_client=self._http,
        )

    def put(self, key: str, body: Bytes, *, digest: str | None = None, metadata: Mapping[str, Any] = {}) -> BlobRef:
        """Stores `body` under `key`; on return the store has it, whole."""
        view = (memoryview(body) if isinstance(body, bytes) else body.data).cast("B")
        ref = BlobRef(key=key, size=view.nbytes, digest=digest or hashlib.sha256(view).hexdigest())
        described = {f"x-amz-meta-{name}": str(value) for name, value in metadata.items()}
        described["x-amz-meta-digest"] = ref.digest
        for attempt in range(1, ATTEMPTS + 1):
            try:
                with self._translated():
                    self._send(ref, view, described)
                return ref
            except Unavailable:
                # The reply may be lost and the upload complete: look before trying again.
                if attempt == ATTEMPTS or self._has(ref):
                    if self._has(ref):
                        return ref
                    raise
        raise AssertionError("unreachable")

    def put_json(self, key: str, record: Mapping[str, Any]) -> BlobRef:
        """Stores a record as indented JSON, to be read by people too."""
        text = json.dumps(record, indent=2, sort_keys=False).encode() + b"\n"
        return self.put(key, text)

    def get_into(self, ref: BlobRef, buffer: npt.NDArray[np.uint8]) -> None:
        """Receives a blob into `buffer`, hashing as it comes; `Refused` unless it is what `ref` says."""
        if buffer.nbytes != ref.size:
            raise ValueError(f"{ref.key}: a buffer of {buffer.nbytes} bytes for {ref.size}")
        found = ""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                found = self._receive(ref, buffer)
            except Unavailable:
                if attempt == ATTEMPTS:
                    raise
                continue
            if found == ref.digest:
                return
        raise Refused(f"{ref.key}: its digest is {found[:12]}… instead of {ref.digest[:12]}…")

    def get(self, ref: BlobRef) -> npt.NDArray[np.uint8]:
        """A whole blob in a new buffer."""
        buffer = np.empty(ref.size, np.uint8)
        self.get_into(ref, buffer)
        return buffer

    def get_json(self, key: str) -> dict[str, Any]:
        """A record, or `NotFound`."""
        with self._translated(), self._open(key) as response:
            body = response.read(MAX_RECORD + 1)
        if len(body) > MAX_RECORD:
            raise Refused(f"{key}: a record of more than {MAX_RECORD} bytes")
        try:
            record = json.loads(body)
        except ValueError:
            record = None
        if not isinstance(record, dict):
            raise Refused(f"{key}: not a JSON object")
        return record

    def exists(self, key: str) -> bool:
        try:
            with self._translated():
                self._client.stat_object(self.bucket, key)
        except NotFound:
            return False
        return True

    def list(self, prefix: str) -> list[str]:
        """The keys below `prefix`, in order."""
        with self._translated():
            found = self._client.list_objects(self.bucket, prefix=prefix, recursive=True)
            return sorted(item.object_name for item in found if item.object_name)

    def delete(self, prefix: str, *, holding: str = "") -> int:
        """Removes what is below `prefix` (and has `holding` in its key) and says how many blobs that were."""
        keys = [key for key in self.list(prefix) if holding in key]
        with self._translated():
            errors = list(self._client.remove_objects(self.bucket, (DeleteObject(key) for key in keys)))
        if errors:
            raise Unavailable(f"{self.place} did not remove {errors[0].name}: {errors[0].message}")
        return len(keys)

    def probe(self) -> str:
        """Checks that this bucket can be listed, written, read and cleared; returns the server's name."""
        with self._translated():
            # Asked first: a server may make a missing bucket for an administrator who writes to it.
            if not self._client.bucket_exists(self.bucket):
                raise Unavailable(f"{self.place}: there is no such bucket; create it or set FEDQ_S3_BUCKET")
        key = f"probe/{time.time_ns()}"
        ref = self.put(key, b"fedq")
        self.get(ref)
        self.delete(key)
        response = self._http.request("GET", self._endpoint, redirect=False, retries=False)
        return str(response.headers.get("Server", "S3"))

    def _send(self, ref: BlobRef, view: memoryview, described: dict[str, str]) -> None:
        if ref.size > SINGLE_PUT:
            stream = io.BufferedReader(_Reader(view))
            self._client.put_object(self.bucket, ref.key, stream, ref.size, metadata=dict(described), part_size=PART)
            return
        # The blob's digest is the payload hash that S3 signs: one pass over the bytes gives the name and the
        # signature, and servers that check payloads refuse a garbled one. minio-py would copy and hash them again.
        date = utcnow()
        url = urlsplit(f"{self._endpoint}/{self.bucket}/{quote(ref.key)}")
        headers: Any = {
            "Host": url.netloc,
            "Content-Type": "application/octet-stream",
            "Content-Length": str(ref.size),
            "x-amz-content-sha256": ref.digest,
            "x-amz-date": to_amz_date(date),
            **described,
        }
        signed: Any = sign_v4_s3(
            method="PUT",
            url=url,
            region=self._region,
            headers=headers,
            credentials=self._credentials,
            content_sha256=ref.digest,
            date=date,
        )
        # In pieces: a socket's time-out bounds the whole of one send. As a list, which a retry can send again.
        pieces = [view[start : start + PIECE] for start in range(0, ref.size, PIECE)]
        response = self._http.request("PUT", url.geturl(), body=cast("list[bytes]", pieces), headers=signed)
        if response.status != 200:
            if b"<Code>" not in response.data:  # not S3's answer: a proxy's
                raise Unavailable(f"{self.place} answers {response.status} to an upload; is FEDQ_S3_URL right?")
            raise S3Error.fromxml(response)

    def _has(self, ref: BlobRef) -> bool:
        try:
            found = self._client.stat_object(self.bucket, ref.key)
        except (MinioException, urllib3.exceptions.HTTPError, OSError):
            return False
        metadata = {name.lower(): value for name, value in (found.metadata or {}).items()}
        return found.size == ref.size and metadata.get("x-amz-meta-digest") == ref.digest

    def _receive(self, ref: BlobRef, buffer: npt.NDArray[np.uint8]) -> str:
        """Fills `buffer` and returns the digest of what came, `Refused` where the length is not `ref`'s."""
        digest = hashlib.sha256()
        target = buffer.data
        with self._translated(), self._open(ref.key) as response:
            length = int(response.headers.get("Content-Length", ref.size))
            if length != ref.size:
                raise Refused(f"{ref.key} has {length} bytes instead of {ref.size}")
            position = 0
            for chunk in response.stream(CHUNK):
                target[position : position + len(chunk)] = chunk
                digest.update(chunk)
                position += len(chunk)
            if position != ref.size:
                raise Unavailable(f"{self.place} sent {position} of the {ref.size} bytes of {ref.key}")
        return digest.hexdigest()

    @contextmanager
    def _open(self, key: str) -> Iterator[urllib3.BaseHTTPResponse]:
        response = self._client.get_object(self.bucket, key)
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
            if error.code in ("NoSuchKey", "NoSuchObject"):
                raise NotFound(f"{self.place} has no {error.object_name}") from error
            if error.code == "NoSuchBucket":
                raise Unavailable(f"{self.place}: there is no such bucket; create it or set FEDQ_S3_BUCKET") from error
            if error.code in _DENIED:
                raise Unavailable(
                    f"{self.place} refuses these credentials ({error.code}); "
                    "check FEDQ_S3_ACCESS_KEY, FEDQ_S3_SECRET_KEY and their rights on the bucket"
                ) from error
            raise Unavailable(f"{self.place} answers {error.code}: {error.message}") from error
        except (urllib3.exceptions.HTTPError, MinioException, OSError) as error:
            reason = getattr(error, "reason", None) or error
            raise Unavailable(f"{self.place} cannot be reached ({reason}); check FEDQ_S3_URL") from error


_DENIED = ("AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken")


class _Reader(io.RawIOBase):
    """A memoryview as a stream, for minio-py's multipart upload."""

    def __init__(self, view: memoryview) -> None:
        self._view, self._position = view, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        piece = self._view[self._position : self._position + len(buffer)]
        buffer[: len(piece)] = piece
        self._position += len(piece)
        return len(piece)
