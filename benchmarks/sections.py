"""docs/results.md read back: its sections, and the tables in them, for what is compiled from them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

_SECTION = re.compile(r"<!-- (?P<name>[\w-]+) -->\n## (?P<title>[^\n]*)\n(?P<body>.*?)<!-- /(?P=name) -->", re.S)
_PROVENANCE = re.compile(
    r"^`python -m benchmarks\.(?P<script>\w+)[^`\n]*` · commit (?P<commit>[0-9a-f]{7,}(?:-dirty)?) · (?P<machine>[^·\n]+) · "
    r"seed (?P<seed>[^·\n]+) · (?P<date>\d{4}-\d\d-\d\d)(?P<rest>[^\n]*)$",
    re.M,
)


@dataclass(frozen=True)
class Section:
    name: str
    title: str
    body: str

    @property
    def link(self) -> str:
        """As GitHub makes anchors of headings."""
        anchor = re.sub(r"[^\w\- ]", "", self.title.lower()).replace(" ", "-")
        return f"[{self.title}](#{anchor})"

    @property
    def provenance(self) -> Mapping[str, str] | None:
        """Script, commit, machine, seed and date; None where the section does not tell them."""
        found = _PROVENANCE.search(self.body)
        return found.groupdict() if found else None

    @cached_property
    def tables(self) -> tuple[tuple[Mapping[str, str], ...], ...]:
        """Every table, a row as its cells by heading."""
        found = []
        for block in re.findall(r"(?:^\|.*\n?)+", self.body, re.M):
            heading, _, *rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in block.splitlines()]
            found.append(tuple(dict(zip(heading, row, strict=False)) for row in rows))
        return tuple(found)

    def rows(self, *headings: str) -> tuple[Mapping[str, str], ...]:
        """Of the first table that has all these headings; empty where none has."""
        return next((table for table in self.tables if table and set(headings) <= table[0].keys()), ())


def sections_of(text: str) -> dict[str, Section]:
    return {found["name"]: Section(found["name"], found["title"], found["body"]) for found in _SECTION.finditer(text)}
