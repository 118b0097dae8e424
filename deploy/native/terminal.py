"""Output for any terminal: a letter that its encoding lacks is shown by its number, and ends no command."""

import sys
from io import TextIOWrapper


def show_anything() -> None:
    """From now on `ü` is `\\xfc` on an ASCII terminal; Python has standard error so from the beginning."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
