"""A gate that is killed in the middle of a round goes on where it stopped, and reads no item twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from rich.console import Console
from small_releases import random_lora
from stores import store_at
from test_study import admit

from adapters.backbone import Backbone
from engine.engine import Completion, Continuation, GenerationRequest
from engine.profile import Profile
from engine.torch_engine import TorchEngine
from evaluation.tasks import TASKS
from registry.gate_report import GateReport
from registry.gate_settings import GateSettings
from registry.names import ReleaseName
from registry.release import load_release
from registry.tracking import Tracking
from registry.verdicts import recorded_report
from service.commands.releases import gate_release, gate_table, publish_directory
from tuning.gating import Subject, gate, recipe_policy
from tuning.manifest import complete
from tuning.recipe import Recipe

ROUNDS = 2  # of each run: the first is killed in its second
SETTINGS = GateSettings(max_rounds=ROUNDS, round_items=8)


class Logged(TorchEngine):
    """Writes down what it reads, and dies by SIGKILL before it reads the second part of the second round, if it shall."""

    def __init__(self, backbone: Backbone, home: Path, mortal: bool) -> None:
        super().__init__(backbone)
        self._home, self._mortal = home, mortal

    def score(self, continuations: Sequence[Continuation], profile: str | None = None) -> list[tuple[float, ...]]:
        self._log([f"{profile} {asked.prompt_ids} {asked.ids}" for asked in continuations])
        return super().score(continuations, profile)

    def complete(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        self._log([f"{asked.profile} {asked.prompt_ids}" for asked in requests])
        return super().complete(requests)

    def _log(self, lines: Sequence[str]) -> None:
        opened = next(iter((self._home / "gates").glob("*.open.json")), None)
        kept = json.loads(opened.read_text()) if opened else {}
        if self._mortal and kept.get("rounds") == 1 and len(kept["items"]) == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        with (self._home / "read.txt").open("a") as out:
            out.writelines(f"{line}\n" for line in lines)


def gated(home: Path, backbone: Backbone, mortal: bool) -> GateReport:
    tracking = Tracking.at(home)
    release = load_release(tracking, "small", 1)
    policy = recipe_policy(Subject("small@1", release.directory, release.manifest).recipe)
    engine = Logged(backbone, home, mortal)
    return gate_release(tracking, release, engine, backbone, SETTINGS, policy, home, Console(stderr=True))


def main(home: str, backbone: str) -> None:
    torch.set_num_threads(1)
    gated(Path(home), Backbone.load(backbone, device="cpu", dtype=torch.float32), mortal=True)


@pytest.mark.slow
def test_a_gate_that_was_killed_in_a_round_reads_no_item_twice(
    backbone: Backbone, backbone_directory: Path, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    recipe = Recipe(name="small", backbone=backbone.name, domain="icd10-chapter", protected=("arithmetic",))
    recipe = recipe.with_values({"gate.domain_items": 8, "gate.round_items": 8})
    examples = TASKS["icd10-chapter"].examples("train", 20)
    manifest = complete(tmp_path / "a", recipe, backbone, Profile((random_lora(backbone, 1),)), 1.0, examples)
    store = store_at(home)
    publish_directory(store, tmp_path / "a", "small")
    admit(backbone, home, "arithmetic")

    code = f"from test_gate_resumed import main; main({str(home)!r}, {str(backbone_directory)!r})"
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(here.parent), str(here)])}
    killed = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    first = (home / "read.txt").read_text().splitlines()
    (home / "read.txt").unlink()

    report = gated(home, backbone, mortal=False)
    second = (home / "read.txt").read_text().splitlines()
    assert first and second and not set(first) & set(second)
    assert (report.rounds, report.rounds_before) == (1 + ROUNDS, 1)
    assert recorded_report(store, ReleaseName("small", 1)) == report.model_copy(update={"evidence": None})
    assert f"{1 + ROUNDS} rounds (1 of an earlier gate)" in str(gate_table(report).title)

    # A gate that nobody killed: nothing was lost, and nothing counts twice.
    straight = gate(
        Subject("small@1", tmp_path / "a", manifest),
        TorchEngine(backbone),
        backbone,
        SETTINGS.model_copy(update={"max_rounds": 1 + ROUNDS}),
        home / "cache",
        seed=int(str(report.details["seed"])),
    )
    assert straight.tests == report.tests
