"""Sequences: what each policy serves after a stage, what is made once and kept, and what is refused before all else."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from small_studies import knowing_home, small
from stores import store_at

from adapters.backbone import Backbone
from adapters.merge import MergeSpec
from engine.engine import Continuation
from engine.inspect import Inspector
from registry.claim import held
from registry.manifest import directory_digest, read_manifest
from service.commands.sequence import differences, sequence
from tuning.candidates import stored_candidates
from tuning.errors import BadRecipe, StudyIsRunning
from tuning.recipe import Recipe
from tuning.router_fit import RouterSpec
from tuning.sequence import SequenceSpec, SequenceStudy, fits_in, study_of
from tuning.sequence_fits import MeanStates, continuing
from tuning.sequence_recipes import check_recipes, orders_of

GOODS, PLACES = "customs-section", "geography-country"
SPEC = SequenceSpec(items=8, family_items=8, router=RouterSpec(items=20, max_astray=0.3))


def recipe_of(backbone_directory: Path, domain: str, **changes: object) -> Recipe:
    one = {"adapter.kind": "lora", "method.learning_rate": 2e-2, "search": ("method.learning_rate",)}
    return small(backbone_directory, **{"name": domain, "domain": domain, **one, **changes})


@pytest.fixture(scope="module")
def pair(backbone_directory: Path) -> tuple[Recipe, Recipe]:
    return recipe_of(backbone_directory, GOODS), recipe_of(backbone_directory, PLACES)


@pytest.fixture(scope="module")
def study(session_backbone: Backbone, pair: Sequence[Recipe], tmp_path_factory: pytest.TempPathFactory) -> SequenceStudy:
    """Of two domains in one order, read under all four policies."""
    home = knowing_home(session_backbone, tmp_path_factory.mktemp("home"))
    found = study_of(pair, SPEC, home, fits_in(home, session_backbone, lambda *_: None))
    found.run()
    return found


def made(study: SequenceStudy, kind: str) -> list[Path]:
    return sorted((study.fits.directory / kind).glob("[!.]*"))


def test_own_adapters_forget_nothing_and_a_domain_to_come_is_the_backbones(study: SequenceStudy) -> None:
    goods, places = study.run().of((GOODS, PLACES))["own"].matrix.domains
    assert [column.task for column in (goods, places)] == [GOODS, PLACES]
    assert goods.cells[0] == goods.cells[1]
    assert places.cells[0].change == 0.0 and places.cells[0].score == places.backbone


def test_a_continued_adapter_is_another_one_after_every_stage(study: SequenceStudy) -> None:
    own, continued = (study.run().of((GOODS, PLACES))[policy].matrix for policy in ("own", "continued"))
    assert continued.domains[0].cells[0] == own.domains[0].cells[0]  # one fit so far: the same adapter
    started = [read_manifest(one).recipe["adapter"]["warm_start"] for one in made(study, "fit")]  # type: ignore[index, call-overload]
    assert sorted(one is None for one in started) == [False, True, True]


def test_policies_share_what_they_have_in_common(study: SequenceStudy) -> None:
    assert {kind: len(made(study, kind)) for kind in ("fit", "merged", "router")} == {"fit": 3, "merged": 1, "router": 2}


def test_a_family_under_own_adapters_is_the_mean_over_those_so_far(study: SequenceStudy) -> None:
    entries = [json.loads(line) for line in (study.directory / "stages.jsonl").read_text().splitlines()]
    by_stage = {(one["policy"], one["stage"]): one["document"]["rows"] for one in entries}
    (first, both, merged) = (
        next(row["items"]["adapted"] for row in by_stage[place] if row["task"] == "ordering")
        for place in (("own", 1), ("own", 2), ("continued", 1))
    )
    assert first == merged and len(both) == len(first) == 8


def test_a_router_that_sends_all_right_answers_as_the_own_adapters_do(study: SequenceStudy) -> None:
    found = study.run().of((GOODS, PLACES))
    assert len(found["routed"].routing) == 2 and not found["merged"].routing
    last = found["routed"].routing[-1]
    assert last["right"] > 0.8  # goods and places have words of their own, which even a random backbone shows
    own, routed = (found[policy].matrix.domains for policy in ("own", "routed"))
    assert [column.cells[1].score for column in own] == [column.cells[1].score for column in routed]
    assert any(column.cells[1].change for column in routed)


class Counting:
    """Shows states of three places that tell the prompt and the layer."""

    def __init__(self) -> None:
        self.asked = 0

    def hidden_states(
        self, continuations: Sequence[Continuation], profiles: Sequence[str | None], layers: Sequence[int]
    ) -> list[torch.Tensor]:
        self.asked += len(continuations)
        return [
            torch.tensor([[[one.ids[-1] + at + place] for place in (0.0, 1.0, 2.0)] for at in layers]) for one in continuations
        ]


def test_what_a_router_reads_of_a_prompt_is_read_once_and_is_the_mean_over_its_places() -> None:
    engine, states = Counting(), MeanStates()
    prompts = [((1,), (2, 3)), ((1,), (2, 4))]
    for count in (1, 2, 2):
        asked = [Continuation(*ids) for ids in prompts[:count]]
        found = states.of(cast(Inspector, engine)).hidden_states(asked, [None] * count, [5, 7])
        assert [one.squeeze().tolist() for one in found] == [[3 + 5 + 1, 3 + 7 + 1], [4 + 5 + 1, 4 + 7 + 1]][:count]
    assert engine.asked == 2


def test_what_is_finished_is_neither_fitted_nor_read_again(study: SequenceStudy) -> None:
    kept = [file.stat().st_mtime_ns for file in made(study, "fit")]
    again = replace(study, fits=replace(study.fits, sweep=None))
    first = (study.directory / "stages.jsonl").read_bytes()
    again.run(lambda *_: pytest.fail("nothing is left to do"))
    assert (study.directory / "stages.jsonl").read_bytes() == first
    assert [file.stat().st_mtime_ns for file in made(study, "fit")] == kept


def test_another_order_fits_only_what_is_new(study: SequenceStudy) -> None:
    both = replace(study, spec=SPEC.model_copy(update={"orders": 2, "policies": ("continued", "merged")}))
    before = len(made(study, "fit"))
    found = both.run()
    assert found.orders == ((GOODS, PLACES), (PLACES, GOODS))
    assert (len(made(study, "fit")), len(made(study, "merged"))) == (before + 1, 1)
    assert both.directory == study.directory


def test_a_sequence_that_was_stopped_goes_on_at_its_stage(
    study: SequenceStudy, session_backbone: Backbone, pair: Sequence[Recipe], tmp_path: Path
) -> None:
    home = Path(shutil.copytree(study.home / "cache", tmp_path / "cache")).parent
    spec = SPEC.model_copy(update={"policies": ("continued",)})
    study = study_of(pair, spec, home, fits_in(home, session_backbone, lambda *_: None))

    def stop(what: str, done: int, of: int) -> None:
        if what == "stages" and done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        study.run(stop)
    assert len(study.left) == 1 and not study.finished().matrices
    with (study.directory / "stages.jsonl").open("a") as file:
        file.write('{"order": ["customs')  # killed in the middle of a line
    digests = [directory_digest(one) for one in made(study, "fit")]
    told = list[int]()
    study.run(lambda what, done, of: told.append(done) if what == "stages" else None)
    assert told == [1, 2] and digests[0] in [directory_digest(one) for one in made(study, "fit")]
    assert len((study.directory / "stages.jsonl").read_text().splitlines()) == 2
    assert not study.left and list(study.finished().matrices) == [((GOODS, PLACES), "continued")]


def test_the_command_writes_a_picture_a_policy_and_one_object(
    study: SequenceStudy, backbone_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = []
    for domain in (GOODS, PLACES):
        one = recipe_of(backbone_directory, domain).model_dump(mode="json", exclude_unset=True)
        files.append(tmp_path / f"{domain}.toml")
        files[-1].write_text(as_toml(one))
    settings = {"items": 8, "family_items": 8, "router": {"items": 20, "max_astray": 0.3}, "policies": ("own", "merged")}
    sequence(files, settings, False, study.home, None, as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert [one["policy"] for one in told["matrices"]] == ["own", "merged"]
    for one in told["matrices"]:
        assert Path(one["picture"]).read_bytes().startswith(b"\x89PNG")
        assert one["numbers"]["forgetting"]["value"] == pytest.approx(one["transfer"]["forgetting"])
    assert told["differences"][0]["other"] == "own"


def as_toml(values: dict[str, object]) -> str:
    """Tables of a recipe's depth."""
    plain = [f"{key} = {json.dumps(value)}\n" for key, value in values.items() if not isinstance(value, dict)]
    tables = ""
    for key, value in values.items():
        if isinstance(value, dict):
            flat = {name: one for name, one in value.items() if not isinstance(one, dict)}
            tables += f"[{key}]\n" + "".join(f"{name} = {json.dumps(one)}\n" for name, one in flat.items())
            for name, one in value.items():
                if isinstance(one, dict):
                    tables += f"[{key}.{name}]\n" + "".join(f"{field} = {json.dumps(each)}\n" for field, each in one.items())
    return "".join(plain) + tables


def test_policies_are_set_beside_the_continued_one_on_the_same_items(study: SequenceStudy) -> None:
    rows = differences(study.run(), (GOODS, PLACES))
    assert {(row["one"], row["other"]) for row in rows} == {(one, "continued") for one in ("own", "merged", "routed")}
    assert all(row["reasoning"]["low"] <= row["reasoning"]["value"] <= row["reasoning"]["high"] for row in rows)


@pytest.mark.parametrize(
    ("changes", "said"),
    (
        ({"domain": GOODS}, "'customs-section' is there twice"),
        ({"backbone": "smollm2-135m-reasoner"}, "one frozen backbone, but 'customs-section' names"),
        ({"backbone_format": "nf4"}, "backbone_format is 'full' in 'customs-section' and 'nf4' in 'geography-country'"),
        ({"evaluation.precision": "bfloat16"}, "'float32' in 'customs-section' and 'bfloat16' in 'geography-country'"),
        ({"adapter.lora.rank": 8}, r"keeps its shape, but adapter.lora is .*'rank': 4.*'rank': 8"),
        ({"adapter.kind": "softcot"}, "keeps its shape, but adapter.kind is 'lora'"),
    ),
)
def test_what_is_no_sequence_is_refused_by_its_rule(pair: Sequence[Recipe], changes: dict[str, object], said: str) -> None:
    with pytest.raises(BadRecipe, match=said):
        check_recipes((pair[0], pair[1].with_values(changes)), ("own", "continued", "merged", "routed"))


def test_soft_thoughts_are_no_part_of_a_merge_but_may_be_asked_by_name(pair: Sequence[Recipe]) -> None:
    thoughts = [recipe.with_values({"adapter.kind": "softcot"}) for recipe in pair]
    with pytest.raises(BadRecipe, match="leave merged out of --policies"):
        check_recipes(thoughts, ("own", "merged"))
    check_recipes(thoughts, ("own", "continued", "routed"))


def test_a_sweep_that_draws_shapes_cannot_be_continued(pair: Sequence[Recipe]) -> None:
    drawing = [recipe.with_values({"search": ("adapter.lora.rank",)}) for recipe in pair]
    with pytest.raises(BadRecipe, match="'customs-section' searches adapter.lora.rank"):
        check_recipes(drawing, ("continued",), sweeping=True)
    check_recipes(drawing, ("own", "routed"), sweeping=True)
    check_recipes(drawing, ("continued",))


def test_one_recipe_is_no_sequence(pair: Sequence[Recipe]) -> None:
    with pytest.raises(BadRecipe, match="two domains or more, but got 1"):
        check_recipes(pair[:1], ("own",))


def test_a_bad_sequence_leaves_nothing_behind(tmp_path: Path, backbone_directory: Path) -> None:
    file = tmp_path / "one.toml"
    file.write_text(as_toml(recipe_of(backbone_directory, GOODS).model_dump(mode="json", exclude_unset=True)))
    with pytest.raises(BadRecipe, match="there twice"):
        sequence([file, file], {}, False, tmp_path / "home", None, as_json=True)
    with pytest.raises(BadRecipe, match="'policies.0': Input should be 'own', 'continued'"):
        sequence([file, file], {"policies": ("both",)}, False, tmp_path / "home", None, as_json=True)
    assert not (tmp_path / "home").exists()


def test_orders_are_the_given_one_its_reverse_and_then_drawn_ones() -> None:
    names = ("a", "b", "c")
    assert orders_of(names, "given") == (names,)
    assert orders_of(names, 2) == (names, names[::-1])
    assert orders_of(names, 4)[:2] == orders_of(names, 2) and len(set(orders_of(names, 4))) == 4
    assert len(orders_of(names, "all")) == 6
    with pytest.raises(BadRecipe, match="have 6 orders, but 7"):
        orders_of(names, 7)
    with pytest.raises(BadRecipe, match="at most 24, but 5 domains have 120"):
        orders_of("abcde", "all")


def test_a_merge_does_not_depend_on_the_order_of_its_parts(study: SequenceStudy) -> None:
    parts = [study.fits.own(domain) for domain in study.domains]
    assert study.fits.merged(parts, MergeSpec()) == study.fits.merged(parts[::-1], MergeSpec())
    assert study.fits.merged(parts[:1], MergeSpec()) == parts[0]


def test_a_fit_that_another_sequence_makes_is_not_made_twice_at_once(study: SequenceStudy, tmp_path: Path) -> None:
    fits, goods = replace(study.fits, directory=tmp_path), study.domains[0]
    [key] = {one.name for one in made(study, "fit")} & {study.fits.own(goods).directory.name}
    with held(tmp_path / "work" / key / "lock"), pytest.raises(StudyIsRunning, match="one process at a time"):
        fits.own(goods)
    assert not (tmp_path / "fit").exists()


def test_a_weight_goes_with_its_domain_in_every_order(study: SequenceStudy) -> None:
    parts = [study.fits.own(domain) for domain in study.domains]
    plain, one, turned = (
        study.fits.merged(given, MergeSpec(weights=weights))
        for given, weights in ((parts, (1.0, 1.0)), (parts, (1.0, 0.25)), (parts[::-1], (0.25, 1.0)))
    )
    assert one == turned != plain and study.fits.merged(parts, MergeSpec(weights=(0.25, 1.0))) not in (one, plain)
    strengths = [read_manifest(made.directory).derived for made in (one, study.fits.merged(parts, MergeSpec()))]
    assert sorted(strengths[0]["weights"]) == [0.25, 1.0] and strengths[1]["weights"] == []  # type: ignore[arg-type]
    weighed = replace(study, spec=SPEC.model_copy(update={"merge": MergeSpec(weights=(1.0, 0.25)), "orders": 2}))
    turned_study = replace(weighed, domains=study.domains[::-1])
    assert len({study.directory, weighed.directory, turned_study.directory}) == 3  # the weights are then of the others


def test_weights_are_one_a_recipe_of_a_merge(pair: Sequence[Recipe]) -> None:
    check_recipes(pair, ("merged",), weights=(1.0, 0.5))
    for policies, weights in ((("merged",), (1.0,)), (("own",), (1.0, 0.5))):
        with pytest.raises(BadRecipe, match="--weights has one weight a recipe"):
            check_recipes(pair, cast(Any, policies), weights=weights)


def test_a_sweep_is_of_the_recipe_that_goes_on_and_its_best_adapter_is_kept(study: SequenceStudy, tmp_path: Path) -> None:
    asked = list[Recipe]()

    def best(recipe: Recipe) -> Path:
        asked.append(recipe)
        return study.fits.own(study.domains[0]).directory

    fits, (goods, places) = replace(study.fits, directory=tmp_path, sweep=best), study.domains
    start = fits.own(goods)
    assert fits.continued(places, start) == fits.continued(places, start) != fits.own(places)
    assert directory_digest(start.directory) == directory_digest(best(goods.recipe))
    assert len({recipe.name for recipe in asked[:3]}) == 3  # studies of their own
    assert [recipe.adapter.warm_start for recipe in asked[:3]] == [None, str(start.directory), None]


def test_a_recipe_that_goes_on_searches_nothing_that_its_start_decides(backbone_directory: Path) -> None:
    drawing = recipe_of(backbone_directory, GOODS, search=("adapter.lora.rank", "method.learning_rate"))
    drawing = drawing.with_values({"ranges": {"adapter.lora.rank": (4, 8)}, "start": ({"adapter.lora.rank": 8},)})
    found = continuing(drawing, Path("earlier"))
    assert (found.search, found.ranges, found.start) == (("method.learning_rate",), {}, ())
    assert found.adapter.warm_start == "earlier" and drawing.adapter.warm_start is None


@pytest.mark.slow
def test_a_sequence_goes_on_with_the_best_of_a_short_sweep(
    session_backbone: Backbone, backbone_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home, files = knowing_home(session_backbone, tmp_path / "home"), []
    store_at(home)
    for domain in (GOODS, PLACES):
        files.append(tmp_path / f"{domain}.toml")
        files[-1].write_text(as_toml(recipe_of(backbone_directory, domain).model_dump(mode="json", exclude_unset=True)))
    settings = {"items": 8, "family_items": 8, "policies": ("own", "continued")}
    sequence(files, settings, True, home, None, as_json=True)
    told = json.loads(capsys.readouterr().out)
    studies = {file.parent.name: json.loads(file.read_text()) for file in (home / "studies").glob("*/trials.json")}
    assert len(studies) == 3 and {len(study["trials"]) for study in studies.values()} == {2}
    best = {name: stored_candidates(home, name)[0] for name in studies}
    assert {len({str(one.params) for one in stored_candidates(home, name)}) for name in studies} == {2}  # it really searched
    fits = {directory_digest(one) for one in (home / "sequence" / "made" / "fit").glob("[!.]*")}
    assert fits == {directory_digest(one.directory) for one in best.values()}
    [goods] = [one.directory for name, one in best.items() if name.startswith(GOODS)]
    starts = [read_manifest(one.directory).recipe["adapter"]["warm_start"] for one in best.values()]  # type: ignore[index, call-overload]
    [begun] = [Path(one) for one in starts if one is not None]
    assert directory_digest(begun) == directory_digest(goods)
    sequence(files, settings, True, home, None, as_json=True)  # nothing is searched twice
    assert json.loads(capsys.readouterr().out) == told
    assert {file.parent.name: json.loads(file.read_text()) for file in (home / "studies").glob("*/trials.json")} == studies


@pytest.mark.slow
def test_a_sequence_that_was_killed_ends_as_one_that_was_not(
    session_backbone: Backbone, backbone_directory: Path, tmp_path: Path
) -> None:
    files = []
    for domain in (GOODS, PLACES):
        files.append(tmp_path / f"{domain}.toml")
        files[-1].write_text(as_toml(recipe_of(backbone_directory, domain).model_dump(mode="json", exclude_unset=True)))
    root = Path(__file__).parent.parent

    def command(home: Path) -> list[str]:
        sizes = ["--items", "8", "--family-items", "8", "--router-items", "100"]
        return [sys.executable, "-m", "service.cli", "sequence", *map(str, files), *sizes, "--home", str(home), "--json"]

    killed = knowing_home(session_backbone, tmp_path / "killed")
    whole = Path(shutil.copytree(killed, tmp_path / "whole"))
    running = subprocess.Popen(command(killed), cwd=root, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    journals: list[Path] = []
    while not (journals and len(journals[0].read_bytes().splitlines()) >= 3):
        assert running.poll() is None, "it ended before it could be killed"
        time.sleep(0.02)
        journals = list((killed / "sequence").glob("*/stages.jsonl"))
    running.send_signal(signal.SIGKILL)
    running.wait()
    before = journals[0].read_bytes().splitlines()[:3]
    outputs = [subprocess.run(command(home), cwd=root, capture_output=True, check=True, text=True) for home in (killed, whole)]
    first, second = (json.loads(one.stdout)["matrices"] for one in outputs)
    assert journals[0].read_bytes().splitlines()[:3] == before
    assert [{**one, "picture": ""} for one in first] == [{**one, "picture": ""} for one in second]
