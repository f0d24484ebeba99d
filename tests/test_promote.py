"""`graftline promote`: the gate is run once a version, on the real engine, and only its pass (or an override) promotes."""

from __future__ import annotations

import shutil
from collections import Counter
from importlib.metadata import version
from io import StringIO
from pathlib import Path

import pytest
from gated_names import NAME, report
from rich.console import Console
from small_releases import promote as make_champion
from small_releases import random_lora, write_directory, write_release
from stores import store_at

from adapters.backbone import Backbone, Format
from engine.profile import Profile
from engine.torch_engine import TorchEngine
from evaluation.admission import random_update
from evaluation.errors import DataChanged, Overlap
from evaluation.tasks import TASKS, task_named
from evaluation.tasks.definition import check_unchanged
from registry.errors import PolicyRefused, PromotionRefused, RefusedName
from registry.gate_settings import GateSettings
from registry.ledger import Ledger
from registry.manifest import file_digest
from registry.names import ReleaseName
from registry.policy import policies
from registry.release import publish
from registry.status import name_status
from registry.tracking import Tracking
from registry.verdicts import record_verdict, recorded_evidence, recorded_report, taken_shares
from service.commands.evaluate import evaluate
from service.commands.releases import gated, promote, publish_directory
from service.pace import BadSeconds
from tuning.gating import GATED, Subject, check_tasks, gate, recipe_policy
from tuning.manifest import complete
from tuning.plan import report_plan
from tuning.recipe import Recipe
from tuning.rounds import PER_GROUP, whole_groups


def test_a_version_whose_gate_failed_is_not_gated_again(tracking: Tracking, tmp_path: Path) -> None:
    record_verdict(tracking, ReleaseName(NAME, 2), report(2, lost=0.5))
    with pytest.raises(PromotionRefused, match="stay failed"):
        promote(f"{NAME}@2", "", False, None, None, tmp_path, tracking.uri, as_json=True)


def test_an_override_without_a_reason_is_refused_before_the_gate(tracking: Tracking, tmp_path: Path) -> None:
    with pytest.raises(PromotionRefused, match="needs a reason"):
        promote(f"{NAME}@3", " ", True, None, None, tmp_path, tracking.uri, as_json=True)


def test_a_name_that_means_the_backbone_is_refused_before_the_gate(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracking, name = store_at(tmp_path / "store"), Path(backbone.name).name
    write_release(tmp_path / "files", backbone, random_lora(backbone, 1))
    with monkeypatch.context() as earlier:  # a version of ours that let it be published
        earlier.setattr("registry.release.refuse_backbone_name", lambda *_: None)
        publish(tracking, name, tmp_path / "files")
    with pytest.raises(RefusedName, match="the name of its own backbone"):
        promote(f"{name}@1", "wanted", True, None, None, tmp_path / "store", None, as_json=True)


def released(backbone: Backbone, directory: Path, size: float, format: Format = "full") -> Subject:
    recipe = Recipe(name="small", backbone=backbone.name, domain="icd10-chapter", protected=("grammar",), backbone_format=format)
    recipe = recipe.with_values({"gate.domain_items": 12, "gate.round_items": 12, "gate.max_rounds": 1})
    adapter = random_lora(backbone, 1, size) if size else random_update(backbone, 0.0)
    examples = TASKS["icd10-chapter"].examples("train", 20)
    manifest = complete(directory, recipe, backbone, Profile((adapter,)), 1.0, examples)
    return Subject("small@1", directory, manifest)


@pytest.mark.parametrize("format", ["nf4", "full"])
def test_what_was_fitted_in_four_bits_is_gated_on_the_backbone_that_serves_it(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: Format
) -> None:
    tracking, seen, said = store_at(tmp_path / "store"), list[Backbone](), Console(file=StringIO(), width=200)
    subject = released(backbone, tmp_path / "files", 0.3, format)
    publish(tracking, "small", subject.directory)
    monkeypatch.setattr("service.commands.releases.gate_release", lambda t, release, engine, backbone, *_: seen.append(backbone))
    gated(tracking, ReleaseName("small", 1), "", None, None, tmp_path / "store", said)
    assert subject.manifest.backbone.format == format and seen[0].format == "full"
    assert isinstance(said.file, StringIO)
    told = "small@1 was fitted around its backbone in nf4; it is measured as it is served, in torch.float32"
    assert (told in said.file.getvalue()) == (format == "nf4")


@pytest.mark.parametrize(("gated_in", "warned"), [("nf4", True), ("full", False)])
def test_a_champion_that_was_gated_in_four_bits_is_warned_of(tmp_path: Path, gated_in: str, warned: bool) -> None:
    tracking, formats = store_at(tmp_path / "store"), list[Format](["nf4", "full"])
    for number, format in enumerate(formats, start=1):
        release = publish(tracking, NAME, write_directory(tmp_path / format, format=format))
        passed = report(number)
        passed = passed.model_copy(update={"details": {**passed.details, "backbone_format": gated_in}})
        record_verdict(tracking, release.full_name, passed)
        Ledger(tracking, NAME).promote(number, passed)
        warnings = name_status(tracking, NAME).warnings
        assert any("in nf4 and gated on it so" in warning for warning in warnings) == (warned and format == "nf4")


@pytest.mark.parametrize("change", ["data", "columns"])
def test_a_task_that_changed_since_the_fit_is_refused_by_gate_and_evaluate(
    backbone: Backbone, tmp_path: Path, change: str
) -> None:
    data, toml = tmp_path / "data.csv", tmp_path / "mine.toml"
    data.write_text("q,a,other\n" + "".join(f"Is number {n} even?,{'no' if n % 2 else 'yes'},{n % 3}\n" for n in range(60)))
    toml.write_text('name = "mine"\nfile = "data.csv"\n[columns]\nquestion = "q"\nanswer = "a"\n')
    recipe = Recipe(name="small", backbone=backbone.name, domain=str(toml), protected=("grammar",))
    profile, examples = Profile((random_lora(backbone, 1),)), task_named(str(toml)).examples("train", 20)
    subject = Subject("small@1", tmp_path / "a", complete(tmp_path / "a", recipe, backbone, profile, 1.0, examples))
    check_tasks(subject.manifest, subject.name)

    before = file_digest(data)[:12]
    if change == "data":
        data.write_text(data.read_text().replace("number 7 ", "number 77 "))
        said = f"data of 'mine' with SHA-256 {before}, but it is {file_digest(data)[:12]} now"
    else:
        toml.write_text(toml.read_text().replace('"a"', '"other"'))
        said = "with columns .* but it is .*other.* now"
    with pytest.raises(DataChanged, match=said):
        gate(subject, TorchEngine(backbone), backbone, GateSettings(max_rounds=1, round_items=12), tmp_path)
    with pytest.raises(DataChanged, match=said):
        evaluate(str(subject.directory), None, None, 8, tmp_path / "home", None, as_json=True)


def test_a_built_in_task_is_recorded_by_the_packages_that_hold_it(backbone: Backbone, tmp_path: Path) -> None:
    defined = released(backbone, tmp_path / "a", 0.0).manifest.task["definitions"]
    assert isinstance(defined, dict) and set(defined) == {"icd10-chapter", "grammar"}
    recorded = defined["icd10-chapter"]
    assert isinstance(recorded, dict) and recorded["packages"] == {
        package: version(package) for package in ("graftline", "simple-icd-10-cm")
    }
    older = {**recorded, "packages": {"graftline": "0.0.1", "simple-icd-10-cm": "1.0"}}
    with pytest.raises(DataChanged, match="with simple-icd-10-cm '1.0'"):
        check_unchanged(older, TASKS["icd10-chapter"], "small@1")


def test_the_gate_finds_no_change_under_an_adapter_of_zeros(backbone: Backbone, tmp_path: Path) -> None:
    engine = TorchEngine(backbone)
    found = gate(released(backbone, tmp_path / "a", 0.0), engine, backbone, GateSettings(max_rounds=1, round_items=12), tmp_path)
    assert {test.change for test in found.tests} == {0.0}
    assert found.verdict == "inconclusive"
    assert GATED not in engine.loaded


def test_a_family_that_the_backbone_cannot_do_is_not_measurable(backbone: Backbone, tmp_path: Path) -> None:
    subject = released(backbone, tmp_path / "a", 0.0)
    recipe = subject.recipe.with_values({"protected": ("boxes",)})
    changed = Subject(
        subject.name, subject.directory, subject.manifest.model_copy(update={"recipe": recipe.model_dump(mode="json")})
    )
    found = gate(changed, TorchEngine(backbone), backbone, GateSettings(max_rounds=1, round_items=12), tmp_path)
    assert "not above chance" in found.not_measurable["boxes"]
    assert found.verdict == "inconclusive"


def test_damage_in_the_files_stops_the_promotion_and_leaves_no_version(backbone: Backbone, tmp_path: Path) -> None:
    from registry.errors import DamagedRelease

    released(backbone, tmp_path / "a", 0.3)
    weights = tmp_path / "a" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    store = store_at(tmp_path / "home")
    with pytest.raises(DamagedRelease, match="adapter_model.safetensors"):
        publish_directory(store, tmp_path / "a", "small")
    with store.client() as client:
        assert not client.search_registered_models()
    shutil.rmtree(tmp_path / "a")


def test_every_task_has_measures_that_can_read_it(backbone: Backbone) -> None:
    families = [TASKS[name] for name in ("boxes", "grammar")]
    for planned in report_plan(TASKS["icd10"], families, items=4):
        readings = planned.measure.read(TorchEngine(backbone), backbone, None, planned.task, planned.examples)
        assert len(readings.values) == len(planned.examples)


def test_an_undecided_gate_goes_on_with_items_that_it_has_not_read(backbone: Backbone, tmp_path: Path) -> None:
    subject, engine = released(backbone, tmp_path / "a", 0.0), TorchEngine(backbone)
    settings = GateSettings(max_rounds=1)
    first = gate(subject, engine, backbone, settings, tmp_path)
    assert first.evidence is not None
    second = gate(subject, engine, backbone, settings, tmp_path, earlier=first.evidence)
    both = gate(subject, engine, backbone, GateSettings(max_rounds=2), tmp_path, seed=first.evidence.start.seed)
    assert (second.rounds, second.rounds_before, second.settings.restarts) == (2, 1, 0)
    assert second.tests == both.tests
    policy = recipe_policy(subject.recipe).model_copy(update={"domain_items": 8})
    other = gate(subject, engine, backbone, settings, tmp_path, policy=policy, earlier=second.evidence)
    assert (other.rounds, other.settings.restarts) == (1, 1)


def test_promoting_again_continues_the_gate_of_the_same_version(backbone: Backbone, tmp_path: Path) -> None:
    released(backbone, tmp_path / "a", 0.0)
    store = store_at(tmp_path)
    publish_directory(store, tmp_path / "a", "small")
    for rounds in (1, 2, 3):
        assert promote("small@1", "", False, None, None, tmp_path, None, as_json=True) == 1
        kept = recorded_report(store, ReleaseName("small", 1))
        assert kept is not None and (kept.verdict, kept.rounds, kept.rounds_before) == ("inconclusive", rounds, rounds - 1)
    (tmp_path / "strict.toml").write_text("alpha = 0.01\n")
    promote("small@1", "", False, None, tmp_path / "strict.toml", tmp_path, None, as_json=True)
    kept = recorded_report(store, ReleaseName("small", 1))
    assert kept is not None and (kept.rounds, kept.settings.alpha, kept.settings.restarts) == (4, 0.01, 0)


def test_the_same_files_published_again_get_no_second_chance(backbone: Backbone, tmp_path: Path) -> None:
    subject = released(backbone, tmp_path / "a", 0.0)
    store = store_at(tmp_path)
    publish_directory(store, tmp_path / "a", "small")
    first = gate(subject, TorchEngine(backbone), backbone, GateSettings(max_rounds=1), tmp_path)
    record_verdict(store, ReleaseName("small", 1), first)
    publish_directory(store, tmp_path / "a", "small")
    kept = recorded_evidence(store, ReleaseName("small", 2))
    assert kept is not None and first.evidence is not None and kept.digest() == first.evidence.digest()
    record_verdict(store, ReleaseName("small", 1), first.model_copy(update={"verdict": "fail"}))
    with pytest.raises(PromotionRefused, match="stay failed"):
        promote("small@2", "", False, None, None, tmp_path, None, as_json=True)


def test_a_second_version_is_gated_with_a_smaller_share_of_the_names_alpha(backbone: Backbone, tmp_path: Path) -> None:
    store = store_at(tmp_path)
    for number, size in ((1, 0.0), (2, 1e-6)):
        released(backbone, tmp_path / str(number), size)
        publish_directory(store, tmp_path / str(number), "small")
    for number in (1, 2, 1, 2):
        promote(f"small@{number}", "", False, None, None, tmp_path, None, as_json=True)
    kept = [recorded_report(store, ReleaseName("small", number)) for number in (1, 2)]
    assert [(found.rounds, found.settings.restarts) for found in kept if found is not None] == [(2, 0), (2, 1)]


def test_a_domain_that_another_name_serves_on_the_backbone_is_protected_at_the_gate(backbone: Backbone, tmp_path: Path) -> None:
    released(backbone, tmp_path / "a", 0.0)
    store = store_at(tmp_path)
    publish_directory(store, tmp_path / "a", "small")
    write_release(tmp_path / "b", backbone, random_lora(backbone, 1), domain="deduction")
    make_champion(store, "customs-office", publish(store, "customs-office", tmp_path / "b").version)
    promote("small@1", "", False, None, None, tmp_path, None, as_json=True)
    kept = recorded_report(store, ReleaseName("small", 1))
    assert kept is not None
    assert "deduction" in {test.name for test in kept.families} | set(kept.not_measurable)
    assert kept.details["contamination"] == 0


def test_a_release_that_was_trained_on_items_of_the_gate_stops_it_and_takes_no_share_of_alpha(
    backbone: Backbone, tmp_path: Path
) -> None:
    subject = released(backbone, tmp_path / "a", 0.0)
    leaked = TASKS["icd10-chapter"].examples("gate", 20)
    complete(tmp_path / "b", subject.recipe, backbone, Profile((random_lora(backbone, 1),)), 1.0, leaked)
    store = store_at(tmp_path)
    publish_directory(store, tmp_path / "b", "small")
    with pytest.raises(Overlap, match="No held-out row may repeat a training row"):
        promote("small@1", "", False, None, None, tmp_path, None, as_json=True)
    assert taken_shares(store, "small") == frozenset() and recorded_report(store, ReleaseName("small", 1)) is None


def test_the_gate_of_a_name_asks_for_its_own_domain(backbone: Backbone, tmp_path: Path) -> None:
    subject = released(backbone, tmp_path / "a", 0.0)
    policy = recipe_policy(subject.recipe).model_copy(update={"domain": "customs"})
    with pytest.raises(PolicyRefused, match="small@1 was fitted to 'icd10-chapter' and the name's policy says 'customs'"):
        gate(subject, TorchEngine(backbone), backbone, GateSettings(), tmp_path, policy=policy)


def test_the_first_release_of_a_name_sets_its_policy(backbone: Backbone, tmp_path: Path) -> None:
    subject = released(backbone, tmp_path / "a", 0.0)
    store = store_at(tmp_path / "home")
    publish_directory(store, tmp_path / "a", "small")
    publish_directory(store, tmp_path / "a", "small")
    assert [change.policy for change in policies(store, "small")] == [recipe_policy(subject.recipe)]


@pytest.mark.parametrize("seconds", [0.0, -5.0, float("nan")])
def test_a_time_budget_that_is_no_time_is_refused(seconds: float, tmp_path: Path) -> None:
    with pytest.raises(BadSeconds, match="above 0"):
        promote(f"{NAME}@1", "", False, seconds, None, tmp_path, None, as_json=True)


def test_rounds_hold_whole_groups_and_no_group_recurs() -> None:
    drawn = TASKS["icd10"].examples("gate", 400)
    rounds = whole_groups(drawn, 60)
    groups = [{example.group for example in items} for items in rounds]
    assert sum(len(found) for found in groups) == len(set().union(*groups)) == len({example.group for example in drawn})
    assert all(60 <= len(items) < 60 + PER_GROUP for items in rounds[:-1])
    assert max(Counter(example.group for items in rounds for example in items).values()) == PER_GROUP
