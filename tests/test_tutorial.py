"""docs/tutorial.md is typed as it stands, in an empty folder; it prints the lines that the page shows, but for their numbers."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from documents import DOCS, ROOT, Block, blocks

from evaluation.task import SPLITS
from evaluation.tasks.user_data import load_task
from tuning.recipe import Recipe

PAGE = blocks(DOCS / "tutorial.md")
LIMIT_S = 3600
MARK = "---- block"
NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:e-?\d+)?")


def files() -> dict[str, str]:
    """What the page has its reader write, by name."""
    named = [(re.search(r"`([\w.]+)`:$", block.above), block.text) for block in PAGE if block.language in ("python", "toml")]
    return {found[1]: text for found, text in named if found}


def shown() -> list[tuple[Block, list[str]]]:
    """Every block that is typed, with the lines that are shown below it."""
    typed = [place for place, block in enumerate(PAGE) if block.language == "sh"]
    below = [PAGE[place + 1] if place + 1 < len(PAGE) else None for place in typed]
    told = [block.text.splitlines() if block is not None and block.language == "text" else [] for block in below]
    return [(PAGE[place], lines) for place, lines in zip(typed, told, strict=True)]


def pattern(line: str) -> re.Pattern[str]:
    """Any other number does as well, and so does any other width between words."""
    parts = [r"\s*".join(re.escape(word) for word in part.split()) for part in NUMBER.split(line)]
    return re.compile(rf"\s*{NUMBER.pattern}\s*".join(parts))


def written(folder: Path) -> Path:
    for name, text in files().items():
        (folder / name).write_text(text)
    return folder


def test_a_shown_line_is_found_whatever_its_numbers() -> None:
    assert pattern("gain +0.105, retention -0.03 margins").search("[3:10] gain -1, retention 0.5 margins, feasible")
    assert not pattern("gain +0.105, retention").search("gain of 0.105, retention")
    assert pattern("│ boxes     │ pass").search("│ boxes │ pass         │ 1.000")


def test_the_page_has_files_commands_and_what_they_print() -> None:
    assert set(files()) == {"make_tickets.py", "tickets.toml", "recipe.toml"}
    assert len(shown()) > 6 and sum(bool(lines) for _, lines in shown()) > 5


def test_its_data_are_a_task_and_its_recipe_loads(tmp_path: Path) -> None:
    folder = written(tmp_path)
    subprocess.run([sys.executable, "make_tickets.py"], cwd=folder, check=True)
    task = load_task(folder / "tickets.toml")
    assert all(len(task.examples(split, 40)) == 40 for split in SPLITS)
    assert Recipe.load(folder / "recipe.toml").domain == str(folder / "tickets.toml")


@pytest.mark.slow
def test_it_runs_as_it_stands(tmp_path: Path) -> None:
    folder = written(tmp_path)
    script = "".join(f"echo '{MARK}'\n{block.text}" for block, _ in shown())
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GRAFTLINE_") or name == "GRAFTLINE_CACHE"}
    environment = {**kept, "PATH": path, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", "-e"], input=script, cwd=folder, env=environment, text=True, timeout=LIMIT_S,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    print(done.stdout)
    assert done.returncode == 0, done.stdout
    told = done.stdout.split(f"{MARK}\n")[1:]
    for (block, lines), printed in zip(shown(), told, strict=True):
        missing = [line for line in lines if not pattern(line).search(printed)]
        assert not missing, f"line {block.line}: {missing} not in\n{printed}"
