"""Records with entries for each client: one JSON object if that is short, otherwise a head and parts.

A part is a separate blob with all entries of some of the clients, which follow each other by name. The head names the
parts with their digests, and gives the number of entries of each field. So a record of a million clients is written
and read with one part in memory, and most readers need only the head.
"""

import hashlib
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from shared import names
from shared.errors import Refused
from shared.events import BlobRef
from shared.s3 import json_records
from shared.s3.store import MAX_RECORD, Blobs

FEW = 200  #: clients up to which a record is always short, because the entry of each came in one event
MOST = 10_000  #: clients that one object may hold
LONGEST = 16 << 20  #: bytes of an object with several clients as compact JSON; indented, at most three times that

Record = Mapping[str, Any]


def split(blobs: Blobs, key: str, record: Record, fields: Collection[str]) -> dict[str, Any]:
    """The document to store under `key`: the record, or its head, whose parts the store has on return.

    `fields` are the ones with entries of clients: lists of names, lists of objects with a `client`, or objects by name.
    """
    told = {field: _in_order(record[field]) for field in fields if field in record}
    clients = sorted({client for entries in told.values() for client, _ in entries})
    if len(clients) <= FEW or (len(clients) <= MOST and len(_compact(record)) <= LONGEST):
        return dict(record)
    shapes = {field: type(record[field]) for field in told}
    placed = [_put(blobs, key, place, text).model_dump() for place, text in enumerate(_texts(told, shapes, clients))]
    head = {field: value for field, value in record.items() if field not in told}
    return {**head, "counts": {field: len(entries) for field, entries in told.items()}, "parts": placed}


def count(record: Record, field: str) -> int:
    """The number of entries that a field of a record, or of its head, has."""
    return int(record["counts"][field]) if "parts" in record else len(record.get(field, ()))


def pieces(blobs: Blobs, key: str, record: Record) -> Iterator[Record]:
    """The fields with entries of clients, part by part; for a short record, the record itself.

    Raises `Refused` if a part does not match the head.
    """
    if "parts" not in record:
        yield record
        return
    with json_records.reading(key):
        refs = [BlobRef.model_validate(part) for part in record["parts"]]
        expected = dict(record["counts"])
    found = dict.fromkeys(expected, 0)
    for place, ref in enumerate(refs):
        if ref.key != names.part_blob(key, place, ref.digest) or ref.size > MAX_RECORD:
            raise Refused(f"{key}: {ref.key} is no part of it")
        piece = json_records.loads(ref.key, blobs.get(ref).tobytes())
        with json_records.reading(ref.key):
            found = {field: number + len(piece[field]) for field, number in found.items()}
        yield piece
    if found != expected:
        raise Refused(f"{key}: its parts hold {found}, and it says {expected}")


def whole(blobs: Blobs, key: str) -> dict[str, Any]:
    """The record under `key`, joined from its parts; `NotFound` if there is none."""
    return joined(blobs, key, blobs.get_json(key))


def joined(blobs: Blobs, key: str, record: Record) -> dict[str, Any]:
    """The whole record that a head stands for; a short record as it is."""
    if "parts" not in record:
        return dict(record)
    found = {field: value for field, value in record.items() if field not in ("counts", "parts")}
    for piece in pieces(blobs, key, record):
        with json_records.reading(key):
            for field in record["counts"]:
                part = piece[field]
                if isinstance(part, dict):
                    found.setdefault(field, {}).update(part)
                else:
                    found.setdefault(field, []).extend(part)
    return found


def _in_order(entries: Any) -> list[tuple[str, Any]]:
    """The entries of a field, each with its client, in the order of the clients' names."""
    if isinstance(entries, Mapping):
        return sorted(entries.items())
    return sorted(((entry if isinstance(entry, str) else entry["client"], entry) for entry in entries), key=_client)


def _client(entry: tuple[str, Any]) -> str:
    return entry[0]


def _texts(
    told: Mapping[str, Sequence[tuple[str, Any]]], shapes: Mapping[str, type], clients: Sequence[str]
) -> Iterator[bytes]:
    """Texts of the parts that hold all entries of these clients, each short enough, in the order of their names."""
    if len(clients) > MOST:
        for start in range(0, len(clients), MOST):
            yield from _texts(told, shapes, clients[start : start + MOST])
        return
    piece = {field: _of(entries, shapes[field], clients) for field, entries in told.items()}
    text = _compact(piece)
    if len(text) <= LONGEST or len(clients) == 1:
        yield text
        return
    middle = len(clients) // 2
    yield from _texts(told, shapes, clients[:middle])
    yield from _texts(told, shapes, clients[middle:])


def _compact(record: Record) -> bytes:
    """The text of a part as compact JSON: to indent it only for its length would take many times as long."""
    return json_records.dumps(record, separators=(",", ":")).encode()


def _of(entries: Sequence[tuple[str, Any]], shape: type, clients: Sequence[str]) -> Any:
    """The entries of a field for clients that follow each other by name."""
    first = bisect_left(entries, clients[0], key=_client)
    found = entries[first : bisect_right(entries, clients[-1], key=_client)]
    return dict(found) if issubclass(shape, Mapping) else [entry for _, entry in found]


def _put(blobs: Blobs, key: str, place: int, text: bytes) -> BlobRef:
    digest = hashlib.sha256(text).hexdigest()
    return blobs.put(names.part_blob(key, place, digest), text, digest=digest)
