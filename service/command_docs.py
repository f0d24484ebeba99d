"""The help of every command as a page: `python -m service.command_docs` writes docs/commands.md."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import typer
from typer.core import TyperGroup
from typer.main import get_command

from adapters.whole_file import write_whole
from service.cli import app

PAGE = Path(__file__).parent.parent / "docs" / "commands.md"
WIDTH = 100  # columns of a help text, whatever terminal asks for it
_HEAD = """# Commands

What `--help` says of each command. `make docs` writes the page, and a test compares the two: change the help, not the page.
An error is one sentence on stderr, in JSON with `--json`, and exit code 2; other exit codes stand beside their command.
"""


def contexts(context: typer.Context) -> Iterator[typer.Context]:
    """Of a command, and of every command below it, a group before its own, in the order in which help lists them."""
    yield context
    group = context.command
    if isinstance(group, TyperGroup):
        for name in group.list_commands(context):
            inner = group.get_command(context, name)
            if inner is not None and not inner.hidden:
                yield from contexts(_context(inner, name, context))


def page() -> str:
    """The whole document."""
    sections = [
        f"## `{context.command_path}`\n\n```text\n{_help(context)}\n```"
        for context in contexts(_context(get_command(app), "graftline", None))
    ]
    return "\n\n".join((_HEAD.strip(), *sections)) + "\n"


def _context(command: object, name: str, parent: typer.Context | None) -> typer.Context:
    """`command` is whichever Click's that Typer brings along."""
    return typer.Context(command, info_name=name, parent=parent, terminal_width=WIDTH, max_content_width=WIDTH)  # type: ignore[arg-type]


def _help(context: typer.Context) -> str:
    return "\n".join(line.rstrip() for line in context.command.get_help(context).strip().splitlines())


if __name__ == "__main__":
    write_whole(PAGE, page())
