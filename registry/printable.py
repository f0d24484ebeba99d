"""Text that comes from elsewhere (another registry's export, a ledger, tags of a store) as a terminal may be given it."""

from __future__ import annotations


def printable(text: str, keep: str = "") -> str:
    r"""With every character that shows nothing as its escape (ESC is \x1b): none moves a cursor, turns or hides what follows.

    `keep` are those that are meant, as "\n".
    """
    return "".join(one if one.isprintable() or one in keep else ascii(one)[1:-1] for one in text)
