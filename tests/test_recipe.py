"""Recipes: read from TOML, refused with one clear sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import optuna
import pytest

from adapters.spec import Choices, Range
from tuning.errors import BadRecipe
from tuning.methods import METHODS
from tuning.methods.method import MethodSpec
from tuning.methods.sft import SFT
from tuning.recipe import Recipe, search_marks
from tuning.space import defaults, is_active, suggest


def written(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "recipe.toml"
    file.write_text('name = "x"\ndomain = "icd10"\n' + text)
    return file


def test_an_unknown_key_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadRecipe, match="method 'sft' has the keys learning_rate, .*, but got 'learning_rat'"):
        Recipe.load(written(tmp_path, "[method]\nlearning_rat = 1e-4\n"))


def test_beside_an_unknown_key_stand_those_of_its_table(tmp_path: Path) -> None:
    with pytest.raises(BadRecipe, match="'gates' is not a key of a recipe. .* known there are name, .*, gate.$"):
        Recipe.load(written(tmp_path, "[gates]\nmargin = 0.1\n"))
    with pytest.raises(BadRecipe, match="'adapter.lora.ranks' is not a key .* known there are (?!.*protected).*rank"):
        Recipe.load(written(tmp_path, "[adapter.lora]\nranks = 4\n"))


def test_a_wrong_value_is_shown(tmp_path: Path) -> None:
    with pytest.raises(BadRecipe, match=r"'adapter.lora.rank'.*'many'"):
        Recipe.load(written(tmp_path, '[adapter.lora]\nrank = "many"\n'))


def test_one_mistake_is_not_counted_twice(tmp_path: Path) -> None:
    with pytest.raises(BadRecipe, match=r"(?<!more\))\.$"):
        Recipe.load(written(tmp_path, '[method]\nname = "rlvr"\nbeta = -1.0\n'))
    with pytest.raises(BadRecipe, match=r"'adapter.lora.rank'.*\(and 1 more: .*\)\.$"):
        Recipe.load(written(tmp_path, '[adapter.lora]\nrank = "many"\n[study]\ntrials = 0\n'))


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text('name = "x"\n')
    with pytest.raises(BadRecipe, match="'domain' is missing"):
        Recipe.load(file)


def test_an_unsearchable_field_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(BadRecipe, match=r"'method.momentum' is none. Known: adapter.kind"):
        Recipe.load(written(tmp_path, 'search = ["method.momentum"]\n'))


def test_an_init_that_rewrites_the_backbone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadRecipe, match="must leave the backbone's weights as they are"):
        Recipe.load(written(tmp_path, '[adapter.lora]\ninit = "pissa"\n'))


def test_broken_toml_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadRecipe, match="cannot be read"):
        Recipe.load(written(tmp_path, "[method\n"))


def test_a_name_that_the_registry_cannot_hold_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text('name = "a/b"\ndomain = "icd10"\n')
    with pytest.raises(BadRecipe, match="A model name"):
        Recipe.load(file)


def test_a_task_file_is_found_beside_the_recipe(tmp_path: Path) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text('name = "x"\ndomain = "mine.toml"\n')
    assert Recipe.load(file).domain == str(tmp_path / "mine.toml")


def test_protected_task_files_are_found_beside_the_recipe(tmp_path: Path) -> None:
    recipe = Recipe.load(written(tmp_path, 'protected = ["boxes", "guards/mine.toml"]\n'))
    assert recipe.protected == ("boxes", str(tmp_path / "guards" / "mine.toml"))


def test_replacing_values_validates_them_again() -> None:
    recipe = Recipe(name="x", domain="icd10")
    assert recipe.with_values({"method.learning_rate": 1e-4}).method.learning_rate == 1e-4
    with pytest.raises(ValueError, match="learning_rate"):
        recipe.with_values({"method.learning_rate": -1.0})


def test_the_digest_follows_every_value() -> None:
    recipe = Recipe(name="x", domain="icd10")
    assert recipe.digest() == Recipe(name="x", domain="icd10").digest()
    assert recipe.digest() != recipe.with_values({"method.seed": 1}).digest()


def test_every_searchable_field_has_a_default_inside_its_range() -> None:
    recipe = Recipe(name="x", domain="icd10", search=tuple(search_marks("sft")), adapter={"kind": "lora+softcot"})
    assert set(defaults(recipe)) == set(search_marks("sft"))


def test_fields_of_a_kind_that_is_not_fitted_play_no_part() -> None:
    assert is_active("adapter.lora.rank", "lora+softcot", "sft")
    assert not is_active("adapter.lora.rank", "softcot", "sft")
    assert is_active("method.steps", "softcot", "sft")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("protected = []\n", "'protected'"),
        ('protected = ["boxes", "boxes"]\n', "each task once"),
        ('protected = ["icd10"]\n', "never the domain"),
        ("[evaluation]\nmargins = {boxes = -0.1}\n", "above 0"),
        ("[evaluation]\nmargins = {typo = 0.1}\n", "'typo'"),
        ("[method]\nwarmup = 5.0\n", "warmup"),
        ("[method]\nkl_weight = -3.0\n", "kl_weight must be at least 0"),
        ("[adapter.lora]\ndropout = 7.0\n", "dropout must lie in"),
        ('[ranges]\n"method.learning_rate" = [1e-3, 1e-4]\n', "inside"),
        ('[ranges]\n"method.target" = ["poem"]\n', "'poem'"),
        ("[study]\nscales = [3.0]\n", "scales must be"),
        ("[study]\nseed = -1\n", "study.seed.*greater than or equal to 0"),
        ("[method]\nseed = -1\n", "seed must be at least 0, but got -1"),
        ('search = ["method.name"]\n[ranges]\n"method.name" = ["sft", "ppo"]\n', "names some of .*, but got .*'ppo'"),
        ('search = ["adapter.kind"]\n[method]\nname = "rlsf"\n', "'rlsf' trains fewer. Take it out of search"),
        ('method = "sft"\n', "'method' is a table, but got 'sft'.$"),
        ('search = "method.steps"\n', "'search' is a list, but got 'method.steps'.$"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(BadRecipe, match=said):
        Recipe.load(written(tmp_path, text))


@pytest.mark.parametrize("name", ["..", "what?", "x" * 81, "-x"])
def test_a_name_that_is_no_folder_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="also a folder's"):
        Recipe(name=name, domain="icd10")


@pytest.mark.parametrize(
    "field", ["study.time_budget_s", "gate.time_budget_s", "method.learning_rate", "gate.margins", "evaluation.margins"]
)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_is_refused(field: str, value: float) -> None:
    with pytest.raises(ValueError):
        Recipe(name="x", domain="icd10").with_values({field: {"boxes": value} if field.endswith("margins") else value})


def test_recipes_have_names_of_their_own_so_that_each_can_be_swept_in_one_home() -> None:
    names = [Recipe.load(file).name for file in (Path(__file__).parent.parent / "recipes").glob("*.toml")]
    assert len(set(names)) == len(names) > 1


class OtherSpec(MethodSpec):
    name: Literal["other"] = "other"
    pull: Annotated[float, Range(0.1, 2.0)] = 0.5


class Other(SFT):
    """Trains soft thoughts alone, and has neither a target nor a prompt to search."""

    spec_type = OtherSpec
    kinds = frozenset({"softcot"})


@pytest.fixture
def other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "other", Other)


BOTH = ("method.name", "adapter.kind", "method.target", "method.pull", "method.learning_rate", "adapter.lora.rank")


@pytest.mark.usefixtures("other")
def test_a_recipe_names_its_method_and_a_fault_in_it_has_its_place(tmp_path: Path) -> None:
    recipe = Recipe.load(written(tmp_path, '[method]\nname = "other"\npull = 1.5\n[adapter]\nkind = "softcot"\n'))
    assert isinstance(recipe.method, OtherSpec) and recipe.method.pull == 1.5
    assert recipe.search == ("method.learning_rate", "method.steps", "adapter.lora.rank")
    with pytest.raises(BadRecipe, match=r"method.name is one of sft, .*other, but got 'sfd'"):
        Recipe.load(written(tmp_path, '[method]\nname = "sfd"\n'))
    with pytest.raises(BadRecipe, match="has the keys .*, but got 'target'"):
        Recipe.load(written(tmp_path, '[method]\nname = "other"\ntarget = "answer"\n'))
    with pytest.raises(BadRecipe, match="'other' trains softcot, but adapter.kind is 'lora'"):
        Recipe.load(written(tmp_path, '[method]\nname = "other"\n'))


@pytest.mark.usefixtures("other")
def test_another_method_keeps_what_was_written_and_takes_a_kind_that_it_can_train() -> None:
    recipe = Recipe(name="x", domain="icd10", method={"learning_rate": 1e-4, "target": "rationale"}, search=BOTH)
    moved = recipe.with_values({"method.name": "other"})
    assert (moved.method.name, moved.method.learning_rate, moved.adapter.kind) == ("other", 1e-4, "softcot")
    assert moved.with_values({"method.seed": 3}).method == moved.method.model_copy(update={"seed": 3})
    assert Recipe(**moved.model_dump()) == moved


@pytest.mark.usefixtures("other")
def test_a_sweep_over_methods_draws_of_each_what_it_has() -> None:
    recipe = Recipe(name="x", domain="icd10", search=BOTH, ranges={"method.name": ("sft", "other")})
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn = [suggest(study.ask(), recipe) for _ in range(20)]
    fields = {values["method.name"]: values.keys() for values in drawn}
    assert fields["other"] == {"method.name", "method.pull", "method.learning_rate"}
    assert {"method.name", "adapter.kind", "method.target", "method.learning_rate"} <= fields["sft"]
    assert all(recipe.with_values(dict(values)).method.name == values["method.name"] for values in drawn)


def test_what_two_methods_search_under_one_name_has_the_same_options() -> None:
    known: dict[str, set[object]] = {}
    for name in METHODS:
        for field, mark in search_marks(name).items():
            if isinstance(mark, Choices):
                known.setdefault(field, set()).add(mark.options)
    assert all(len(options) == 1 for options in known.values())


def test_earlier_adapters_are_found_beside_the_recipe_and_releases_by_name(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    file = tmp_path / "inner" / "recipe.toml"
    file.write_text(
        'name = "x"\ndomain = "icd10"\n[adapter]\nwarm_start = "../fitted"\n'
        f'orthogonal_to = ["models:/icd10/1", "{tmp_path}/absolute"]\n'
    )
    adapter = Recipe.load(file).adapter
    assert adapter.warm_start == str(tmp_path / "fitted")
    assert adapter.orthogonal_to == ("models:/icd10/1", str(tmp_path / "absolute"))
