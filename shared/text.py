"""Text that people will read and strangers may have written: what a terminal would obey is not in it.

Pure.
"""

REPLACEMENT = "\ufffd"  #: stands for what cannot be shown (Unicode's replacement character)


def plain(text: str) -> str:
    """The text on one line, each control, format and surrogate character replaced: what is left only shows.

    Escape sequences of terminals begin with a control character; format characters turn the direction of writing.
    """
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else " " if one.isspace() else REPLACEMENT for one in text)


def lines(text: str) -> str:
    """Like `plain`, of a text of several lines."""
    return "\n".join(plain(line) for line in text.split("\n"))
