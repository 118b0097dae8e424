"""What YAML 1.1 and YAML 1.2 read differently is refused; all else is what both say it is."""

import math
import re
from contextlib import suppress

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from services.cli.jobs import plain_yaml
from services.cli.jobs.plain_yaml import Unclear

#: The core schema of YAML 1.2.2, section 10.3.2: all that is no word.
CORE = re.compile(
    r"|null|Null|NULL|~|true|True|TRUE|false|False|FALSE|[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+"
    r"|[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?(\.inf|\.Inf|\.INF)|\.nan|\.NaN|\.NAN"
)

words = st.one_of(
    st.from_regex(CORE, fullmatch=True),
    st.text("0123456789_.:-+eExXobTZ", max_size=12),
    st.text("yesnofYESNOFtrul~", max_size=5),
    st.sampled_from(["1:30", "190:20:30.15", "2026-11-30", "2001-12-14t21:59:43.10-05:00", "2001-12-14 21:59:43 -5"]),
)


@settings(deadline=None, max_examples=1000)
@given(words)
def test_a_plain_value_means_the_same_to_every_reader_or_is_refused(text: str) -> None:
    """PyYAML is YAML 1.1's reader; a word stays a word, letter by letter."""
    try:
        old = yaml.safe_load(f"k: {text}")["k"]
    except (yaml.YAMLError, ValueError):  # no plain value, or a date that no calendar has
        return
    try:
        found = plain_yaml.read(f"k: {text}").value["k"]
    except yaml.YAMLError:
        return
    if isinstance(found, str):
        assert (found, old) == (text.strip(), text.strip())
        assert not CORE.fullmatch(found)
    elif isinstance(found, float):
        assert math.isfinite(found)
        assert (found, CORE.fullmatch(text.strip()) is not None) == (float(old), True)
    else:
        assert (found, type(found)) == (old, type(old))


@pytest.mark.parametrize(
    "text",
    [
        "010", "-010", "08", "0x10", "0b1", "0o7", "1_000", "1_0.5", "1:30", "190:20:30.15", "yes", "No", "ON", "off",
        "~", "NULL", "2026-11-30", "2026-1-3 12:00:00", ".inf", "-.INF", ".nan", "00.5",
    ],
)  # fmt: skip
def test_what_readers_disagree_on_is_refused(text: str) -> None:
    """Wherever it stands as a value; quoted, or as a key, it is a word."""
    for document in (text, f"k: {text}", f"k: [a, {text}]", f"k: {{x: {text}}}", f"k: &a {text}"):
        with pytest.raises(Unclear, match="quote it"):
            plain_yaml.read(document)
    assert plain_yaml.read(f'k: "{text}"').value == {"k": text}
    assert plain_yaml.read(f"k: !!str {text}").value == {"k": text}
    assert plain_yaml.read(f"{text}: 1").value == {text: 1}


@pytest.mark.parametrize("text", [".inf", ".nan"])
def test_what_is_no_number_is_told_to_be_another_first(text: str) -> None:
    """Quoted it is a word, which is refused too where a number is asked for."""
    with pytest.raises(Unclear, match=": write a finite one, or quote it"):
        plain_yaml.read(text)


@pytest.mark.parametrize("text", ["k: !unclear word", "k: !unclear [1]", "k: !other word", "!unclear word"])
def test_a_tag_of_ones_own_is_refused(text: str) -> None:
    """The reader's own mark for what is unclear among them."""
    with pytest.raises(yaml.YAMLError, match="tag"):
        plain_yaml.read(text)


def test_a_file_that_is_too_large_is_read_no_further(monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes after the values that are too many is not looked at: here, that the list does not end."""
    monkeypatch.setattr(plain_yaml, "LARGEST", 100)
    with pytest.raises(yaml.YAMLError, match="more than 100 values"):
        plain_yaml.read("[" + "1, " * 101 + "}")


def test_words_that_only_look_odd_are_words() -> None:
    """Addresses, versions and letters."""
    for text in ("y", "n", "=", "1.2.3", "127.0.0.1", "10:99", "12:00:99x", "2_cats", "1e", "--1", "_1", "inf", "nan"):
        assert plain_yaml.read(f"k: {text}").value == {"k": text}


def test_numbers_that_only_a_new_reader_knows_are_numbers() -> None:
    """YAML 1.1 takes 1e-3 for a word, and no user ever meant one."""
    assert plain_yaml.read("[1e-3, 1E5, 5e2, -.5, 1., +3, -0]").value == [0.001, 1e5, 500.0, -0.5, 1.0, 3, 0]


def test_keys_are_words_and_are_given_once() -> None:
    """1 and "1" are one key."""
    assert plain_yaml.read("{1: a, yes: b, null: c, 2026-11-30: d}").value == {
        "1": "a", "yes": "b", "null": "c", "2026-11-30": "d",
    }  # fmt: skip
    for text in ('{1: a, "1": b}', "{a: 1, 'a': 2}", "{k: {yes: 1, yes: 2}}"):
        with pytest.raises(yaml.YAMLError, match="is given twice"):
            plain_yaml.read(text)


def test_a_merge_gives_way_to_what_is_written_beside_it() -> None:
    """Also where the section that is merged merges another, and is used before and after."""
    text = "{x: {base: &a {lr: 1, mu: 2}, more: &b {<<: *a, lr: 3}}, y: {<<: *b, mu: 4}, z: *b}"

    assert plain_yaml.read(text).value == {
        "x": {"base": {"lr": 1, "mu": 2}, "more": {"lr": 3, "mu": 2}}, "y": {"lr": 3, "mu": 4}, "z": {"lr": 3, "mu": 2},
    }  # fmt: skip


def test_aliases_are_counted_as_often_as_they_repeat() -> None:
    """A billion laughs are refused before anything is made of them, and so is a chain of sections."""
    laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]\n" for level in range(1, 10)
    )
    merges = "a0: &a0 {x: 1}\n" + "".join(
        f"a{level}: &a{level} {{<<: [{', '.join([f'*a{level - 1}'] * 10)}]}}\n" for level in range(1, 10)
    )
    chain = "a0: &a0 [x]\n" + "".join(f"a{level}: &a{level} [*a{level - 1}]\n" for level in range(1, 3000))
    for text, limit in ((laughs, "100000 values"), (merges, "100000 values"), (chain, "64 levels")):
        with pytest.raises(yaml.YAMLError, match=limit):
            plain_yaml.read(text)


def test_values_are_known_as_they_were_written() -> None:
    """By the keys and positions that lead to them."""
    assert plain_yaml.read("{a: {b: [1.50, +3]}, c: True}").texts == {
        ("a", "b", 0): "1.50", ("a", "b", 1): "+3", ("c",): "True",
    }  # fmt: skip


pieces = st.sampled_from([
    *"[]{},:-?&*!|>%@`'\"# \n\tab01._~<=+", "!!int ", "!!map ", "!!seq ", "!!float ", "!!bool ", "!!null ", "!!str ",
    "&a ", "*a ", "<<: ", "- ", "? ", ": ", "---\n", "...\n", "%YAML 1.1\n", "010", "no", "\x85", "\u2028", "\ufeff",
])  # fmt: skip


@settings(deadline=None, max_examples=500)
@given(st.lists(pieces, max_size=25).map("".join))
def test_whatever_a_file_holds_is_read_or_refused(text: str) -> None:
    """Nothing else comes out of it: no error of Python's, no recursion without end."""
    with suppress(yaml.YAMLError):
        plain_yaml.read(text)
