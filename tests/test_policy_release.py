"""A decoding policy as a release: its files, what cannot be one, and what its gate looks at."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from stores import store_at

from adapters.backbone import Backbone
from adapters.errors import DamagedAdapter
from engine.decoding.budget import Budget
from engine.decoding.tip import SwitchPenalty
from engine.errors import CannotRun
from engine.profile import PROFILE, DecodingPolicy, Profile
from engine.torch_engine import TorchEngine
from evaluation.admission import random_update
from evaluation.tasks import task_named
from registry.gate_report import GateReport
from registry.manifest import CARD, verify
from service.commands.decoding import decoding
from service.commands.releases import publish_directory
from tuning import gating
from tuning.errors import BadRecipe
from tuning.gating import Subject
from tuning.manifest import complete
from tuning.policy_release import read_policy, write_policy
from tuning.recipe import Recipe
from tuning.siblings import sibling

POLICY = DecodingPolicy(budget=Budget(max_trace_tokens=12))


@pytest.fixture
def recipe(backbone: Backbone) -> Recipe:
    return Recipe(name="frugal", backbone=backbone.name, domain="boxes", protected=("arithmetic", "ordering"))


@pytest.fixture
def engine(backbone: Backbone) -> TorchEngine:
    return TorchEngine(backbone)


def test_a_policy_alone_is_saved_and_read_back(engine: TorchEngine, backbone: Backbone, recipe: Recipe, tmp_path: Path) -> None:
    manifest = write_policy(recipe, POLICY, engine, backbone, tmp_path / "frugal")
    assert verify(tmp_path / "frugal") == manifest and manifest.profile.adapters == ()
    assert manifest.profile.decoding["budget"]["max_trace_tokens"] == 12  # type: ignore[index, call-overload]
    assert Profile.load(tmp_path / "frugal") == Profile((), POLICY)
    assert engine.loaded == () and not list(tmp_path.glob("*.part"))
    assert (tmp_path / "frugal" / CARD).read_text().startswith("# A decoding policy for")


def test_its_manifest_says_what_the_gate_reads_and_nothing_of_a_fit(
    engine: TorchEngine, backbone: Backbone, recipe: Recipe, tmp_path: Path
) -> None:
    manifest = write_policy(recipe, POLICY, engine, backbone, tmp_path / "frugal")
    subject = Subject("frugal@1", tmp_path / "frugal", manifest)
    assert (subject.recipe.domain, subject.recipe.protected, subject.recipe.gate) == (
        recipe.domain,
        recipe.protected,
        recipe.gate,
    )
    assert not {"adapter", "method", "search"} & set(manifest.recipe) and manifest.seeds == manifest.data_digests == {}
    with pytest.raises(BadRecipe, match="made without a fit"):
        sibling(subject, backbone, 1, tmp_path, lambda share: None)


def test_what_changes_nothing_or_cannot_run_is_no_release(
    engine: TorchEngine, backbone: Backbone, recipe: Recipe, tmp_path: Path
) -> None:
    for policy, error, said in (
        (DecodingPolicy(), BadRecipe, "greedy decoding"),
        (DecodingPolicy(tip=SwitchPenalty(words=("alternatively",))), CannotRun, "`tip`"),
    ):
        with pytest.raises(error, match=said):
            write_policy(recipe, policy, engine, backbone, tmp_path / "none")
    assert not list(tmp_path.iterdir())
    write_policy(recipe, POLICY, engine, backbone, tmp_path / "there")
    with pytest.raises(BadRecipe, match="is there already"):
        write_policy(recipe, POLICY, engine, backbone, tmp_path / "there")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("top_k = 3", "'top_k' is not a key of a decoding policy"),
        ("[budget]\nmax_trace_tokens = -1", "'budget.max_trace_tokens'"),
        ("[budget", "cannot be read"),
        ("[budget]\nmax_trace_tokens = true", r"'budget.max_trace_tokens': Input should be a number \(given: True\)"),
        ('[budget]\nmax_trace_tokens = "64"', r"'budget.max_trace_tokens': Input should be a number \(given: '64'\)"),
        ("[budget]\nanswer_is_line = 1", "'budget.answer_is_line': Input should be true or false"),
        ("temperature = -1", "'temperature': Input should be greater than or equal to 0"),
        ("top_p = 0", "'top_p': Input should be greater than 0"),
        ('trace_end = "Answer: "', "'trace_end': .*Leave out the space around it"),
        ('[tip]\nwords = ["wait", ""]', "'tip.words': .*but got ''. Give it alone"),
    ],
)
def test_a_policy_file_that_cannot_be_meant_is_one_sentence(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "policy.toml").write_text(text)
    with pytest.raises(BadRecipe, match=said):
        read_policy(tmp_path / "policy.toml")


def test_a_policy_file_has_the_fields_of_a_profile(tmp_path: Path) -> None:
    (tmp_path / "policy.toml").write_text('[tip]\nwords = ["wait"]\n[budget]\nmax_trace_tokens = 64\n')
    found = read_policy(tmp_path / "policy.toml")
    assert found == DecodingPolicy(tip=SwitchPenalty(words=("wait",)), budget=Budget(max_trace_tokens=64))


def test_adapters_that_were_saved_and_are_gone_are_no_policy_alone(backbone: Backbone, tmp_path: Path) -> None:
    with pytest.raises(DamagedAdapter, match="holds no adapter_config.json"):
        Profile.load(tmp_path)
    Profile((), POLICY).save(tmp_path)
    stored = json.loads((tmp_path / PROFILE).read_text())
    (tmp_path / PROFILE).write_text(json.dumps({**stored, "adapters": ["lora"]}))
    with pytest.raises(DamagedAdapter, match="saved with lora, which is not there"):
        Profile.load(tmp_path)
    # As it was written before the kinds were.
    (tmp_path / PROFILE).write_text(json.dumps({key: stored[key] for key in ("format_version", "policy")}))
    with pytest.raises(DamagedAdapter, match="holds no adapter_config.json"):
        Profile.load(tmp_path)
    (tmp_path / PROFILE).write_text('{"format_version": 1, "policy": {"budget": {"ramp": -1}}}')
    with pytest.raises(DamagedAdapter, match=r"not a profile \(policy.budget.ramp: "):
        Profile.load(tmp_path)


def test_its_gate_looks_at_what_is_written_and_sees_a_cap_that_costs_answers(
    testbed: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gating, "_measurable", lambda *_: ({}, {"arithmetic": "this backbone knows alchemy alone"}))
    looked_at = {"round_items": 8, "max_rounds": 1, "domain_items": 8, "earlier_domains": False}
    recipe = Recipe(name="mute", backbone=testbed.name, domain="alchemy", protected=("arithmetic",), gate=looked_at)  # type: ignore[arg-type]
    engine = TorchEngine(testbed)
    written = write_policy(recipe, DecodingPolicy(budget=Budget(max_trace_tokens=0)), engine, testbed, tmp_path / "mute")
    subject = Subject("mute@1", tmp_path / "mute", written)
    report = gating.gate(subject, engine, testbed, gating.gate_settings(recipe), tmp_path / "cache", seed=5)
    assert (report.domain.name, report.domain.num_items) == ("alchemy", 8)
    assert report.domain.change < -0.5 and report.verdict != "pass"


def gated(testbed: Backbone, folder: Path, policy: DecodingPolicy) -> GateReport:
    """Of an adapter that changes nothing, under the policy."""
    looked_at = {"round_items": 8, "max_rounds": 1, "domain_items": 32, "earlier_domains": False, "margin": 0.3}
    recipe = Recipe(name="both", backbone=testbed.name, domain="alchemy", protected=("arithmetic",), gate=looked_at)  # type: ignore[arg-type]
    profile = Profile((random_update(testbed, 0.0),), policy)
    manifest = complete(folder / "both", recipe, testbed, profile, 1.0, task_named("alchemy").examples("train", 8))
    engine, settings = TorchEngine(testbed), gating.gate_settings(recipe)
    report = gating.gate(Subject("both@1", folder / "both", manifest), engine, testbed, settings, folder / "cache", seed=5)
    assert engine.loaded == ()
    return report


@pytest.fixture
def knows_alchemy_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gating, "_measurable", lambda *_: ({}, {"arithmetic": "this backbone knows alchemy alone"}))


@pytest.mark.usefixtures("knows_alchemy_alone")
def test_beside_an_adapter_a_policy_that_ruins_what_is_written_fails_the_gate(testbed: Backbone, tmp_path: Path) -> None:
    report = gated(testbed, tmp_path, DecodingPolicy(budget=Budget(max_trace_tokens=1, max_answer_tokens=1)))
    assert report.domain.change == 0.0  # options are scored, which no policy moves
    assert report.written is not None and report.written.change < -0.9 and report.written.verdict == "fail"
    assert report.verdict == "fail" and "alchemy, written changed by" in report.sentence


@pytest.mark.usefixtures("knows_alchemy_alone")
def test_beside_an_adapter_a_policy_that_costs_no_answer_passes_its_test(testbed: Backbone, tmp_path: Path) -> None:
    report = gated(testbed, tmp_path, DecodingPolicy(budget=Budget(max_trace_tokens=90)))
    assert report.written is not None and (report.written.change, report.written.verdict) == (0.0, "pass")
    assert report.written.base_mean > 0.5 and report.families == ()


@pytest.mark.usefixtures("knows_alchemy_alone")
def test_without_a_policy_the_gate_of_an_adapter_asks_what_it_always_asked(testbed: Backbone, tmp_path: Path) -> None:
    report = gated(testbed, tmp_path, DecodingPolicy())
    assert [test.role for test in report.tests] == ["domain"] and report.written is None


def test_the_command_writes_what_publish_takes(
    backbone_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("recipe.toml").write_text(
        f'name = "frugal"\nbackbone = "{backbone_directory}"\ndomain = "boxes"\nprotected = ["ordering"]\n'
    )
    Path("policy.toml").write_text("[budget]\nmax_trace_tokens = 12\n")
    decoding(Path("recipe.toml"), Path("policy.toml"), Path("out"), as_json=False)
    assert capsys.readouterr().out == "wrote out (budget); next: graftline publish out\n"
    Path("traced.toml").write_text("[tracing]\nnum_hypotheses = 2\n")
    decoding(Path("recipe.toml"), Path("traced.toml"), Path("traced"), as_json=False)
    assert capsys.readouterr().out == "wrote traced (tracing); next: graftline publish traced\n"
    tracking = store_at(tmp_path / "home")
    release = publish_directory(tracking, Path("out"))
    assert release.name == "frugal" and Profile.load(release.directory) == Profile((), POLICY)
