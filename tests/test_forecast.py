"""What an evaluation is said to cost before it begins."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from small_releases import random_lora, write_release
from test_cli import ended

from adapters.backbone import Backbone
from engine.profile import Profile
from engine.torch_engine import TorchEngine
from evaluation.base_cache import BaseCache
from evaluation.evaluate import Planned, evaluate
from evaluation.forecast import Cost, Forecast, forecast
from evaluation.measures import MEASURES
from evaluation.tasks import TASKS
from service.commands.subject import Subject
from service.commands.workload import Workload
from service.pace import Pace


def planned(measure: str, items: int) -> Planned:
    task = TASKS["boxes"]
    return Planned(MEASURES[measure], task, task.examples("search", items), "report")


def test_the_tokens_that_are_told_are_about_those_that_it_takes(backbone: Backbone) -> None:
    engine = TorchEngine(backbone)
    engine.load("noop", Profile())
    plan = [planned(name, 24) for name in ("chain_likelihood", "choice_accuracy")]
    tried: list[tuple[int, int]] = []
    told = forecast(engine, backbone, "noop", plan, lambda *counted: tried.append(counted)).all(plan)
    assert tried and tried == [(number, len(tried)) for number in range(1, len(tried) + 1)]
    found = evaluate(engine, backbone, "noop", plan)
    assert told.tokens == pytest.approx(sum(row.adapted.tokens for row in found.rows), rel=0.25)
    assert told.seconds > 0


def test_what_a_task_does_not_allow_costs_nothing(backbone: Backbone) -> None:
    plan = [planned("chain_likelihood", 8)]
    bare = replace(plan[0], examples=[replace(example, rationale=None) for example in plan[0].examples])
    assert forecast(TorchEngine(backbone), backbone, None, [bare]).of(bare) == Cost()


def test_a_workload_says_what_is_left_and_then_how_far_it_is(backbone: Backbone, tmp_path: Path) -> None:
    engine = TorchEngine(backbone)
    engine.load("subject", Profile())
    caches = {"cache": BaseCache(tmp_path, "float32"), "adapted_cache": BaseCache(tmp_path, "float32", "digest")}
    subject = cast(Subject, SimpleNamespace(engine=engine, backbone=backbone, **caches))
    plan = [planned("chain_likelihood", 8)]
    work = replace(Workload.of(subject, plan), pace=Pace(StringIO()))
    assert str(work).startswith("2 readings to make (0 are stored), about ")
    evaluate(engine, backbone, "subject", plan, caches["cache"], work.on_read, caches["adapted_cache"])
    assert cast(StringIO, work.pace.out).getvalue().startswith("per cent read: 0 of 100\n")
    assert cast(StringIO, work.pace.out).getvalue().endswith("per cent read: 100 of 100\n")
    assert str(Workload.of(subject, plan)) == "all 2 readings are stored, nothing is read"


def test_a_workload_of_what_costs_nothing_ends_at_all_of_it() -> None:
    one = planned("chain_likelihood", 4)
    work = Workload([one], 2, Forecast({("chain_likelihood", True): Cost()}), Pace(StringIO()))
    work.on_read(one)
    assert "100 of 100" in cast(StringIO, work.pace.out).getvalue()


@pytest.mark.slow  # the admission of two tasks
def test_a_second_evaluation_reads_nothing_and_says_the_same(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_release(tmp_path / "one", backbone, random_lora(backbone, 1), domain="icd10-chapter", protected=["grammar"])
    asked = ("evaluate", "one", "--home", "home", "--items", "8", "--measures", "trace_length", "--json")
    assert ended(asked, tmp_path, monkeypatch) == 0
    first = capsys.readouterr()
    assert "readings to make (0 are stored)" in first.err
    assert ended(asked, tmp_path, monkeypatch) == 0
    second = capsys.readouterr()
    assert second.out == first.out and "nothing is read" in second.err


def test_a_judge_that_is_not_there_is_told_before_anything_is_read(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_release(tmp_path / "one", backbone, random_lora(backbone, 1), domain="icd10-chapter", protected=["grammar"])
    asked = ("evaluate", "one", "--home", "home", "--items", "8", "--judge-url", "http://127.0.0.1:9/v1")
    assert ended(asked, tmp_path, monkeypatch) == 2
    assert "graftline: The judge 'judge' at http://127.0.0.1:9/v1 must reply" in capsys.readouterr().err
    assert not list((tmp_path / "home" / "cache").rglob("base/*.json"))
