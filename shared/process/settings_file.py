"""Settings as lines `NAME=value` that dotenv and a shell read alike, character by character.

Pure.
"""

import re
from collections.abc import Mapping

from shared.errors import BadInput

_PLAIN = re.compile(r"[A-Za-z0-9_@%+=:,./-]*", re.ASCII)


def lines(settings: Mapping[str, str]) -> str:
    """The file's text; `BadInput` names the setting whose value it cannot hold."""
    text = ""
    for name, value in settings.items():
        try:
            text += f"{name}={quoted(value)}\n"
        except ValueError as error:
            raise BadInput(f"{name}: a file of settings cannot hold {error} of its value; choose another") from None
    return text


def quoted(value: str) -> str:
    """A value in quotes that both read alike; `ValueError` names a character that one of them would change.

    No kind of quotes is right for all values. In single quotes a shell takes everything as it is, but dotenv undoes
    backslashes; in double quotes a shell replaces text after a `$` or between backticks. dotenv replaces `${…}` in
    both, and reads a backslash at the end as one that escapes the quote.
    """
    if unfit := re.search(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]", value):
        raise ValueError(f"the character {unfit[0]!a}")
    if _PLAIN.fullmatch(value):
        return value
    if not re.search(r"['\\]|\$\{", value):
        return f"'{value}'"
    if unfit := re.search(r"[$`]|\\$", value):
        raise ValueError(f"the character {unfit[0]!a}")
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
