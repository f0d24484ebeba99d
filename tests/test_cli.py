"""The command line: what goes wrong is one sentence, exit code 2, and nothing half-written."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def graftline(*arguments: str, home: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "service.cli", *arguments, "--home", str(home)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_status_of_an_empty_home_says_where_to_begin(tmp_path: Path) -> None:
    done = graftline("status", home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "graftline tune RECIPE.toml" in done.stdout.replace("\n", " ")


def test_status_as_json_is_one_object(tmp_path: Path) -> None:
    done = graftline("status", "--json", home=tmp_path)
    assert json.loads(done.stdout)["names"] == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("tune", "missing.toml"), "cannot be read"),
        (("publish", "nowhere"), "is neither"),
        (("promote", "nobody@1"), "nobody@1"),
        (("rollback", "nobody", "--reason", "x"), "nobody"),
        (("status", "--tracking-uri", "http://127.0.0.1:9"), "must answer"),
        (("status", "--tracking-uri", "ftp://x"), "must be sqlite"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_bad_input_is_one_sentence_and_exit_code_2(tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    done = graftline(*arguments, home=tmp_path)
    assert done.returncode == 2, (done.stdout, done.stderr)
    assert done.stderr.startswith("graftline: ") and said in done.stderr
    assert "Traceback" not in done.stderr


def test_an_error_is_json_where_json_was_asked_for(tmp_path: Path) -> None:
    done = graftline("promote", "nobody@1", "--json", home=tmp_path)
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["type"] == "UnknownRelease"


def test_a_bad_recipe_leaves_no_study_behind(tmp_path: Path) -> None:
    recipe = tmp_path / "bad.toml"
    recipe.write_text('name = "bad"\ndomain = "icd10"\nlearning_rate = 1\n')
    done = graftline("tune", str(recipe), home=tmp_path / "home")
    assert done.returncode == 2 and "'learning_rate' is not a key of a recipe" in done.stderr
    assert not (tmp_path / "home").exists()


def test_an_unknown_domain_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    recipe = tmp_path / "bad.toml"
    recipe.write_text('name = "bad"\ndomain = "astrology"\n')
    done = graftline("tune", str(recipe), home=tmp_path / "home")
    assert done.returncode == 2 and "'astrology'" in done.stderr
    assert not (tmp_path / "home").exists()
