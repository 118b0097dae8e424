"""A CSV file as columns of text or numbers; whatever is none is refused with its row and its column.

No sentence quotes a value: the file is a silo's, and the sentence is read by everybody who reads the job's record.
"""

import csv
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from unicodedata import normalize

import numpy as np
import numpy.typing as npt

from services.trainer.data.source import alike, some
from shared.errors import BadInput

Column = tuple[str, ...]
Numbers = npt.NDArray[np.float64]

LONGEST = 200  #: characters of a label
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
        if not any(map(is_number, column)):  # ends at the first number
            column = tuple(_TRUTH.get(value.lower(), value) for value in column)
        found = _floats(column)
        wrong = np.flatnonzero(~(np.abs(found) <= LARGEST))
        if wrong.size:
            reason = _trouble(column[wrong[0]])
            self._fail(name, wrong.tolist(), f"{reason}; mend it, or name the column in data.drop")
        return found

    def refuse_words_for_nothing(self, name: str, advice: str) -> None:
        """`BadInput` where a column of words has one for a missing value; a minus may be a word beside a plus."""
        reason = f"a word for a missing value; mend it, {advice}"
        self.refuse(name, self.columns[name], lambda value: value.lower() in _WORDS_FOR_NOTHING - {"-"}, reason)

    def refuse(self, name: str, column: Column, is_wrong: Callable[[str], bool], reason: str) -> None:
        """`BadInput` with the first row whose value is wrong, and how many there are."""
        if wrong := [place for place, value in enumerate(column) if is_wrong(value)]:
            self._fail(name, wrong, reason)

    def _fail(self, name: str, places: list[int], reason: str) -> None:
        more = f" ({len(places)} such rows)" if len(places) > 1 else ""
        raise BadInput(f"{self.file}: row {self.rows[places[0]]}, column {name}: {reason}{more}")


def read(file: Path) -> Table:
    """The table in a file; `BadInput` where it is none, or a row of it is not as long as the first."""
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
        with file.open(newline="", encoding="utf-8-sig") as text:  # a spreadsheet may begin its file with a mark
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
    """True where a value is a number, be it infinite."""
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
