"""`graftline tune-decoding`: from a published release to the next version of it, or to none, on the test-bed."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
from fitted import fitted_lora, random_steering
from small_releases import write_release
from stores import store_at
from test_cli import ended
from toy_engine import ToyEngine

from adapters.adapter import Adapter
from adapters.backbone import TESTBED, Backbone
from adapters.steering import Steering
from adapters.steering_record import LayerRow, Signs, SteeringRecord
from engine.decoding.budget import Budget
from engine.profile import DecodingPolicy, Profile
from engine.torch_engine import TorchEngine
from evaluation.admission import admissions
from evaluation.compression import split, template_digest, vector
from evaluation.pairs import Pairs, make_pairs
from evaluation.task import SPLITS, Split
from evaluation.tasks import task_named
from evaluation.tasks.alchemy import ALCHEMY
from registry.manifest import file_digest, verify
from registry.release import Release, load_release, publish
from registry.tracking import Tracking
from service.commands.tune_decoding import opened
from tuning.decoding.release import policy_study, write_files
from tuning.decoding.settings import EPS, LAYER, DecodingSearch
from tuning.decoding.space import POLICY, steering_of
from tuning.decoding.strengths import Steered
from tuning.decoding.study import Confirmed, PolicyTrial
from tuning.gating import Subject
from tuning.manifest import complete
from tuning.methods.compression import CompressionMethodSpec
from tuning.plan import training_examples
from tuning.recipe import Recipe
from tuning.siblings import sibling

FEW = ("--trials", "6", "--items", "24", "--family-items", "8", "--tolerance", "0.2", "--policy", "budget")
FEW += ("--range", "budget.max_trace_tokens=26:40")


COUNTS: dict[Split, int] = {"train": 20, "search": 10, "select": 30, "gate": 10}
pytestmark = pytest.mark.usefixtures("tracking")


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks of a user: alchemy of one step and of nine, of which the test-bed does the first; and of two steps and three."""
    folder = tmp_path_factory.mktemp("tasks")
    for name, lengths in (("mixed", (1, 9)), ("plain", (2, 3))):
        families = [ALCHEMY.at_length(length) for length in lengths]
        drawn = [example for family in families for part in SPLITS for example in family.examples(part, COUNTS[part], seed=3)]
        with (folder / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("question", "answer"), *((example.question, example.answer) for example in drawn)])
        text = f'name = "{name}"\nfile = "{name}.csv"\n[columns]\nquestion = "question"\nanswer = "answer"\n'
        (folder / f"{name}.toml").write_text(text)
    return folder


def recipe_of(domain: Path, kind: str = "lora", method: dict[str, object] | None = None) -> Recipe:
    values: dict[str, object] = {"adapter": {"kind": kind}, **({"method": method} if method else {})}
    return Recipe.model_validate(
        {"name": "mixed", "backbone": str(TESTBED), "domain": str(domain), "protected": ("alchemy",), **values}
    )


def released(
    home: Path,
    testbed: Backbone,
    domain: Path,
    adapter: Adapter | None,
    policy: DecodingPolicy | None = None,
    method: dict[str, object] | None = None,
) -> Release:
    """Published below a run, in a home that knows the test-bed to solve alchemy."""
    admissions(ToyEngine(testbed, ALCHEMY.examples("search", 24, seed=5)), testbed, [ALCHEMY], home / "cache")
    recipe = recipe_of(domain, "steering" if isinstance(adapter, Steering) else "lora", method)
    examples = training_examples(recipe, task_named(recipe.domain))[:40]
    profile = Profile((adapter,) if adapter is not None else (), policy or DecodingPolicy())
    complete(home / "files", recipe, testbed, profile, 1.0, examples)
    tracking = Tracking.at(home)
    run_id = tracking.start_run("fits", "trial 7")
    tracking.end_run(run_id)
    return publish(tracking, "mixed", home / "files", run_id)


def faint(testbed: Backbone) -> Adapter:
    return fitted_lora(testbed, 1).scaled(1e-3)


def test_a_better_budget_is_published_and_a_second_call_publishes_nothing_more(
    tasks: Path, tmp_path: Path, testbed: Backbone, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = released(tmp_path, testbed, tasks / "mixed.toml", faint(testbed))
    command = ("tune-decoding", "mixed@1", *FEW, "--home", ".", "--json")
    assert ended(command, tmp_path, monkeypatch) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["new_release"] == "mixed@2" and told["confirmed"]["claims"] == {"off": "fewer tokens"}
    assert told["trials"][0]["values"] == {"policy": "off"} and told["not_searched"] == {}

    tracking = Tracking.at(tmp_path)
    made = load_release(tracking, "mixed", 2)
    policy = Profile.load(made.directory).policy
    assert policy.budget is not None and policy.budget.max_trace_tokens is not None
    assert made.manifest.profile.decoding == policy.model_dump(mode="json")
    same = ("recipe", "task", "training_hashes", "backbone")
    assert all(getattr(made.manifest, name) == getattr(first.manifest, name) for name in same)
    weights = "adapter_model.safetensors"
    assert file_digest(made.directory / weights) == file_digest(first.directory / weights)
    with tracking.client() as client:
        assert client.get_run(str(made.run_id)).data.tags["mlflow.parentRunId"] == first.run_id
        assert not client.get_registered_model("mixed").aliases  # a candidate: it has yet to pass the gate

    assert ended(command, tmp_path, monkeypatch) == 0
    assert json.loads(capsys.readouterr().out)["new_release"] == "mixed@2"
    with tracking.client() as client:
        assert len(client.search_model_versions("name = 'mixed'")) == 2


def test_a_policy_is_searched_on_the_backbone_that_serves_it(
    tasks: Path, tmp_path: Path, testbed: Backbone, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = recipe_of(tasks / "mixed.toml").with_values({"backbone_format": "nf4"})
    complete(tmp_path / "files", recipe, testbed, Profile((faint(testbed),)), 1.0, ())
    tracking, seen = store_at(tmp_path), list[Backbone]()
    release = publish(tracking, "mixed", tmp_path / "files")
    monkeypatch.setattr("tuning.decoding.release.policy_study", lambda r, s, engine, backbone, *_: seen.append(backbone))
    opened(release, DecodingSearch(), tracking, tmp_path)
    assert release.manifest.backbone.format == "nf4" and seen[0].format == "full"
    assert "mixed@1 was fitted around its backbone in nf4; it is measured as it is served" in capsys.readouterr().err


def test_where_nothing_is_better_the_command_says_so_and_writes_nothing(
    tasks: Path, tmp_path: Path, testbed: Backbone, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    released(tmp_path, testbed, tasks / "plain.toml", faint(testbed))
    assert ended(("tune-decoding", "mixed@1", *FEW[:6], "--tolerance", "0", *FEW[8:], "--home", "."), tmp_path, monkeypatch) == 0
    said = capsys.readouterr().out
    assert "no version is written" in said and "families kept" in said and "policy" in said
    with Tracking.at(tmp_path).client() as client:
        assert len(client.search_model_versions("name = 'mixed'")) == 1


def test_a_dry_run_tells_what_would_be_searched_and_keeps_nothing(
    tasks: Path, tmp_path: Path, testbed: Backbone, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    released(tmp_path, testbed, tasks / "mixed.toml", faint(testbed))
    assert ended(("tune-decoding", "mixed@1", "--dry-run", "--json", "--home", "."), tmp_path, monkeypatch) == 0
    told = json.loads(capsys.readouterr().out)
    room = 128 - 32 - len(testbed.encode("\nAnswer:"))
    assert told["searched"] == {"budget.max_trace_tokens": [4.0, room]} and told["families"] == ["alchemy"]
    assert set(told["not_searched"]) == {"tip", "steering"} and told["seconds_a_trial"] > 0
    assert not (tmp_path / "decoding").exists()


def test_a_released_policy_is_a_reference_too(tasks: Path, tmp_path: Path, testbed: Backbone) -> None:
    own = DecodingPolicy(budget=Budget(max_trace_tokens=26))
    release = released(tmp_path, testbed, tasks / "mixed.toml", faint(testbed), policy=own)
    settings = DecodingSearch(kinds=("budget",), trials=3, items=16, family_items=8)
    study = policy_study(release, settings, TorchEngine(testbed), testbed, Tracking.at(tmp_path), tmp_path)
    assert {name: profile.policy for name, profile in study.references.items()} == {"off": DecodingPolicy(), "as released": own}
    assert [set(trial.score.changes) for trial in study.run().trials if trial.score] == [{"off", "as released"}] * 3


def test_a_release_without_an_adapter_is_searched_too(tasks: Path, tmp_path: Path, testbed: Backbone) -> None:
    own = DecodingPolicy(budget=Budget(max_trace_tokens=40))
    release = released(tmp_path, testbed, tasks / "mixed.toml", None, policy=own)
    settings = DecodingSearch(kinds=("budget",), trials=2, items=8, family_items=8)
    study = policy_study(release, settings, TorchEngine(testbed), testbed, Tracking.at(tmp_path), tmp_path)
    values = {POLICY: "budget", "budget.max_trace_tokens": 26}
    profile = study.space.profile(values)
    score = study.score(study.bench.written(profile))
    write_files(tmp_path / "out", release, study, Confirmed(PolicyTrial(1, values, score), profile, {}, score, True))
    manifest = verify(tmp_path / "out")
    assert Profile.load(tmp_path / "out") == Profile((), DecodingPolicy(budget=Budget(max_trace_tokens=26)))
    assert manifest.profile.adapters == () and manifest.derived == release.manifest.derived


def pairs_of(testbed: Backbone, engine: TorchEngine, domain: Path, spec: CompressionMethodSpec) -> Pairs:
    task = task_named(str(domain))
    examples = task.examples("train", spec.num_examples, spec.seed)
    return make_pairs(engine, testbed, task, examples, spec.verbose, spec.concise, spec.max_new_tokens)


def steered(testbed: Backbone, engine: TorchEngine, domain: Path) -> tuple[Steering, dict[str, object]]:
    """A vector of layer 3 with the record that a fit leaves; layer 1 was shown to shorten turned round, layer 2 was not."""
    method: dict[str, object] = {"name": "compression", "concise": "answer", "num_examples": 8}
    spec = CompressionMethodSpec.model_validate(method)
    pairs = pairs_of(testbed, engine, domain, spec)
    made = vector(testbed, [pair.contrast(testbed) for pair in split(pairs.pairs)[0]], spec.compression, 3).at(0.1)

    def signs(high: float) -> Signs:
        changes = {"change": (high, high - 0.1, high + 0.1), "minus_change": (-high, -high - 0.1, -high + 0.1)}
        return Signs(tokens=(9, 8, 7), accuracy=(1, 1, 1), plus_change=(high, high - 0.1, high + 0.1), num_items=8, **changes)

    rows = tuple(
        LayerRow(layer=layer, gamma=0.1, kl=0.03, norm=1.0, signs=signs(high)) for layer, high in ((1, 0.5), (2, 0.0), (3, -0.5))
    )
    record = SteeringRecord(
        eps=0.03,
        gamma=0.1,
        kl=0.03,
        kl_curve=((0.0, 0.0), (0.1, 0.03)),
        kl_tokens=100,
        hidden_norm_median=1.0,
        signs=rows[2].signs,
        flipped=False,
        layers=rows,
        pairs=len(pairs.pairs),
        pairs_digest=pairs.digest(),
        template_digest=template_digest(testbed),
    )
    return made.recorded(record), method


def test_a_steering_vector_is_rescaled_to_a_bound_and_made_again_for_another_layer(
    tasks: Path, tmp_path: Path, testbed: Backbone
) -> None:
    engine, domain = TorchEngine(testbed), tasks / "plain.toml"
    vector_of_three, method = steered(testbed, engine, domain)
    release = released(tmp_path, testbed, domain, vector_of_three, method=method)
    settings = DecodingSearch(kinds=("steering",), trials=3, items=8, family_items=8)
    study = policy_study(release, settings, engine, testbed, Tracking.at(tmp_path), tmp_path)
    assert study.space.steered is not None and study.space.steered.layers == (3, 1) and LAYER not in study.space.left_out
    for layer in (3, 1):
        profile = study.space.profile({POLICY: "steering", EPS: 0.01, LAYER: layer})
        found = steering_of(profile)
        assert found is not None and found.layer == layer
        assert 0 < study.space.steered.strengths.divergence.of(found) <= 0.01
    # Layer 1 pointed the other way.
    spec = CompressionMethodSpec.model_validate(method)
    pairs = pairs_of(testbed, engine, domain, spec)
    plain = vector(testbed, [pair.contrast(testbed) for pair in split(pairs.pairs)[0]], spec.compression, 1)
    torch.testing.assert_close(found.tensors()["vector"], -plain.tensors()["vector"])


def test_a_release_at_another_strength_says_the_bound_that_the_gate_holds_it_to(
    tasks: Path, tmp_path: Path, testbed: Backbone
) -> None:
    engine, domain = TorchEngine(testbed), tasks / "plain.toml"
    vector_of_three, method = steered(testbed, engine, domain)
    release = released(tmp_path, testbed, domain, vector_of_three, method=method)
    settings = DecodingSearch(kinds=("steering",), trials=2, items=8, family_items=8)
    study = policy_study(release, settings, engine, testbed, Tracking.at(tmp_path), tmp_path)
    values = {POLICY: "steering", EPS: 0.01, LAYER: 1}
    profile = study.space.profile(values)
    score = study.score(study.bench.written(profile, confirm=True), confirm=True)
    write_files(tmp_path / "out", release, study, Confirmed(PolicyTrial(1, values, score), profile, {}, score, True))
    manifest, kept = verify(tmp_path / "out"), steering_of(Profile.load(tmp_path / "out"))
    assert kept is not None and kept.record is not None and kept.layer == 1
    assert kept.record.eps == 0.01 and kept.record.kl <= 0.01 and kept.record.gamma == kept.spec.gamma and kept.record.flipped
    assert kept.record.refusals is not None and kept.record.signs.num_items == 8
    recipe = Recipe.model_validate(manifest.recipe)
    assert isinstance(recipe.method, CompressionMethodSpec) and (recipe.method.eps, recipe.method.layers) == (0.01, (1,))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("record", "does not say from which pairs"),
        ("layers", "found no other layer that shortens"),
        ("pairs", "are not those that its vector was made from"),
    ],
)
def test_why_another_layer_cannot_be_had_is_told(tasks: Path, testbed: Backbone, change: str, said: str) -> None:
    engine, domain = TorchEngine(testbed), tasks / "plain.toml"
    vector_of_three, method = steered(testbed, engine, domain)
    record = vector_of_three.record
    assert record is not None
    alone = record.model_copy(update={"layers": record.layers[2:]})
    other = record.model_copy(update={"pairs_digest": "0" * 64})
    bare = random_steering(testbed, 3)
    steering = {"record": bare, "layers": vector_of_three.recorded(alone), "pairs": vector_of_three.recorded(other)}[change]
    task = task_named(str(domain))
    found = Steered.of(recipe_of(domain, "steering", method), steering, engine, testbed, task, task.examples("select", 4))
    assert found.layers == (3,) and said in found.why


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory, prepared_store: Path, testbed: Backbone, tasks: Path) -> Path:
    """A registry with a release of the test-bed, one of a backbone that is gone, and one without a recipe."""
    home = tmp_path_factory.mktemp("three")
    shutil.copy(prepared_store, home / "mlflow.db")
    released(home, testbed, tasks / "plain.toml", faint(testbed))
    tracking = Tracking.at(home)
    write_release(home / "bare", testbed, faint(testbed))
    publish(tracking, "bare", home / "bare")
    recipe = recipe_of(tasks / "plain.toml").model_copy(update={"name": "gone", "backbone": "/nowhere/gone"})
    complete(home / "gone", recipe, testbed, Profile((faint(testbed),)), 1.0, task_named(recipe.domain).examples("train", 4))
    publish(tracking, "gone", home / "gone")
    return home


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("absent@1",), "'absent@1' is not there"),
        (("mixed",), "mixed"),
        (("mixed@9",), "'mixed@9' is not there"),
        (("gone@1",), "/nowhere/gone"),
        (("bare@1",), "recipe in its manifest, but that of bare@1 is none"),
        (("mixed@1", "--policy", "luck"), "one or more of budget, ramp, minimum, tip, cyclic, branches, steering, but got luck"),
        (("mixed@1", "--policy", "tip"), "That leaves out tip: The policy's `tip` needs a token"),
        (("mixed@1", "--policy", "steering"), "steering: the release has no steering vector"),
        (("mixed@1", "--range", "budget.max_trace_tokens"), "A range is FIELD=LOW:HIGH"),
        (("mixed@1", "--range", "budget.luck=1:2"), "but got 'budget.luck'"),
        (("mixed@1", "--range", "tip.alpha=5:2"), "inside [0, 30], but got 5 to 2"),
        (("mixed@1", "--range", "budget.max_trace_tokens=8.5:9.5"), "between whole numbers, but got 8.5 to 9.5"),
        (("mixed@1", "--range", "tip.alpha=1:2", "--policy", "budget"), "what is searched (budget), but got one of tip.alpha"),
        (("mixed@1", "--range", "budget.max_trace_tokens=200:300", "--policy", "budget"), "its range begins at 200"),
        (("mixed@1", "--tolerance", "2"), "'tolerance'"),
        (("mixed@1", "--max-new-tokens", "20", "--policy", "budget"), "leave 0 for a trace"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_input_is_one_sentence_and_leaves_nothing_behind(
    three: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    said: str,
) -> None:
    assert ended(("tune-decoding", *arguments, "--home", "."), three, monkeypatch) == 2
    (sentence,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("graftline:")]
    assert said in sentence
    assert not (three / "decoding").exists()


def test_a_sibling_is_served_under_the_releases_policy(tasks: Path, tmp_path: Path, testbed: Backbone) -> None:
    own = DecodingPolicy(budget=Budget(max_trace_tokens=26))
    recipe = recipe_of(tasks / "plain.toml").with_values(
        {"method.steps": 1, "method.batch_size": 2, "method.num_examples": 6, "adapter.lora.rank": 2}
    )
    examples = training_examples(recipe, task_named(recipe.domain))
    manifest = complete(tmp_path / "own", recipe, testbed, Profile((faint(testbed),), own), 1.0, examples)
    made = sibling(Subject("mixed@1", tmp_path / "own", manifest), testbed, 1, tmp_path, lambda share: None)
    assert Profile.load(made.directory).policy == own
