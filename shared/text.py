"""Text from unknown writers, made safe to show: characters that a terminal would obey are replaced.

Pure.
"""

REPLACEMENT = "\ufffd"  #: stands for characters that cannot be shown (Unicode's replacement character)


def plain(text: str) -> str:
    """The text on one line, with each control, format and surrogate character replaced.

    Escape sequences of terminals begin with a control character; format characters can reverse the writing direction.
    """
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else " " if one.isspace() else REPLACEMENT for one in text)


def lines(text: str) -> str:
    """The text as `plain` makes it, but with its line breaks."""
    return "\n".join(plain(line) for line in text.split("\n"))
