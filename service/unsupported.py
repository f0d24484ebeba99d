"""A field that clients know and this service does not honour."""

from __future__ import annotations


class UnsupportedField(ValueError):
    """A known field with a value that this service does not honour; `param` is its name."""

    def __init__(self, param: str, message: str) -> None:
        super().__init__(message)
        self.param = param
