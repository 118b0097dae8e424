"""Tables in CSV files: columns of text and numbers, and the examples that they make.

The first row names the columns. Whatever is neither text nor a number is refused with its row and its column. No
sentence quotes a value: the file is a silo's, and the sentence is read by everyone who reads the job's record.
"""

import csv
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from unicodedata import normalize

import numpy as np
import numpy.typing as npt

from services.trainer.data.source import (
    Labels,
    Preparation,
    StoredExamples,
    alike,
    as_floats,
    existing,
    floats,
    refuse_undeclared,
    some,
)
from shared.errors import BadInput
from shared.job.catalog.data import MOST_CLASSES, Csv

Column = tuple[str, ...]
Numbers = npt.NDArray[np.float64]

LONGEST = 200  #: most characters of a label
LARGEST = float(np.finfo(np.float32).max)

_WORDS_FOR_NOTHING = {"nan", "-nan", "na", "n/a", "#na", "#n/a", "<na>", "nat", "null", "none", "nil", "-", "?"}
_TRUTH = {"true": "1", "false": "0"}
_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}


@dataclass(frozen=True)
class Table:
    """The columns of a file by name, without the blanks around each value, and the number of each row in the file.

    The first row, which names the columns, is row 1; `nameless` are the places of columns that it does not name.
    """

    file: Path
    columns: dict[str, Column]
    rows: Sequence[int]
    nameless: tuple[int, ...]

    def text(self, name: str) -> Column:
        """A column of words, each of them there and printable; `BadInput` names the row."""
        column = self.columns[name]
        missing = "no value; add it, or remove the row"
        self.refuse(name, column, lambda value: not value or value.lower() == "nan", missing)
        wrong = "characters that cannot be shown; mend it"
        self.refuse(name, column, lambda value: not value.isprintable(), wrong)
        long = f"more than {LONGEST} characters; such text is no label and no name"
        self.refuse(name, column, lambda value: len(value) > LONGEST, long)
        return column

    def numbers(self, name: str) -> Numbers:
        """A column of numbers (n,), of which true and false are 1 and 0; `BadInput` names the row."""
        column = self.columns[name]
        if not any(map(is_number, column)):  # cheap: `any` ends at the first number
            column = tuple(_TRUTH.get(value.lower(), value) for value in column)
        found = _floats(column)
        wrong = np.flatnonzero(~(np.abs(found) <= LARGEST))
        if wrong.size:
            reason = _trouble(column[wrong[0]])
            self._fail(name, wrong.tolist(), f"{reason}; mend it, or name the column in data.drop")
        return found

    def refuse_words_for_nothing(self, name: str, advice: str) -> None:
        """`BadInput` if a column of words has one for a missing value; `-` may be a word like `+`."""
        reason = f"a word for a missing value; mend it, {advice}"
        self.refuse(name, self.columns[name], lambda value: value.lower() in _WORDS_FOR_NOTHING - {"-"}, reason)

    def refuse(self, name: str, column: Column, is_wrong: Callable[[str], bool], reason: str) -> None:
        """`BadInput` with the first row whose value is wrong, and how many there are."""
        if wrong := [place for place, value in enumerate(column) if is_wrong(value)]:
            self._fail(name, wrong, reason)

    def _fail(self, name: str, places: list[int], reason: str) -> None:
        more = f" ({len(places)} such rows)" if len(places) > 1 else ""
        raise BadInput(f"{self.file}: row {self.rows[places[0]]}, column {name}: {reason}{more}")


def read_table(file: Path) -> Table:
    """The table in a file; `BadInput` if it is none, or a row of it is not as long as the first."""
    header, body = _records(file)
    header = [normalize("NFC", name.strip()) for name in header]
    if not header and body:
        raise BadInput(f"{file}: its first row is blank, and it names the columns; remove it")
    if len(header) == 1 and (found := [word for mark, word in _SEPARATORS.items() if mark in header[0]]):
        raise BadInput(
            f"{file}: its first row is separated by {found[0]}; write it with commas between values and points in "
            "numbers, in pandas by to_csv(…, sep=',', decimal='.')"
        )
    if not all(name.isprintable() for name in header):
        raise BadInput(f"{file}: its first row names a column by characters that cannot be shown; is it CSV?")
    if twice := [place for place, name in enumerate(header, 1) if name and name in header[: place - 1]]:
        first = header.index(header[twice[0] - 1]) + 1
        raise BadInput(f"{file}: its first row gives columns {first} and {twice[0]} the same name; rename one of them")
    if not header and not body:
        raise BadInput(f"{file} is empty; its first row names the columns, and those below it are the examples")
    if not body:
        raise BadInput(f"{file} has no rows below its first, which names the columns")
    for number, row in body:
        if len(row) != len(header):
            raise BadInput(f"{file}: row {number} has {len(row)} values for {len(header)} columns")
    columns = map(_cleaned, zip(*(row for _, row in body), strict=True))
    return Table(
        file,
        {name: column for name, column in zip(header, columns, strict=True) if name},
        [number for number, _ in body],
        tuple(place for place, name in enumerate(header, 1) if not name),
    )


def _records(file: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The first row, and the numbered others without those that are blank."""
    if not file.is_file():
        raise BadInput(f"{file} is no file")
    number = 0
    body: list[tuple[int, list[str]]] = []
    try:
        # A spreadsheet may begin its file with a byte order mark.
        with file.open(newline="", encoding="utf-8-sig") as text:
            rows = csv.reader(text, strict=True, skipinitialspace=True)
            header = next(rows, [])
            number = 1
            for number, row in enumerate(rows, 2):
                if row:
                    body.append((number, row))
    except UnicodeDecodeError:
        raise BadInput(f"{file} is no text in UTF-8; save it as CSV in UTF-8") from None
    except csv.Error as error:
        raise BadInput(f"{file}: row {number + 1} cannot be read as CSV: {error}") from error
    except OSError as error:
        raise BadInput(f"{file} cannot be read: {error.strerror}") from error
    return header, body


def require(table: Table, names: Sequence[str]) -> None:
    """`BadInput` that says which of these columns a table lacks."""
    if missing := [name for name in names if name not in table.columns]:
        word = "column" if len(missing) == 1 else "columns"
        near = set(map(alike, table.columns)) & set(map(alike, missing))
        hint = "; one of them differs in capitals or blanks alone" if near else ""
        raise BadInput(f"{table.file} has no {word} {some(missing)} among its {len(table.columns)}{hint}")


def is_number(value: str) -> bool:
    """True if a value is a number, be it infinite."""
    return not np.isnan(_number(value))


def _cleaned(column: Column) -> Column:
    column = tuple(map(str.strip, column))
    # Letters that look the same are the same.
    return column if "".join(column).isascii() else tuple(normalize("NFC", value) for value in column)


def _floats(column: Column) -> Numbers:
    text = "".join(column)
    if text.isascii() and "_" not in text:
        try:
            return np.fromiter(map(float, column), np.float64, len(column))
        except ValueError:
            pass
    return np.fromiter(map(_number, column), np.float64, len(column))


def _number(value: str) -> float:
    """NaN for what is no number; `float` alone would take 1_000 and digits of any script."""
    if not value.isascii() or "_" in value:
        return np.nan
    try:
        return float(value)
    except ValueError:
        return np.nan


def _trouble(value: str) -> str:
    """The reason why no model can be trained on a value, in words that do not give it away."""
    if not value:
        return "no value, and it needs a number"
    if value.lower() in _WORDS_FOR_NOTHING:
        return "a word for a missing value, which is no number"
    if re.fullmatch(r"[-+]?\d[\d.,]*", value) and "," in value:
        return "a comma in its number; numbers have a point, and nothing between thousands"
    if re.fullmatch(r"[-+]?(inf|infinity)", value.lower()):
        return "an infinite number"
    if is_number(value):
        return "a number beyond float32 (3.4e38), to be given in another unit"
    return "text, which is no number"


COUNTED = 10  #: rows, from which on a column that counts them is an index

_ROUNDING = 2.0**-40  #: largest relative error of a mean

_WHOLE = re.compile(r"[-+]?[0-9]+(\.0*)?")


def read(file: Path, spec: Csv, key: str | None) -> StoredExamples:
    """Features (n, columns) and the classes of the column `spec.label`; `key` is the column of owners, if any.

    Features are `spec.columns`, in that order whatever the file's, else every column but these and `spec.drop`. Labels
    may be words: classes are `spec.classes`, else they are sorted, by number where all of them are whole numbers. With
    `spec.scale` a feature is scaled by `spec.statistics`, else to mean 0 and deviation 1 over all rows of the file.
    """
    existing(file, "csv", "the file")
    table = read_table(file)
    others = (spec.label, *spec.drop, *([] if key is None else [key]))
    require(table, (*others, *(spec.columns or ())))
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
    return StoredExamples(
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
    """`BadInput` if a column counts the rows: in a file that is sorted by class it would give the label away."""
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
    """`BadInput` if a column that has a name counts the rows as well; of a few rows, it may do so by chance."""
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
    # The mean of equal values is rounded, so their deviation is not 0.
    is_constant = deviation <= _ROUNDING * np.abs(mean)
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
    if not whole and not all(map(is_number, names)):
        seen: dict[str, str] = {}
        twice = (
            "a label that differs from another one in capitals or blanks alone; spell them alike, or declare both in "
            "data.classes"
        )
        for label in sorted(names):
            if len(label) > 1 and seen.setdefault(alike(label), label) != label:
                table.refuse(name, column, lambda value, wrong=label: value == wrong, twice)  # type: ignore[misc]
        return tuple(sorted(names))
    some_other = "a number that is not whole" if all(map(is_number, names)) else "a word"
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
