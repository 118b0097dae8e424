"""A settings file, read by python-dotenv and by a shell."""

import io
import os
import subprocess

from dotenv import dotenv_values
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.process import settings_file

odd = st.text(st.sampled_from("ab/ #'\"\\$`{}!~*;&|<>()[]=:%ü\t\n"), max_size=12)


@settings(deadline=None, max_examples=300)
@given(st.lists(st.one_of(odd, st.text(max_size=8)), min_size=1, max_size=4))
def test_dotenv_and_a_shell_read_what_was_written_or_it_is_refused(values: list[str]) -> None:
    """Any text, several lines below each other, as a quote that is not closed would run on into the next."""
    written = {}
    for number, value in enumerate(values):
        try:
            settings_file.quoted(value)
        except ValueError:
            continue
        written[f"FEDQ_{number}"] = value
    text = settings_file.lines(written)
    show = "".join(
        f"printf '%s\\0' \"$FEDQ_{number}\"\n" for number in range(len(values)) if f"FEDQ_{number}" in written
    )
    told = subprocess.run(["sh"], input=os.fsencode(text + show), stdout=subprocess.PIPE, check=True).stdout

    assert dotenv_values(stream=io.StringIO(text)) == written
    assert told == b"".join(os.fsencode(value) + b"\0" for value in written.values())
