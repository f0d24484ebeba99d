"""docs/extending.md: its code, put where it says, passes the contracts of what is built in."""

from __future__ import annotations

import importlib
import importlib.util
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import test_every_method
import test_every_task
import test_generated_tasks
from documents import DOCS, ROOT, blocks

from adapters.backbone import TESTBED, Backbone
from adapters.lora import LoRA, LoRASpec
from evaluation.task import Example
from evaluation.tasks import TASKS
from tuning.methods import METHODS
from tuning.recipe import Recipe

PAGE = DOCS / "extending.md"
OF_DOMAINS = "test_no_group_is_in_two_splits"  # a generated problem is a group of its own
FILES = {found[1]: block.text for block in blocks(PAGE) if (found := re.search(r"`([\w/]+\.(?:py|md))`:$", block.above))}


def module(monkeypatch: pytest.MonkeyPatch, path: str, folder: Path) -> ModuleType:
    """The code of a file of the page, as the module that it would be."""
    name = path.removesuffix(".py").replace("/", ".")
    file = folder / Path(path).name
    file.write_text(FILES[path])
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, made)
    spec.loader.exec_module(made)
    return made


def checks(contract: ModuleType, fixtures: dict[str, Any], without: str = "") -> Iterator[Callable[[], None]]:
    """The tests of a module that ask for nothing but these."""
    for name, test in vars(contract).items():
        if name == without:
            continue
        wanted = set(test.__code__.co_varnames[: test.__code__.co_argcount]) if name.startswith("test_") else set()
        if wanted and wanted <= fixtures.keys():
            yield lambda test=test, wanted=wanted: test(**{one: fixtures[one] for one in wanted})


def test_the_page_has_the_files_that_it_speaks_of() -> None:
    assert set(FILES) == {
        *("evaluation/tasks/roman.py", "tests/test_roman.py", "evaluation/tasks/turns.py"),
        *("tuning/methods/brief.py", "docs/methods.md", "tests/test_brief.py"),
    }


def test_a_domain_keeps_the_contract_of_tasks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    roman = module(monkeypatch, "evaluation/tasks/roman.py", tmp_path).ROMAN
    monkeypatch.setitem(TASKS, "roman", roman)
    run = [check() for check in checks(test_every_task, {"name": "roman"})]
    assert len(run) > 7
    own = module(monkeypatch, "tests/test_roman.py", tmp_path)
    own.test_a_number_is_its_numeral(1990, "MCMXC")
    own.test_the_last_step_states_the_answer()


def test_a_task_that_breaks_the_contract_does_not_pass(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made = module(monkeypatch, "evaluation/tasks/roman.py", tmp_path)

    class Leaking(made.Roman):  # type: ignore[misc, name-defined]
        def examples(self, split: str, count: int, seed: int = 0) -> list[Example]:
            found: list[Example] = super().examples("train", count, seed)
            return found

    monkeypatch.setitem(TASKS, "roman", Leaking())
    with pytest.raises(AssertionError):
        test_every_task.test_no_question_is_in_two_splits("roman")


def test_a_retention_task_keeps_the_contract_of_families(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    turns = module(monkeypatch, "evaluation/tasks/turns.py", tmp_path).TURNS
    monkeypatch.setitem(TASKS, "turns", turns)
    run = [check() for check in checks(test_generated_tasks, {"family": turns})]
    run += [check() for check in checks(test_every_task, {"name": "turns"}, without=OF_DOMAINS)]
    assert len(run) > 15


def test_a_method_keeps_the_contract_of_methods(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, session_backbone: Backbone
) -> None:
    brief = module(monkeypatch, "tuning/methods/brief.py", tmp_path)
    monkeypatch.setitem(METHODS, "brief", brief.Brief)
    monkeypatch.setitem(test_every_method.SECTIONS, "brief", FILES["docs/methods.md"])
    assert len([check() for check in checks(test_every_method, {"name": "brief"})]) > 3
    own = module(monkeypatch, "tests/test_brief.py", tmp_path)
    own.test_the_last_steps_are_learnt_and_the_control_learns_the_first(session_backbone)
    digest, lora = session_backbone.weights_digest(), LoRA(LoRASpec(rank=4))
    fit = brief.Brief(brief.BriefSpec(steps=3, batch_size=4)).fit(
        session_backbone, [lora], TASKS["ordering"].examples("train", 8)
    )
    assert len(fit.losses) == 3 and fit.counts["steps_dropped"] > 0 and session_backbone.weights_digest() == digest


def test_the_recipe_of_a_backbone_loads() -> None:
    (text,) = (block.text for block in blocks(PAGE) if block.language == "toml")
    assert Recipe(**tomllib.loads(text)).backbone == "models/my-backbone"


@pytest.mark.slow
def test_a_backbone_is_told_what_it_can_show(tmp_path: Path) -> None:
    (script,) = (block.text for block in blocks(PAGE) if block.text.startswith('"""What a backbone'))
    words = [sys.executable, "-c", script, str(TESTBED), "boxes"]
    done = subprocess.run(words, cwd=tmp_path, env={"PYTHONPATH": str(ROOT), "PATH": ""}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("boxes: 0.00, the backbone scores 0.00") and (tmp_path / ".graftline" / "cache").is_dir()
