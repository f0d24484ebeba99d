"""What a reply must be written like: a JSON schema, alone or between two texts, any JSON object, an expression, or a choice."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

MAX_GRAMMAR_CHARS = 65_536
MAX_CHOICES = 1_000
# Blanks as Python's JSON has them, which is how models are taught to write calls.
_AS_CALLS = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


@dataclass(frozen=True)
class Grammar:
    """The whole reply is held to it, the ids that it begins with too. A reply that reaches its most tokens may be cut inside it.

    `texts` is one text: the JSON schema, or the regular expression, which the whole reply matches. Of a `choice` it is every
    text that the reply may be, of a `json_object` nothing, of `tagged_json` what stands before, the schema, what stands behind.
    """

    kind: Literal["json_schema", "json_object", "regex", "choice", "tagged_json"]
    texts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        least, most = {"json_object": (0, 0), "choice": (1, MAX_CHOICES), "tagged_json": (3, 3)}.get(self.kind, (1, 1))
        if not least <= len(self.texts) <= most:
            allowed = str(least) if least == most else f"from {least} to {most}"
            raise ValueError(f"A grammar of the kind {self.kind!r} takes {allowed} texts, but got {len(self.texts)}.")
        if "" in self.texts:
            raise ValueError(f"A grammar of the kind {self.kind!r} has no empty text, but got one. Leave the grammar out.")
        size = sum(map(len, self.texts))
        if size > MAX_GRAMMAR_CHARS:
            raise ValueError(f"A grammar has at most {MAX_GRAMMAR_CHARS} characters, but got {size}. Make it shorter.")

    def lark(self, added: Mapping[str, int]) -> str:
        """A choice, or tagged JSON, in llguidance's form of Lark. `added`: names that the tokenizer reads as one token each."""
        if self.kind == "choice":
            return f"start: {' | '.join(_lark(text, added) for text in self.texts)}"
        assert self.kind == "tagged_json"
        begin, schema, end = self.texts
        body = json.dumps({"x-guidance": _AS_CALLS, **json.loads(schema)})
        return f"start: {_lark(begin, added)} body {_lark(end, added)}\nbody: %json {body}"


def _lark(text: str, added: Mapping[str, int]) -> str:
    """As JSON writes texts. A name that is one token is that token, not its letters."""
    if not added:
        return json.dumps(text, ensure_ascii=False)
    names = "|".join(re.escape(name) for name in sorted(added, key=len, reverse=True))
    parts = (part for part in re.split(f"({names})", text) if part)
    return " ".join(f"<[{added[part]}]>" if part in added else json.dumps(part, ensure_ascii=False) for part in parts)
