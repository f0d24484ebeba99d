"""docs/commands.md is what `--help` says today."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from service.command_docs import PAGE, page


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "a help text changed: run `make docs`"


@pytest.mark.parametrize("command", ["tune", "keys create"])
def test_a_section_is_what_a_terminal_of_its_width_shows(command: str) -> None:
    code = f"import sys; sys.argv = ['graftline', *'{command}'.split(), '--help']; import service.cli; service.cli.main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "COLUMNS": "80"})
    words = page().partition(f"## `graftline {command}`")[2].partition("```text\n")[2].partition("```")[0]
    assert done.stdout.split() == words.split()
