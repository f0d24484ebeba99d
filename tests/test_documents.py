"""The documents: every link and picture is there, and every command, option, target, script and variable that they name."""

from __future__ import annotations

import importlib.util
import re
from functools import cache
from pathlib import Path

import pytest
from documents import DOCS, PAGES, ROOT, Block, anchors, blocks, commands, fault, links, root_command

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


@every_page
def test_every_command_and_option_is_one_of_the_command_line(page: Path) -> None:
    assert not [f"{words}: {wrong}" for words in commands(page) if (wrong := fault(words))]


@pytest.mark.parametrize(
    "line", ["tuna recipe.toml", "tune recipe.toml --trails 3", "sweep begin x", "status one two", "keys create x --scopes tune"]
)
def test_a_command_that_is_not_there_is_found(line: str) -> None:
    assert fault(line.split())


@pytest.mark.parametrize(
    "line", ["tune recipe.toml --trials 3", "sweep status x --watch", "status", "keys create x --scope tune"]
)
def test_a_command_that_is_there_has_no_fault(line: str) -> None:
    assert not fault(line.split())


def test_most_commands_are_shown_somewhere() -> None:
    shown = {words[0] for page in PAGES if page.name != "commands.md" for words in commands(page) if words}
    assert {*root_command().commands} <= shown


@every_page
def test_every_link_and_picture_is_there(page: Path) -> None:
    wrong = []
    for target in links(page):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            wrong.append(target)
    assert not wrong


def test_a_link_to_a_heading_that_is_not_there_would_be_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Of `some` things, and 2 more\n\n# Twice\n\n# Twice\n\n[a](#x) ![b](c.png)\n")
    assert anchors(page) == {"of-some-things-and-2-more", "twice", "twice-1"} and links(page) == ["#x", "c.png"]


def test_every_document_is_in_the_index() -> None:
    listed = {(DOCS / target).resolve() for target in links(DOCS / "README.md")}
    assert {page.resolve() for page in DOCS.glob("*.md")} - {(DOCS / "README.md").resolve()} <= listed


@every_page
def test_every_script_and_make_target_exists(page: Path) -> None:
    text, makefile = page.read_text(encoding="utf-8"), (ROOT / "Makefile").read_text()
    targets = {name for line in re.findall(r"^([a-z][a-z -]*):", makefile, re.M) for name in line.split()}
    assert set(re.findall(r"(?:`|^)make ([a-z-]+)", text, re.M)) <= targets
    modules = set(re.findall(r"python -m ((?:benchmarks|service)\.\w+)", text))
    assert not [module for module in modules if importlib.util.find_spec(module) is None]


@every_page
def test_every_variable_is_read_somewhere(page: Path) -> None:
    named = set(re.findall(r"\bGRAFTLINE_[A-Z][A-Z_]*[A-Z]\b", page.read_text(encoding="utf-8")))
    assert not sorted(name for name in named if name not in variables())


@cache
def variables() -> frozenset[str]:
    """Of the settings of the service, and all that code names."""
    from service.settings import PREFIX, Settings

    packages = ("adapters", "engine", "evaluation", "registry", "tuning", "service")
    code = "".join(file.read_text() for package in packages for file in (ROOT / package).rglob("*.py"))
    named = re.findall(r"\bGRAFTLINE_[A-Z][A-Z_]*[A-Z]\b", code)
    return frozenset(named) | {f"{PREFIX}{field.upper()}" for field in Settings.model_fields}


def test_a_block_knows_its_language_and_what_stands_above_it(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("See `a.toml`:\n\n```toml\nx = 1\n```\n\n    graftline status --json > out  # all\n")
    assert blocks(page)[0] == Block("toml", "x = 1\n", "See `a.toml`:", 3)
    assert list(commands(page)) == [["status", "--json"]]
