"""Rows of numbers in a CSV file whose first row names its columns."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from services.trainer.data.source import Labels, Source, existing
from shared.catalog.data import Csv
from shared.errors import BadInput

Column = tuple[str, ...]


def read(file: Path, spec: Csv, key: str | None) -> Source:
    """Features (n, columns) and the classes of the column `spec.label`; `key` is the column of owners, if any.

    Every column is a feature but these and `spec.drop`. Labels may be words: classes are sorted, by number where all
    of them are whole numbers. With `spec.scale` a feature has mean 0 and deviation 1 over all rows of the file.
    """
    existing(file, "csv", "the file")
    columns = _columns(file)
    for name in (spec.label, *spec.drop, *([] if key is None else [key])):
        if name not in columns:
            raise BadInput(f"{file.absolute()} has no column {name}; it has {', '.join(columns)}")
    features = [name for name in columns if name not in (spec.label, key, *spec.drop)]
    if not features:
        raise BadInput(f"{file.absolute()}: no column is left to learn from beside {spec.label}")
    x = np.stack([_numbers(file, name, columns[name]) for name in features], axis=1)
    if spec.scale:
        deviation = x.std(axis=0, dtype=np.float64)
        x = (x - x.mean(axis=0, dtype=np.float64)) / np.where(deviation > 0, deviation, 1)  # a constant one becomes 0
    y, names = _classes(columns[spec.label])
    owners = None if key is None else np.array(columns[key])
    return Source(x=x.astype(np.float32), y=y, shape=(len(features),), names=names, owners=owners)


def _columns(file: Path) -> dict[str, Column]:
    """The columns by name, as text."""
    try:
        with file.open(newline="", encoding="utf-8-sig") as text:  # a spreadsheet may begin its file with a mark
            rows = csv.reader(text, strict=True)
            header = next(rows, [])
            body = [row for row in rows if row]
            line = rows.line_num
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadInput(f"{file.absolute()} cannot be read as CSV: {error}") from error
    if len(set(header)) < len(header):
        raise BadInput(f"{file.absolute()} names a column twice in its first row")
    if not body:
        raise BadInput(f"{file.absolute()} has no rows below its first, which names the columns ({line} lines)")
    for number, row in enumerate(body, 2):
        if len(row) != len(header):
            raise BadInput(f"{file.absolute()}: row {number} has {len(row)} values for {len(header)} columns")
    return dict(zip(header, zip(*body, strict=True), strict=True))


def _numbers(file: Path, name: str, column: Column) -> npt.NDArray[np.float64]:
    try:
        found = np.array(column).astype(np.float64)
        wrong = np.flatnonzero(~np.isfinite(found))
    except ValueError:
        wrong = np.flatnonzero([not _is_number(value) for value in column])
    if wrong.size:
        raise BadInput(
            f"{file.absolute()}: row {wrong[0] + 2} has {column[wrong[0]]!r} in column {name}, which is no number; "
            "mend it, or name the column in data.drop"
        )
    return found


def _is_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True


def _classes(column: Column) -> tuple[Labels, tuple[str, ...]]:
    """The class of each row, and the names of the classes."""
    order: Any = int if all(value.strip().lstrip("-").isdecimal() for value in column) else str
    names = sorted(set(column), key=order)
    places = {name: place for place, name in enumerate(names)}
    return np.array([places[value] for value in column], dtype=np.int64), tuple(names)
