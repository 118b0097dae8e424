"""Tables as people write them: what can be read is read, and what is wrong is refused with its row and its column."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from services.trainer.data import dataset, tables
from services.trainer.data.source import StoredExamples
from shared.errors import BadInput
from shared.job import job_spec
from shared.job.catalog.data import Csv, Natural


def read(folder: Path, text: str | bytes, key: str | None = None, **spec: Any) -> StoredExamples:
    file = folder / "t.csv"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return tables.read(file, Csv(**{"path": "t.csv", "scale": False, **spec}), key)


@pytest.mark.parametrize(
    "text",
    [
        "a, b, label\n1, 2, cat\n3, 4, dog\n",
        "a ,b\t,label\n1,2 ,cat \n 3,4, dog\n",
        "\ufeffa,b,label\r\n1,2,cat\r\n\r\n3,4,dog\r\n",
        'a,"b",label\n1,"2","cat"\n3, "4", " dog "\n',
        "a,b,label\n1.0,2e0,cat\n+3,4.,dog",
        "a,b,label\r1,2,cat\r3,4,dog\r",
        "a,b,label\n\n\n1,2,cat\n3,4,dog\n\n\n",
        "a\u00a0,b,label\n1,2\u00a0,cat\n3,4,dog\n",
    ],
)
def test_blanks_marks_and_line_ends_make_no_difference(tmp_path: Path, text: str) -> None:
    """`cat` and `cat ` are one class, and `label` is found behind a blank."""
    source = read(tmp_path, text)

    assert (source.names, source.y.tolist(), source.x.tolist()) == (("cat", "dog"), [0, 1], [[1, 2], [3, 4]])


def test_true_and_false_are_one_and_zero(tmp_path: Path) -> None:
    """As pandas writes a column of them."""
    assert read(tmp_path, "a,label\nTrue,0\nfalse,1\nTRUE,0\n").x.tolist() == [[1], [0], [1]]


def test_letters_that_look_the_same_are_the_same(tmp_path: Path) -> None:
    """One system writes é as one character, another as two."""
    assert read(tmp_path, "a,label\n1,caf\u00e9\n2,cafe\u0301\n3,tea\n").names == ("café", "tea")


def test_whole_numbers_may_have_a_point_and_words_may_begin_with_a_number(tmp_path: Path) -> None:
    """pandas makes 1.0 of 1 where a column lacks a value somewhere."""
    assert read(tmp_path, "a,label\n1,10.0\n2,9.0\n3,-1.0\n").names == ("-1.0", "9.0", "10.0")
    assert read(tmp_path, "a,label\n1,3rd\n2,2nd\n3,1st\n").names == ("1st", "2nd", "3rd")
    mixed = read(tmp_path, "a,label\n1,3+\n2,1\n3,2\n", classes=("1", "2", "3+"))
    assert (mixed.names, mixed.y.tolist()) == (("1", "2", "3+"), [2, 0, 1])


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a,label\n1,cat\n2,\n3, \n", r"row 3, column label: no value; add it, or remove the row \(2 such rows\)"),
        ("a,label\n1,0\n2,nan\n3,1\n", "row 3, column label: no value"),
        ("a,label\n1,cat\n2,NA\n3,dog\n4,?\n", r"row 3, column label: a word for a missing value; .* \(2 such rows\)"),
        ("a,label\n1,0\n2,null\n3,1\n", "row 3, column label: a word for a missing value; .* declare it"),
        (
            "a,label\n1,True\n2,False\n3,true\n",
            "row 4, column label: a label that differs from another one in capitals",
        ),
        (
            "a,label\n1,0\n2,--1\n3,1\n",
            "row 3, column label: a word, where others are whole numbers; mend it, or declare",
        ),
        ("a,label\n1,0\n2,0.5\n3,1\n", "row 3, column label: a number that is not whole, where others are whole"),
        ("a,label\n1,.1\n2,.5\n3,.7\n", r"row 2, column label: a number that is not whole; a class is .* \(3 such"),
        ("a,label\n1,1\n2,1.0\n3,0\n", "column label: a number that other rows write otherwise"),
        ("a,label\n1,01\n2,1\n3,0\n", "column label: a number that other rows write otherwise"),
        ("a,label\n1,c\x1b[2Jat\n2,dog\n", "row 2, column label: characters that cannot be shown"),
        ("a,label\n1,cat\n2,cat\u200b\n", "row 3, column label: characters that cannot be shown"),
        (f"a,label\n1,{'long' * 60}\n2,b\n", "row 2, column label: more than 200 characters"),
        (
            ",a,label\n0,1,x\n1,2,y\n",
            r"its first column has no name, as the index that pandas writes; .* \(index=False\)",
        ),
        ("a,label,\n1,x,\n2,y,\n", "its first row has no name for column 3; name it, remove a comma that is too many"),
        ("Unnamed: 0,a,label\n0,1,x\n1,2,y\n", "column Unnamed: 0 is an index .* name it in data.drop"),
        ("a;b;label\n1;2;0\n", "its first row is separated by semicolons; write it with commas"),
        ("a\tb\tlabel\n1\t2\t0\n", "its first row is separated by tabs"),
        ('a,label\n"1,5",0\n2,1\n', "row 2, column a: a comma in its number; numbers have a point"),
        ("a,label\n1,0\ninf,1\n-Infinity,1\n", r"row 3, column a: an infinite number; .* \(2 such rows\)"),
        ("a,label\n1,0\n2.75e39,1\n", "row 3, column a: a number beyond float32"),
        ("a,label\n1,0\n1_000,1\n", "row 3, column a: text, which is no number"),
        ("a,label\n1,0\n１,1\n", "row 3, column a: text, which is no number"),
        ("a,label\nN/A,0\n1,1\n", "row 2, column a: a word for a missing value"),
        ("a,label\ntrue,0\n1,1\n", "row 2, column a: text, which is no number"),
        ("a, a ,label\n1,2,0\n", "its first row gives columns 1 and 2 the same name"),
        ("a,Label\n1,0\n2,1\n", "has no column label among its 2; one of them differs in capitals or blanks alone"),
        ("a,label\n\n\n1,0\n2,1,3\n", "row 5 has 3 values for 2 columns"),
        ('a,label\n"1\n",0\n2\n', "row 3 has 1 values for 2 columns"),
        ('a,label\n1,0\n2,"x"y\n', "row 3 cannot be read as CSV"),
        ("a,label\n1,0\n".encode("utf-16"), "is no text in UTF-8; save it as CSV in UTF-8"),
        ("a,label\n1,Müll\n".encode("latin-1"), "is no text in UTF-8"),
        ("a,label\n" + "9" * 200_000 + ",x\n", "row 2 cannot be read as CSV: field larger than field limit"),
        ('a,"b"x,label\n1,2,x\n', "row 1 cannot be read as CSV"),
        (b"\x7fELF\x02\x01\x01\0\0\0\0\0", "cannot be read as CSV|cannot be shown"),
    ],
)
def test_what_is_wrong_is_refused_with_its_place(tmp_path: Path, text: str | bytes, sentence: str) -> None:
    """Where it is, what it is and what to do; a row counts as a spreadsheet counts it."""
    with pytest.raises(BadInput, match=sentence):
        read(tmp_path, text)


def test_what_looks_like_no_label_or_twice_the_same_is_declared(tmp_path: Path) -> None:
    """There are classes of this kind, and single letters are two by their size."""
    text = "a,label\n1,None\n2,mild\n3,Mild\n"

    assert read(tmp_path, text, classes=("None", "mild", "Mild")).y.tolist() == [0, 1, 2]
    assert read(tmp_path, "a,label\n1,a\n2,A\n").names == ("A", "a")
    assert read(tmp_path, "a,label\n1,+\n2,-\n").names == ("+", "-")


def test_an_owner_who_is_missing_is_no_owner(tmp_path: Path) -> None:
    """Rows of many whose names are not known would be one client."""
    with pytest.raises(BadInput, match="row 3, column who: a word for a missing value"):
        read(tmp_path, "a,who,label\n1,ann,x\n2,NA,y\n", key="who")


@pytest.mark.parametrize("rows", [2, 37, 1000])
@pytest.mark.parametrize("value", ["0.1", "19.7", "-3e30", "0"])
def test_a_feature_that_does_not_change_becomes_zero(tmp_path: Path, value: str, rows: int) -> None:
    """Its deviation is 0, but for what the mean is rounded by: another file's values must not be divided by that."""
    text = "a,label\n" + "".join(f"{value},{'xy'[row % 2]}\n" for row in range(rows))
    source = read(tmp_path, text, scale=True)

    assert source.prepare.scale == (1.0,)
    assert not source.x.any()


def test_a_column_without_a_name_is_left_out_where_the_job_names_its_features(tmp_path: Path) -> None:
    """The number of a row gives the class away in a file that is sorted by class."""
    source = read(tmp_path, ",a,b,label\n0,1,2,x\n1,3,4,y\n", columns=("a", "b"))

    assert source.x.tolist() == [[1, 2], [3, 4]]
    assert read(tmp_path, "Unnamed: 0,a,label\n0,1,x\n1,3,y\n", drop=("Unnamed: 0",)).x.tolist() == [[1], [3]]


def test_statistics_that_overflow_are_refused(tmp_path: Path) -> None:
    """They are the job's, so that they may not fit this silo's file."""
    given = {"mean": [0.0], "deviation": [1e-300]}
    with pytest.raises(BadInput, match=r"scaled by data.statistics it has values with 2 values that are NaN, infinite"):
        read(tmp_path, "a,label\n1e30,x\n2e30,y\n", scale=True, columns=("a",), statistics=given)


def test_a_pipe_or_a_folder_is_no_table(tmp_path: Path) -> None:
    """To open a pipe would wait for ever."""
    import os  # noqa: PLC0415

    os.mkfifo(tmp_path / "t.csv")
    with pytest.raises(BadInput, match=r"t.csv is no file"):
        tables.read_table(tmp_path / "t.csv")
    with pytest.raises(BadInput, match="is no file"):
        tables.read_table(tmp_path)


def test_a_table_of_one_class_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model would be right in all cases without having learned a thing."""
    monkeypatch.setenv("FEDQ_DATA_DIR", str(tmp_path))
    dataset._loaded.clear()
    (tmp_path / "t.csv").write_text("a,label\n1,0\n2,0\n")
    data = {"name": "csv", "path": "t.csv", "clients": 1}
    document = {"name": "t", "pool": "cpu", "model": {"name": "softmax"}, "data": data, "rounds": {"count": 1}}
    with pytest.raises(BadInput, match=r"t.csv: all examples are of one class, 0, and there is nothing to tell apart"):
        dataset.load(job_spec.parse({**document, "evaluate": {"every": 0}}))


SECRET = "hunter2secret"


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.sampled_from(["a", "label", SECRET, "1", "", ",", ";", "\n", '"', " ", "\t", "=", "1,5", "\x00"]),
        max_size=30,
    )
)
@example(["label", ",", "a", "\n", "1", ",", SECRET, "\n"])
@example(["DB_PASSWORD=", SECRET, "\n"])
@example([SECRET, ";", "a", "\n"])
@example(["a", ",", "label", "\n", SECRET, ",", "1", "\n"])
def test_no_sentence_gives_away_what_is_in_a_file(tmp_path: Path, pieces: list[str]) -> None:
    """A job may name any file of a silo's folder, and everybody reads what is refused."""
    source, sentence = None, ""
    try:
        source = read(tmp_path, "".join(pieces))
    except BadInput as refused:
        sentence = str(refused)

    assert SECRET not in sentence.replace(f"column {SECRET}:", "")  # of a table that has the job's columns
    assert source is None or (np.isfinite(source.x).all() and len(source.y) == len(source.x))


FINITE = st.floats(allow_nan=False, allow_infinity=False, width=32)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(FINITE, FINITE, st.sampled_from(["x", "y"])), min_size=1, max_size=20),
    st.sampled_from(["{!r}", " {!r}", '"{!r}"', "{:e}"]),
)
def test_any_number_that_float32_holds_comes_back(
    tmp_path: Path, body: list[tuple[float, float, str]], how: str
) -> None:
    """However it is written."""
    lines = [",".join((*(how.format(value) for value in row[:2]), row[2])) for row in body]
    source = read(tmp_path, "\n".join(["a,b,label", *lines]))

    digits = 5e-7 if how == "{:e}" else 0
    for found, row in zip(source.x.tolist(), body, strict=True):
        assert all(math.isclose(*pair, rel_tol=digits) for pair in zip(found, row[:2], strict=True))


def test_a_value_that_is_missing_among_true_and_false_is_the_one_that_is_refused(tmp_path: Path) -> None:
    """Not the rows that are as they should be."""
    with pytest.raises(BadInput, match="row 4, column a: no value, and it needs a number"):
        read(tmp_path, "a,label\nTrue,0\nfalse,1\n,0\n")


def test_a_blank_first_row_is_named(tmp_path: Path) -> None:
    """Every row below it would have too many values."""
    with pytest.raises(BadInput, match="its first row is blank, and it names the columns"):
        read(tmp_path, "\na,label\n1,0\n2,1\n")


@pytest.mark.parametrize("word", ["#N/A", "<NA>", "NaT", "-nan"])
def test_a_program_s_word_for_a_missing_label_is_no_class(tmp_path: Path, word: str) -> None:
    """As spreadsheets and pandas write them."""
    with pytest.raises(BadInput, match=r"row 3, column label: (no value|a word for a missing value)"):
        read(tmp_path, f"a,label\n1,cat\n2,{word}\n3,dog\n")


@pytest.mark.parametrize("first", [0, 1])
def test_a_column_that_counts_the_rows_is_no_feature_unless_it_is_named(tmp_path: Path, first: int) -> None:
    """An index that has a name gives the class away as one without does."""
    text = "a,index,label\n" + "".join(f"{row % 3},{row + first},{'xy'[row > 5]}\n" for row in range(tables.COUNTED))
    with pytest.raises(BadInput, match=f"column index counts the rows from {first} on, as an index does"):
        read(tmp_path, text)

    assert read(tmp_path, text, drop=("index",)).shape == (1,)
    assert read(tmp_path, text, columns=("index", "a")).shape == (2,)
    assert read(tmp_path, "index,label\n1,x\n2,y\n").shape == (1,)


def test_columns_are_found_by_names_that_look_the_same(tmp_path: Path) -> None:
    """Those of labels, of owners and of what is left out too, as the features are."""
    text = "a,caf\u00e9,th\u00e9,owner,label\n1,2,x,p,0\n3,4,y,q,1\n"
    source = read(tmp_path, text, label=" the\u0301", drop=("cafe\u0301 ", "label", "owner"))

    assert (source.names, source.x.tolist()) == (("x", "y"), [[1], [3]])
    assert Natural(key=" cafe\u0301").key == "café"


@pytest.mark.parametrize("column", [{"label": " "}, {"drop": ("",)}, {"columns": ("a", "")}])
def test_a_column_has_a_name(column: dict[str, Any]) -> None:
    """No file has one without."""
    with pytest.raises(ValueError, match="at least 1 character"):
        Csv(path="t.csv", **column)
