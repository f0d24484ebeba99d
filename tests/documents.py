"""The documents as a reader meets them: their headings, links, code blocks and the commands in these."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import typer
from markdown_it import MarkdownIt
from markdown_it.token import Token
from typer.core import TyperGroup
from typer.main import get_command

from service.cli import app

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = tuple(sorted((*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *(ROOT / ".github").rglob("*.md"))))
ENDS = {"|", "||", "&&", "&", ";", ">", ">>", "2>", "<"}  # of a command's own words on its line


@dataclass(frozen=True)
class Block:
    """A fenced or indented block. `above` is the text of the paragraph before it, `line` counts from 1."""

    language: str
    text: str
    above: str
    line: int


@cache
def tokens(page: Path) -> tuple[Token, ...]:
    return tuple(MarkdownIt("commonmark").enable("table").parse(page.read_text(encoding="utf-8")))


def blocks(page: Path) -> list[Block]:
    found, above = list[Block](), ""
    for token in tokens(page):
        if token.type == "inline":
            above = token.content
        elif token.type in ("fence", "code_block"):
            assert token.map is not None
            found.append(Block(token.info.strip(), token.content, above, token.map[0] + 1))
    return found


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    found, seen = list[str](), dict[str, int]()
    parsed = tokens(page)
    for token, inline in zip(parsed, parsed[1:], strict=False):
        if token.type != "heading_open":
            continue
        text = "".join(child.content for child in inline.children or ())
        slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
        number = seen.get(slug, 0)
        seen[slug] = number + 1
        found.append(f"{slug}-{number}" if number else slug)
    return set(found)


def links(page: Path) -> list[str]:
    """Targets of links and images."""
    inner = [child for token in tokens(page) for child in token.children or ()]
    return [str(child.attrs.get("href", child.attrs.get("src"))) for child in inner if child.type in ("link_open", "image")]


def commands(page: Path) -> Iterator[list[str]]:
    """The words of every `graftline` command in a block or in a code span, without comments, pipes and redirections."""
    spans = [child.content for token in tokens(page) for child in token.children or () if child.type == "code_inline"]
    shell = [block.text.replace("\\\n", " ") for block in blocks(page) if block.language in ("", "sh", "bash", "ini", "console")]
    for line in (*spans, *(line for text in shell for line in text.splitlines())):
        if found := re.search(r"(?<!namespace)(?:^|[\s=/$(])graftline [a-z].*", line.strip()):
            yield from _commands(found[0].strip(" \t/=$(").removeprefix("$ "))


def _commands(line: str) -> Iterator[list[str]]:
    try:
        words = shlex.split(line.replace("[--", "--").replace("]", ""), comments=True)
    except ValueError:  # a span that quotes half of something
        return
    if words[:1] == ["graftline"]:
        end = next((place for place, word in enumerate(words) if word in ENDS), len(words))
        yield [word.rstrip(",.;:") for word in words[1:end]]


@cache
def root_command() -> TyperGroup:
    command = get_command(app)
    assert isinstance(command, TyperGroup)
    return command


def fault(words: list[str]) -> str:
    """What is wrong with a command line: a command, an option or an argument that is not there; empty when it is right."""
    command, path = root_command(), "graftline"
    while isinstance(command, TyperGroup):
        if not words or words[0] == "--help":
            return ""
        name, words = words[0], words[1:]
        found = command.commands.get(name)
        if found is None:
            return f"{path} has no command {name!r}"
        command, path = found, f"{path} {name}"  # type: ignore[assignment]
    parser = command.make_parser(typer.Context(command))
    try:
        _, left, _ = parser.parse_args([word for word in words if word != "..."])
    except Exception as error:  # a class of whichever Click Typer brings along
        told = str(getattr(error, "message", error))
        # Prose names an option without its value.
        return "" if told.endswith("requires an argument.") else f"{path}: {told}"
    return f"{path} takes no further argument {left[0]!r}" if left else ""
