"""The page: one HTML file that loads nothing, with every text escaped by the template engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from service.report.material import Material
from service.report.section import Number, Run, Section
from service.report.sections import SECTIONS
from service.report.verdict import verdict

_FOLDER = Path(__file__).parent
_SHORT = 8  # characters of a run's id
_KEEP = 20  # characters of a cell that stay on one line: intervals and verdicts


@dataclass(frozen=True)
class Store:
    """Where runs are looked at: a link each, where a server shows them, else the command that serves the store."""

    links: Mapping[str, str]
    command: str | None


@dataclass(frozen=True)
class Page:
    html: str
    missing: tuple[str, ...]  # the titles of sections with nothing in them


def page(material: Material, store: Store) -> Page:
    sections = [section(material) for section in SECTIONS]
    environment = Environment(
        loader=FileSystemLoader(_FOLDER), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["svg"] = Markup
    environment.tests["number"] = lambda cell: isinstance(cell, Number)
    environment.tests["run"] = lambda cell: isinstance(cell, Run)
    html = environment.get_template("page.html").render(
        style=Markup((_FOLDER / "page.css").read_text(encoding="utf-8")),
        subject=material.subject,
        verdict=verdict(material),
        sections=sections,
        links=store.links,
        command=store.command,
        short=_SHORT,
        keep=_KEEP,
    )
    return Page(html, tuple(section.title for section in sections if _is_missing(section)))


def _is_missing(section: Section) -> bool:
    return section.is_empty and bool(section.missing)
