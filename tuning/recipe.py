"""A recipe: everything that decides the outcome of one run, in a small TOML file."""

from __future__ import annotations

import hashlib
import json
import math
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, SerializeAsAny, ValidationError, field_validator, model_validator

from adapters.backbone import Format
from adapters.lora import LoRASpec
from adapters.softcot import SoftCoTSpec
from adapters.spec import Choices, Range, Spec
from adapters.steering import SteeringSpec
from engine.vllm.options import MAX_RANK, check_servable
from registry.names import checked_name
from tuning.errors import BadRecipe
from tuning.faults import in_one_sentence
from tuning.layout import FitRecipe
from tuning.methods import METHODS
from tuning.methods.method import MethodSpec
from tuning.methods.sft import SFTSpec
from tuning.stop_settings import StopRecipe, fits_mode
from tuning.study_limits import UNDECIDING, StudyLimits

Kind = Literal["lora", "softcot", "lora+softcot", "steering"]
KINDS: tuple[Kind, ...] = ("lora", "softcot", "lora+softcot")  # that a sweep draws; a steering vector is asked for by name
METHOD_NAME = "method.name"
SOFTCOT = "softcot"  # the method that fits several sets of soft thoughts
USUAL_SEARCH = (
    "adapter.kind",
    "method.learning_rate",
    "method.steps",
    "method.target",
    "method.prompt",
    "method.kl_weight",
    "adapter.lora.rank",
)
REASONING_FAMILIES = ("arithmetic", "word_problem", "boxes", "deduction", "ordering", "calendar", "kinship")


# What an earlier adapter decides where a fit goes on from it.
GIVEN_BY_START = (
    "adapter.kind",
    "adapter.lora.rank",
    "adapter.lora.alpha",
    "adapter.lora.target_modules",
    "adapter.lora.band",
    "adapter.softcot.num_thoughts",
    "adapter.softcot.assistant_layers",
    "adapter.softcot.gate",
)


class AdapterRecipe(Spec):
    """Which adapters are fitted together, the values of each kind, and what they continue; see tuning.continuing."""

    kind: Kind = "lora"
    lora: LoRASpec = LoRASpec()
    softcot: SoftCoTSpec = SoftCoTSpec()
    steering: SteeringSpec = SteeringSpec()
    warm_start: str | None = None  # an adapter's directory, or models:/NAME@champion, that the fit goes on from
    orthogonal_to: tuple[str, ...] = ()  # the same, of LoRA adapters that a new one is kept apart from
    orthogonal_weight: Annotated[float, Range(0.5, 5.0, log=True)] = 0.5

    @model_validator(mode="after")
    def _continues(self) -> AdapterRecipe:
        if self.orthogonal_to and "lora" not in self.kind.split("+"):
            raise ValueError(f"orthogonal_to keeps a LoRA apart from earlier ones, but kind is {self.kind!r}. Leave it out.")
        if self.orthogonal_to and self.lora.freeze_a:
            raise ValueError(
                "orthogonal_to turns what a LoRA reads (its A) away from earlier ones, but lora.freeze_a leaves A as it starts. "
                "Leave one of them out."
            )
        if self.orthogonal_weight <= 0:
            raise ValueError(f"orthogonal_weight must be above 0, but got {self.orthogonal_weight:g}. Leave out orthogonal_to.")
        if self.warm_start is not None and self.lora.init != "default":
            raise ValueError(
                f"A fit starts from an adapter or from an init, but got warm_start = {self.warm_start!r} and "
                f"lora.init = {self.lora.init!r}. Leave one of them out."
            )
        return self


class StudyRecipe(StudyLimits):
    """How long the sweep searches, and for what."""

    mode: Literal["pareto", "constrained"] = "pareto"
    scales: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0)  # of the fitted adapter, tried after each fit
    seed: int = Field(default=0, ge=0, lt=2**31)
    stop: Annotated[StopRecipe, AfterValidator(fits_mode)] = StopRecipe()

    @field_validator("scales")
    @classmethod
    def _usable(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not value or any(not 0 < scale <= 2 for scale in value):
            raise ValueError(f"scales must be one or more numbers in (0, 2], but got {list(value)}.")
        return value


class EvaluationRecipe(Spec):
    """Items of the search split, and what loss of each protected family is tolerable."""

    domain_items: int = Field(default=150, ge=8)
    chain_items: int = Field(default=48, ge=4)  # a protected family, scored by likelihood
    generated_items: int = Field(default=24, ge=0)  # a protected family, written greedily at the chosen scale
    margins: dict[str, float] = {}  # by family; the measure's default where none is given
    precision: Literal["float32", "bfloat16"] = "float32"


class GateRecipe(Spec):
    """The gate's settings; see registry.gate. A name's first release makes them, with `protected`, the policy of the name."""

    margin: float = Field(default=0.02, gt=0, lt=1)  # of a family in shares
    nats_margin: float = Field(default=0.05, gt=0, lt=1)  # of a family in nats per token; see tuning.gating.MAX_NATS
    margins: dict[str, float] = {}  # by family, where it differs from these two
    pooled_margin: float | None = Field(default=None, gt=0, lt=1)
    min_domain_gain: float = Field(default=0.0, ge=0, lt=1)
    time_budget_s: float = Field(default=3600.0, gt=0)
    round_items: int = Field(default=100, ge=8)
    max_rounds: int = Field(default=20, ge=1)
    domain_items: int = Field(default=400, ge=8)
    candidates: int = Field(default=3, ge=1, le=3)
    alpha: float = Field(default=0.05, gt=0, lt=0.5)
    earlier_domains: bool = True  # what other names serve on the same backbone is protected too
    training_seeds: int = Field(default=1, ge=1)  # fits of the recipe that must pass, the release itself among them


class Recipe(Spec):
    """`search` names the fields that the sweep varies; all else keeps the value written here."""

    name: str  # of a folder, a study and a registered model
    backbone: str = "smollm2-135m-reasoner"
    backbone_format: Format = "full"  # nf4: its linear layers in 4 bits, in the fits and readings of the sweep
    engine: Literal["torch", "vllm"] = "torch"  # that is to serve it: vllm keeps a sweep from choosing what vLLM refuses
    domain: str  # a built-in task, or the path of a task's TOML; `protected` names tasks likewise
    protected: tuple[str, ...] = Field(default=(*REASONING_FAMILIES, "grammar", "text"), min_length=1)
    adapter: AdapterRecipe = AdapterRecipe()
    method: SerializeAsAny[MethodSpec] = SFTSpec()
    fit: FitRecipe = FitRecipe()
    search: tuple[str, ...] = Field(default_factory=lambda values: _usual_search(values))
    ranges: dict[str, tuple[float, float] | tuple[str, ...]] = {}  # narrower than the spec's own
    start: tuple[dict[str, str | int | float], ...] = ()  # points tried after the recipe's own; fields left out keep its values
    study: StudyRecipe = StudyRecipe()
    evaluation: EvaluationRecipe = EvaluationRecipe()
    gate: GateRecipe = GateRecipe()

    @field_validator("name")
    @classmethod
    def _is_a_model_name(cls, value: str) -> str:
        if not re.fullmatch(r"\w[\w. -]{0,79}", checked_name(value)):
            raise ValueError(
                "A recipe's name is also a folder's: a letter or digit, then at most 79 letters, digits, dots, '_', '-', spaces, "
                f"but got {value!r}. Try icd10-coding."
            )
        return value

    @field_validator("method", mode="before")
    @classmethod
    def _of_its_method(cls, value: object) -> object:
        """The table as the spec of the method that it names; sft where it names none."""
        if not isinstance(value, dict):
            return value
        name = value.get("name", "sft")
        if name not in METHODS:
            raise ValueError(f"method.name is one of {', '.join(METHODS)}, but got {name!r}.")
        spec = METHODS[name].spec_type
        if strange := sorted(value.keys() - spec.model_fields.keys()):
            keys = ", ".join(field for field in spec.model_fields if field != "name")
            raise ValueError(f"A recipe of the method {name!r} has the keys {keys}, but got {', '.join(map(repr, strange))}.")
        return spec(**value)

    @model_validator(mode="after")
    def _search_is_known(self) -> Recipe:
        if METHOD_NAME in self.ranges:
            _check_range(METHOD_NAME, Choices(_swept()), self.ranges[METHOD_NAME])
        known = {field for method in self.methods() for field in search_marks(method)}
        for field in (*self.search, *self.ranges):
            if field not in known:
                if field == "adapter.kind":
                    raise ValueError(
                        f"adapter.kind is searched where a method trains each of {', '.join(KINDS)}, but "
                        f"{', '.join(map(repr, self.methods()))} trains fewer. Take it out of search, and name the kind in "
                        "[adapter]."
                    )
                raise ValueError(
                    f"search and ranges name searchable fields, but {field!r} is none. Known: {', '.join(sorted(known))}."
                )
        METHODS[self.method.name].check_kind(self.adapter.kind)
        if self.fit.is_launched:
            for method in self.methods():
                METHODS[method].check_processes(max(2, self.fit.processes))
        if self.engine == "vllm":
            check_servable(self.adapter.kind, self.adapter.lora.rank, self.backbone_format)
        chains = self.adapter.softcot.num_chains if "softcot" in self.adapter.kind.split("+") else 1
        if chains > 1 and self.methods() != (SOFTCOT,):
            raise ValueError(
                f"Several sets of soft thoughts are fitted together by the method {SOFTCOT!r} alone, but "
                f"adapter.softcot.num_chains is {chains} and the method {', '.join(map(repr, self.methods()))}. Set "
                f'method.name = "{SOFTCOT}", or num_chains = 1.'
            )
        if len(set(self.protected)) < len(self.protected) or self.domain in self.protected:
            raise ValueError(
                f"protected names each task once and never the domain, but got {list(self.protected)} and {self.domain!r}."
            )
        if self.adapter.warm_start is not None and (given := [field for field in self.search if field in GIVEN_BY_START]):
            raise ValueError(
                f"A fit that goes on from an adapter has its shape, but search names {', '.join(given)}. Take that out of "
                "search, or leave out adapter.warm_start."
            )
        own = any(map(is_file, self.protected))  # a file's task has a name that only the file tells: see tuning.usable
        for table, margins, most in (("evaluation", self.evaluation.margins, math.inf), ("gate", self.gate.margins, 1.0)):
            for family, margin in margins.items():
                if not (own or family in self.protected) or not 0 < margin < most:
                    where = "above 0" if table == "evaluation" else "in (0, 1)"
                    raise ValueError(
                        f"{table}.margins gives a tolerable loss {where} for a protected family, but got {family!r}: {margin}. "
                        f"Protected: {', '.join(self.protected)}."
                    )
        for field, bounds in self.ranges.items():
            for method in self.methods():
                if field in search_marks(method):
                    _check_range(field, search_marks(method)[field], bounds)
        for field in (*self.ranges, *(field for point in self.start for field in point)):
            if field not in self.search:
                raise ValueError(f"ranges and start name searched fields, but {field!r} is not in search. Add it there.")
        return self

    @property
    def sft(self) -> SFTSpec:
        """The method of a study that prepares its rows itself, and so fits them as they stand."""
        if not isinstance(self.method, SFTSpec):
            raise BadRecipe(
                f"What fits prepared rows takes a recipe of the method 'sft', but this one's is {self.method.name!r}. "
                'Set method.name = "sft".'
            )
        return self.method

    def methods(self) -> tuple[str, ...]:
        """The method's name; where it is searched, all that may be drawn."""
        if METHOD_NAME not in self.search:
            return (self.method.name,)
        return tuple(str(name) for name in self.ranges.get(METHOD_NAME, _swept()))

    @classmethod
    def load(cls, file: Path) -> Recipe:
        try:
            values = tomllib.loads(file.read_text())
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise BadRecipe(
                f"A recipe is a TOML file, but {file} cannot be read: {error}. Correct the path or the file."
            ) from error
        values |= {key: _beside(file, values[key]) for key in ("domain", "protected") if key in values}
        if isinstance(adapter := values.get("adapter"), dict):
            earlier = ("warm_start", "orthogonal_to")
            values["adapter"] = adapter | {key: _beside(file, adapter[key], _is_path) for key in earlier if key in adapter}
        if isinstance(fit := values.get("fit"), dict) and "accelerate" in fit:
            values["fit"] = fit | {"accelerate": _beside(file, fit["accelerate"], _is_path)}
        try:
            return cls(**values)
        except ValidationError as error:
            raise BadRecipe(f"{file}: {in_one_sentence(error, model=cls)}") from error

    def with_values(self, values: dict[str, object]) -> Recipe:
        """The recipe with dotted fields replaced, validated again.

        Another method keeps what was written for the one before, as far as it has such fields, and a kind that it can train.
        """
        tree = self.model_dump(exclude_unset=True)
        tree.setdefault("method", {})["name"] = self.method.name
        method = METHODS[str(values.get(METHOD_NAME, self.method.name))]
        if method.spec_type is not type(self.method):
            written, known = tree["method"].items(), method.spec_type.model_fields.keys() - {"name"}
            tree["method"] = {key: value for key, value in written if key in known}
        if "adapter.kind" not in values and not method.trains(self.adapter.kind):
            tree.setdefault("adapter", {})["kind"] = next(kind for kind in (*KINDS, "steering") if method.trains(kind))
        for dotted, value in values.items():
            *parents, leaf = dotted.split(".")
            place = tree
            for parent in parents:
                place = place.setdefault(parent, {})
            place[leaf] = value
        try:
            return Recipe(**tree)
        except ValidationError as error:
            raise BadRecipe(in_one_sentence(error)) from error

    def digest(self) -> str:
        told = self.model_dump(mode="json")
        told["study"] = {name: value for name, value in told["study"].items() if name not in UNDECIDING}
        if self.engine == "torch":
            del told["engine"]  # it narrows nothing: a recipe that names no engine is the same one
        if self.study.stop == StopRecipe():
            del told["study"]["stop"]
        if self.backbone_format == "full":
            del told["backbone_format"]  # as recipes were before there was another
        del told["fit"]
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _usual_search(values: dict[str, Any]) -> tuple[str, ...]:
    """What is searched where the recipe does not say, as far as its method has it."""
    method = values.get("method")
    known = search_marks(method.name) if isinstance(method, MethodSpec) else ()
    adapter = values.get("adapter")
    given = GIVEN_BY_START if isinstance(adapter, AdapterRecipe) and adapter.warm_start is not None else ()
    return tuple(field for field in USUAL_SEARCH if field in known and field not in given)


def is_file(value: str) -> bool:
    """Of a task: its TOML, and not its name."""
    return value.endswith(".toml")


def _is_path(value: str) -> bool:
    """An adapter's directory, and not models:/NAME@champion."""
    return ":/" not in value


def _beside(file: Path, value: object, is_path: Callable[[str], bool] = is_file) -> object:
    """Paths from the recipe's folder; anything else, and what validation will refuse, as it is."""
    if isinstance(value, list):
        return [_beside(file, one, is_path) for one in value]
    return str((file.parent / value).resolve()) if isinstance(value, str) and is_path(value) else value


def _check_range(field: str, mark: Range | Choices | None, bounds: tuple[float, float] | tuple[str, ...]) -> None:
    """A recipe's range lies inside the spec's own."""
    if isinstance(mark, Choices):
        strange = [value for value in bounds if str(value) not in {str(option) for option in mark.options}]
        if strange or not bounds:
            raise ValueError(f"ranges.{field} names some of {list(mark.options)}, but got {list(bounds)}.")
    elif isinstance(mark, Range):
        numbers = [value for value in bounds if isinstance(value, int | float)]
        if len(numbers) != 2 or not mark.low <= numbers[0] <= numbers[1] <= mark.high:
            raise ValueError(f"ranges.{field} is [low, high] inside [{mark.low:g}, {mark.high:g}], but got {list(bounds)}.")


def search_marks(method: str) -> dict[str, Range | Choices]:
    """Every searchable field of a recipe of that method, by dotted name; the marks stand in the specs."""
    marks: dict[str, Range | Choices] = {METHOD_NAME: Choices(_swept())}
    kinds = tuple(kind for kind in KINDS if METHODS[method].trains(kind))
    if kinds == KINDS:
        marks["adapter.kind"] = Choices(KINDS)
    if METHODS[method].trains("lora"):
        marks["adapter.orthogonal_weight"] = AdapterRecipe.search_space()["orthogonal_weight"]
    specs: dict[str, type[Spec]] = {"adapter.lora": LoRASpec, "adapter.softcot": SoftCoTSpec}
    if not kinds:
        specs = {}  # such a method fits neither
    for prefix, spec in (*specs.items(), ("method", METHODS[method].spec_type)):
        marks.update({f"{prefix}.{name}": mark for name, mark in spec.search_space().items()})
    return marks


def narrowed(recipe: Recipe, field: str, method: str) -> Range | Choices:
    """The spec's range, or the recipe's narrower one."""
    mark, given = search_marks(method)[field], recipe.ranges.get(field)
    if field == "adapter.lora.rank" and recipe.engine == "vllm" and isinstance(mark, Range):
        mark = Range(mark.low, min(mark.high, MAX_RANK), mark.log)
    if given is None:
        return mark
    if isinstance(mark, Choices):
        return Choices(tuple(option for option in mark.options if str(option) in {str(value) for value in given}))
    low, high = (float(value) for value in given)
    return Range(low, high, mark.log)


def _swept() -> tuple[str, ...]:
    """The methods that train a kind which a sweep draws."""
    return tuple(name for name, method in METHODS.items() if any(method.trains(kind) for kind in KINDS))
