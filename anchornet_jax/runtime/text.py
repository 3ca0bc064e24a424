"""Text of others, such as names of files and classes, made fit to be printed."""

import os


def printable(value: str | bytes | os.PathLike) -> str:
    """Return a path or a text without what a terminal would obey.

    Escape codes, newlines and bytes that are no UTF-8 are shown by their numbers.
    """
    text = os.fsencode(value).decode(errors="backslashreplace")
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode()
        for one in text
    )
