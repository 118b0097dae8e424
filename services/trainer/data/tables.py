"""Rows of numbers in a CSV file whose first row names its columns."""

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from services.trainer.data.source import Labels, Preparation, Source, as_floats, existing, refuse_undeclared, some
from shared.catalog.data import Csv
from shared.errors import BadInput

Column = tuple[str, ...]
Numbers = npt.NDArray[np.float64]


def read(file: Path, spec: Csv, key: str | None) -> Source:
    """Features (n, columns) and the classes of the column `spec.label`; `key` is the column of owners, if any.

    Features are `spec.columns`, in that order whatever the file's, else every column but these and `spec.drop`. Labels
    may be words: classes are `spec.classes`, else they are sorted, by number where all of them are whole numbers. With
    `spec.scale` a feature is scaled by `spec.statistics`, else to mean 0 and deviation 1 over all rows of the file.
    """
    existing(file, "csv", "the file")
    columns = _columns(file)
    wanted = (spec.label, *(spec.columns or ()), *spec.drop, *([] if key is None else [key]))
    if missing := [name for name in wanted if name not in columns]:
        word = "column" if len(missing) == 1 else "columns"
        raise BadInput(f"{file.absolute()} has no {word} {some(missing)}; it has {', '.join(columns)}")
    features = spec.columns or [name for name in columns if name not in (spec.label, key, *spec.drop)]
    if not features:
        raise BadInput(f"{file.absolute()}: no column is left to learn from beside {spec.label}")
    x = np.stack([_numbers(file, name, columns[name]) for name in features], axis=1)
    x, prepare = _scaled(x, spec)
    y, names = _classes(file, columns[spec.label], spec.classes)
    return Source(
        x=x.astype(np.float32),
        y=y,
        shape=(len(features),),
        names=names,
        prepare=prepare,
        owners=None if key is None else np.array(columns[key]),
    )


def statistics(x: Numbers) -> tuple[Numbers, Numbers]:
    """The mean and the deviation of each feature, from x (n, features); of a constant one 1, so that it becomes 0."""
    deviation = x.std(axis=0, dtype=np.float64)
    return x.mean(axis=0, dtype=np.float64), np.where(deviation > 0, deviation, 1)


def _scaled(x: Numbers, spec: Csv) -> tuple[Numbers, Preparation]:
    """The features as the job has them scaled, and by what."""
    if not spec.scale:
        return x, as_floats
    given = spec.statistics
    mean, deviation = statistics(x) if given is None else (np.array(given.mean), np.array(given.deviation))
    known = replace(as_floats, offset=tuple(mean.tolist()), scale=tuple(deviation.tolist()))
    return (x - mean) / deviation, known


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


def _numbers(file: Path, name: str, column: Column) -> Numbers:
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


def _classes(file: Path, column: Column, declared: Sequence[str] | None) -> tuple[Labels, tuple[str, ...]]:
    """The class of each row, and the names of the classes."""
    if declared is not None:
        column = tuple(value.strip() for value in column)
        refuse_undeclared(file, Counter(column), declared)
        places = {name: place for place, name in enumerate(declared)}
        return np.array([places[value] for value in column], dtype=np.int64), tuple(declared)
    order: Any = int if all(value.strip().lstrip("-").isdecimal() for value in column) else str
    names = sorted(set(column), key=order)
    places = {name: place for place, name in enumerate(names)}
    return np.array([places[value] for value in column], dtype=np.int64), tuple(names)
