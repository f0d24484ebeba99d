"""The gate of a router: who sends prompts to the wrong adapter does not pass, nor who sends none; who sends each home does."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_releases import random_lora

from adapters.adapter_router import AdapterRouter
from adapters.backbone import Backbone
from engine.profile import Profile
from engine.routed_engine import RoutedEngine, prompt_states
from engine.torch_engine import TorchEngine
from evaluation.admission import admissions
from evaluation.errors import Overlap
from evaluation.evaluate import Planned, evaluate
from evaluation.measures import MEASURES
from evaluation.overlap import Fingerprints
from evaluation.task import Example, Split, Task, direct_prompt
from evaluation.tasks import task_named
from registry.evidence import Evidence, begun
from registry.gate_report import GateReport
from registry.gate_settings import GateSettings
from tuning.plan import DOMAIN_MEASURE
from tuning.router_fit import RouterFit, RouterSpec, reading, write_router
from tuning.router_gate import DOMAINS, ROUTED, Target, gate_router

PROTECTED = "grammar"
SETTINGS = GateSettings(margin=0.3, round_items=40, max_rounds=2)
WORDS = {"skin": "skin diseases ear Diagnosis Cholera Vibrio chapter ICD", "sums": "Add take away Start result 12 5 3"}


@dataclass(frozen=True)
class Learnt:
    """At the gate questions that one adapter answers right and the backbone wrong; elsewhere others about the same."""

    name: str
    known: tuple[Example, ...]
    others: tuple[Example, ...]

    def examples(self, split: Split, count: int, seed: int = 0) -> list[Example]:
        return list((self.known if split == "gate" else self.others)[:count])


def learnt(engine: TorchEngine, backbone: Backbone, name: str) -> Learnt:
    drawn = random.Random(name)
    texts = [" ".join(drawn.choices(WORDS[name].split(), k=drawn.randint(20, 32))) for _ in range(200)]
    asked = [Example(f"{name}/{i}", text, "14", choices=("14", "ear"), group=f"{name}{i}") for i, text in enumerate(texts)]
    plan = [Planned(MEASURES[DOMAIN_MEASURE], Learnt(name, (), ()), asked, "domain")]
    (row,) = evaluate(engine, backbone, name, plan).rows
    told = list(zip(asked, row.base.values, row.adapted.values, strict=True))
    # Of two answers one is right: the one that the adapter takes.
    known = tuple(one if adapted else replace(one, answer="ear") for one, base, adapted in told if base != adapted)
    assert len(known) >= 50
    return Learnt(name, known, tuple(one for one, base, adapted in told if base == adapted))


@dataclass(frozen=True)
class Bench:
    engine: TorchEngine
    targets: tuple[Target, ...]
    homing: AdapterRouter  # sends every prompt to the class whose mean it is nearest
    cache: Path

    def written(self, router: AdapterRouter, directory: Path, domains: Mapping[str, Task] | None = None) -> None:
        states_NH = torch.zeros(2, len(router.mean_H))
        fit = RouterFit(router, *[reading(router, states_NH, torch.tensor([0, 1]))] * 2)
        names = {target.name: target.release for target in self.targets}
        tasks = {target.name: target.domain for target in self.targets} if domains is None else domains
        write_router(directory, fit, self.engine.backbone, names, tasks, [], RouterSpec(items=20))

    def gated(self, router: AdapterRouter, directory: Path, evidence: Evidence | None = None) -> GateReport:
        return gate_router(
            "auto@1",
            directory,
            self.engine,
            RoutedEngine(self.engine, router, {target.name: target.profile for target in self.targets}, ROUTED),
            self.engine.backbone,
            self.targets,
            [PROTECTED],
            SETTINGS,
            self.cache,
            begin=lambda conditions: begun(evidence, conditions, SETTINGS, 7),
        )

    def sending(self, name: str | None) -> AdapterRouter:
        """Every prompt to that name, or to the backbone."""
        place = 0 if name is None else self.homing.names.index(name) + 1
        bias_C = 20 * torch.eye(len(self.homing.names) + 1)[place]
        return replace(self.homing, weights_CH=torch.zeros_like(self.homing.weights_CH), bias_C=bias_C)

    def crossed(self) -> AdapterRouter:
        """Every prompt of one name to the other."""
        order = [0, 2, 1]
        return replace(self.homing, weights_CH=self.homing.weights_CH[order], bias_C=self.homing.bias_C[order])


@pytest.fixture(scope="module")
def bench(session_backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    engine = TorchEngine(session_backbone)
    for seed, name in enumerate(WORDS, start=1):
        engine.load(name, Profile((random_lora(session_backbone, seed),)))
    nothing = Fingerprints.of([])
    targets = tuple(Target(name, f"{name}@1", name, learnt(engine, session_backbone, name), nothing) for name in WORDS)
    texts = [one.question for one in task_named(PROTECTED).examples("search", 30)]
    asked = [[tuple(session_backbone.encode(text)) for text in texts]]
    for target in targets:
        asked.append([session_backbone.chat_ids(direct_prompt(one)) for one in target.domain.examples("train", 30)])
    means_CH = torch.stack([torch.stack(prompt_states(engine, prompts, 1)).mean(dim=0) for prompts in asked])
    width, weights_CH, bias_C = means_CH.shape[1], 2 * means_CH, -means_CH.square().sum(dim=1)
    fingerprint = session_backbone.fingerprint
    yield Bench(
        engine,
        targets,
        AdapterRouter(tuple(WORDS), 1, 0.0, 1e-3, fingerprint, torch.zeros(width), torch.ones(width), weights_CH, bias_C),
        tmp_path_factory.mktemp("cache"),
    )
    engine.close()


@pytest.fixture
def admitted(bench: Bench) -> Iterator[None]:
    """The protected family as if the random backbone could do it: its values are paired all the same."""
    backbone, task = bench.engine.backbone, task_named(PROTECTED)
    admissions(bench.engine, backbone, [task], bench.cache)
    (file,) = (bench.cache / "admission").iterdir()
    told = file.read_text()
    file.write_text(json.dumps({**json.loads(told), "admitted": True, "reasons": []}))
    yield
    file.write_text(told)


def verdicts(report: GateReport) -> dict[str, str]:
    return {test.name: test.verdict for test in report.tests}


def against(name: str) -> str:
    return f"{name}, against asking for it"


@pytest.mark.usefixtures("admitted")
def test_a_router_that_sends_each_prompt_home_passes(bench: Bench, tmp_path: Path) -> None:
    bench.written(bench.homing, tmp_path)
    report = bench.gated(bench.homing, tmp_path)
    assert report.verdict == "pass" and set(verdicts(report)) == {DOMAINS, *map(against, WORDS), PROTECTED}
    # A prompt or two of forty may lie nearer to the mean of another class.
    assert all(-0.1 < test.change <= 0.0 for test in report.tests if test.name != DOMAINS)
    assert report.details["targets"] == {"skin": "skin@1", "sums": "sums@1"}


@pytest.mark.usefixtures("admitted")
def test_a_router_that_sends_prompts_to_the_other_adapter_fails_against_asking_by_name(bench: Bench, tmp_path: Path) -> None:
    bench.written(bench.crossed(), tmp_path)
    report = bench.gated(bench.crossed(), tmp_path)
    assert report.verdict != "pass" and verdicts(report)[PROTECTED] == "pass"
    lost = {test.name: test.change for test in report.tests}
    assert all(lost[against(name)] < -0.2 and verdicts(report)[against(name)] != "pass" for name in WORDS)


@pytest.mark.usefixtures("admitted")
def test_a_router_that_sends_none_gains_nothing_and_does_not_pass(bench: Bench, tmp_path: Path) -> None:
    router = bench.sending(None)
    bench.written(router, tmp_path)
    report = bench.gated(router, tmp_path)
    (gain,) = (test for test in report.tests if test.name == DOMAINS)
    assert report.verdict == "fail" and gain.change == 0 and gain.verdict == "inconclusive"
    assert [verdicts(report)[against(name)] for name in WORDS] == ["fail", "fail"] and verdicts(report)[PROTECTED] == "pass"


@pytest.mark.usefixtures("admitted")
def test_a_router_that_sends_all_to_an_adapter_is_seen_by_the_protected_family(bench: Bench, tmp_path: Path) -> None:
    router = bench.sending("skin")
    bench.written(router, tmp_path)
    (kept,) = (test for test in bench.gated(router, tmp_path).tests if test.name == PROTECTED)
    assert kept.change != 0 and kept.num_items == SETTINGS.round_items * SETTINGS.max_rounds


def test_a_router_of_which_no_family_shows_what_it_keeps_does_not_pass(bench: Bench, tmp_path: Path) -> None:
    bench.written(bench.homing, tmp_path)
    report = bench.gated(bench.homing, tmp_path)
    assert set(verdicts(report).values()) == {"pass"} and PROTECTED in report.not_measurable
    assert report.verdict == "inconclusive"


def test_a_router_that_was_fitted_on_items_of_the_gate_is_stopped(bench: Bench, tmp_path: Path) -> None:
    leaked = {target.name: Learnt(target.name, (), tuple(target.domain.examples("gate", 20))) for target in bench.targets}
    bench.written(bench.homing, tmp_path, leaked)
    with pytest.raises(Overlap):
        bench.gated(bench.homing, tmp_path)


def test_items_that_a_release_behind_the_router_was_fitted_on_stop_the_gate(bench: Bench, tmp_path: Path) -> None:
    bench.written(bench.homing, tmp_path)
    skin, *others = bench.targets
    fitted = replace(skin, training=Fingerprints.of(skin.domain.examples("gate", 20)))
    with pytest.raises(Overlap):
        replace(bench, targets=(fitted, *others)).gated(bench.homing, tmp_path)


@pytest.mark.parametrize("change", [{"threshold": 0.5}, {"bias_C": torch.zeros(3)}], ids=["threshold", "weights"])
def test_what_another_router_drew_is_not_gone_on_from(bench: Bench, tmp_path: Path, change: dict[str, Any]) -> None:
    bench.written(bench.homing, tmp_path / "one")
    evidence = bench.gated(bench.homing, tmp_path / "one").evidence
    assert evidence is not None
    same = bench.gated(bench.homing, tmp_path / "one", evidence)
    assert (same.rounds_before, same.rounds) == (evidence.rounds, evidence.rounds)
    other = replace(bench.homing, **change)
    bench.written(other, tmp_path / "two")
    assert bench.gated(other, tmp_path / "two", evidence).rounds_before == 0
