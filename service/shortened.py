"""What a client sent, short enough for a message."""

from __future__ import annotations


def shortened(value: object, limit: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."
