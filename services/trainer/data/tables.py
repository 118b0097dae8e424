"""Rows of numbers in a CSV file whose first row names its columns."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from services.trainer.data import rows
from services.trainer.data.checks import floats
from services.trainer.data.rows import Column, Numbers, Table
from services.trainer.data.source import Labels, Preparation, Source, alike, as_floats, existing, refuse_undeclared
from shared.errors import BadInput
from shared.job.catalog.data import MOST_CLASSES, Csv

COUNTED = 10  #: rows, from which on a column that counts them is an index

_ROUNDING = 2.0**-40  #: of a mean, what its error may be

_WHOLE = re.compile(r"[-+]?[0-9]+(\.0*)?")


def read(file: Path, spec: Csv, key: str | None) -> Source:
    """Features (n, columns) and the classes of the column `spec.label`; `key` is the column of owners, if any.

    Features are `spec.columns`, in that order whatever the file's, else every column but these and `spec.drop`. Labels
    may be words: classes are `spec.classes`, else they are sorted, by number where all of them are whole numbers. With
    `spec.scale` a feature is scaled by `spec.statistics`, else to mean 0 and deviation 1 over all rows of the file.
    """
    existing(file, "csv", "the file")
    table = rows.read(file)
    others = (spec.label, *spec.drop, *([] if key is None else [key]))
    rows.require(table, (*others, *(spec.columns or ())))
    features = spec.columns or [name for name in table.columns if name not in others]
    if spec.columns is None:
        _refuse_index(table, features)
    if not features:
        raise BadInput(f"{file}: no column is left to learn from beside {spec.label}")
    x = np.stack([table.numbers(name) for name in features], axis=1)
    if spec.columns is None:
        _refuse_count(file, features, x)
    x, prepare = _scaled(x, spec)
    y, names = _classes(table, spec.label, spec.classes)
    if key is not None:
        table.refuse_words_for_nothing(key, "or remove the row")
    return Source(
        x=floats(x, f"{file}: scaled by data.statistics it has values"),
        y=y,
        shape=(len(features),),
        names=names,
        prepare=prepare,
        owners=None if key is None else np.array(table.text(key)),
        features=tuple(features),
        files=(file,),
    )


def _refuse_index(table: Table, features: Sequence[str]) -> None:
    """`BadInput` where a column counts the rows: in a file that is sorted by class it would give the label away."""
    if table.nameless and table.nameless[0] == 1:
        raise BadInput(
            f"{table.file}: its first column has no name, as the index that pandas writes; write the file without it "
            "(index=False), or name the features in data.columns"
        )
    if table.nameless:
        raise BadInput(
            f"{table.file}: its first row has no name for column {table.nameless[0]}; name it, remove a comma that is "
            "too many, or name the features in data.columns"
        )
    if index := [name for name in features if re.fullmatch(r"Unnamed: \d+", name)]:
        raise BadInput(
            f"{table.file}: column {index[0]} is an index that pandas has read without a name; name it in data.drop"
        )


def _refuse_count(file: Path, features: Sequence[str], x: Numbers) -> None:
    """`BadInput` where a column that has a name counts the rows as well; of a few rows, it may do so by chance."""
    if len(x) < COUNTED:
        return
    for name, column in zip(features, x.T, strict=True):
        if column[0] in (0, 1) and (np.diff(column) == 1).all():
            raise BadInput(
                f"{file}: column {name} counts the rows from {column[0]:.0f} on, as an index does; name it in "
                "data.drop, or name the features in data.columns"
            )


def _statistics(x: Numbers) -> tuple[Numbers, Numbers]:
    """The mean and the deviation of each feature, from x (n, features); of a constant one 1, so that it becomes 0."""
    mean, deviation = x.mean(axis=0, dtype=np.float64), x.std(axis=0, dtype=np.float64)
    is_constant = deviation <= _ROUNDING * np.abs(mean)  # of equal values the mean is rounded: the deviation is not 0
    return np.where(is_constant, x[0], mean), np.where(is_constant, 1, deviation)


def _scaled(x: Numbers, spec: Csv) -> tuple[Numbers, Preparation]:
    """The features as the job has them scaled, and by what."""
    if not spec.scale:
        return x, as_floats
    given = spec.statistics
    mean, deviation = _statistics(x) if given is None else (np.array(given.mean), np.array(given.deviation))
    known = replace(as_floats, offset=tuple(mean.tolist()), scale=tuple(deviation.tolist()))
    with np.errstate(over="ignore"):  # the result is looked at
        return (x - mean) / deviation, known


def _classes(table: Table, name: str, declared: Sequence[str] | None) -> tuple[Labels, tuple[str, ...]]:
    """The class of each row, and the names of the classes: the `declared` ones, else all that there are, sorted."""
    column = table.text(name)
    if declared is None:
        names = _sorted(table, name, column)
    else:
        refuse_undeclared(table.file, column, declared)
        names = tuple(declared)
    places = {label: place for place, label in enumerate(names)}
    return np.array([places[value] for value in column], dtype=np.int64), names


def _sorted(table: Table, name: str, column: Column) -> tuple[str, ...]:
    """The labels that there are, which are all whole numbers or all words; `BadInput` names the row that is not so.

    What may be two spellings of one label is refused, unless it is one letter: these may well differ in size.
    """
    names = set(column)
    if len(names) > MOST_CLASSES:
        raise BadInput(f"{table.file}: column {name} has {len(names)} different labels; is it the column of labels?")
    whole = {label for label in names if _WHOLE.fullmatch(label)}
    table.refuse_words_for_nothing(name, "remove the row, or declare it in data.classes where it is a label")
    if not whole and not all(map(rows.is_number, names)):
        seen: dict[str, str] = {}
        twice = (
            "a label that differs from another one in capitals or blanks alone; spell them alike, or declare both in "
            "data.classes"
        )
        for label in sorted(names):
            if len(label) > 1 and seen.setdefault(alike(label), label) != label:
                table.refuse(name, column, lambda value, wrong=label: value == wrong, twice)  # type: ignore[misc]
        return tuple(sorted(names))
    some_other = "a number that is not whole" if all(map(rows.is_number, names)) else "a word"
    reason = (
        f"{some_other}, where others are whole numbers; mend it, or declare all labels in data.classes"
        if whole
        else "a number that is not whole; a class is a whole number or a word, or is declared in data.classes"
    )
    table.refuse(name, column, lambda value: value not in whole, reason)
    values: dict[int, str] = {}
    for label in names:
        if values.setdefault(_value(label), label) != label:
            twice = "a number that other rows write otherwise, such as 1 and 1.0 or 01; write it the same everywhere"
            table.refuse(name, column, lambda value, wrong=label: value == wrong, twice)  # type: ignore[misc]
    return tuple(sorted(names, key=_value))


def _value(label: str) -> int:
    return int(label.partition(".")[0])
