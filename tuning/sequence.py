"""A sequence: several domains one after another on one backbone, under four policies, with the matrix after every stage.

Every stage goes into a journal as soon as it is read, every fit, merge and router is kept by what decided it, and so is every
reading: a sequence that was killed goes on where it stopped, and policies and orders share what they have in common.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from adapters.backbone import Backbone
from adapters.merge import MergeSpec
from adapters.spec import Spec
from adapters.whole_file import write_whole
from engine.torch_engine import TorchEngine
from evaluation.evaluate import Planned
from evaluation.measures import MEASURES
from evaluation.retention import gate_measure
from evaluation.task import Task
from evaluation.tasks import task_named
from tuning.continuing import check_start
from tuning.journal import Journal, alone_in
from tuning.measurable import not_measurable
from tuning.plan import DOMAIN_MEASURE, data_digest, training_examples
from tuning.recipe import Recipe
from tuning.router_fit import RouterSpec
from tuning.sequence_fits import Fittable, SequenceFits, Told
from tuning.sequence_matrix import PolicyMatrix
from tuning.sequence_policies import POLICIES, Document, Policy, Reader, Stages
from tuning.sequence_recipes import Order, orders_of
from tuning.usable import check_lengths, check_usable

Place = tuple[Order, Policy, int]  # a stage, counted from 1


class SequenceSpec(Spec):
    """`orders`: the given one, all there are, or so many: the given one, its reverse, and others drawn."""

    policies: tuple[Policy, ...] = Field(default=POLICIES, min_length=1)
    orders: Literal["given", "all"] | int = "given"
    items: int = Field(default=60, ge=8)  # a domain, of the select split
    family_items: int = Field(default=40, ge=8)
    merge: MergeSpec = MergeSpec()
    router: RouterSpec = RouterSpec()

    @field_validator("policies")
    @classmethod
    def _once_each(cls, value: tuple[Policy, ...]) -> tuple[Policy, ...]:
        return tuple(dict.fromkeys(value))

    @field_validator("orders")
    @classmethod
    def _some(cls, value: str | int) -> str | int:
        if isinstance(value, int) and value < 1:
            raise ValueError(f"orders is given, all, or a number of at least 1, but got {value}.")
        return value


@dataclass(frozen=True)
class Sequenced:
    """What was read so far: a matrix for every order and policy whose stages are all there."""

    matrices: Mapping[tuple[Order, Policy], PolicyMatrix]

    @property
    def orders(self) -> tuple[Order, ...]:
        return tuple(dict.fromkeys(order for order, _ in self.matrices))

    def of(self, order: Order) -> dict[Policy, PolicyMatrix]:
        return {policy: matrix for (one, policy), matrix in self.matrices.items() if one == order}


@dataclass(frozen=True)
class SequenceStudy:
    """In a folder of the home that is named by all that decides what a stage reads."""

    domains: Sequence[Fittable]
    families: Sequence[Task]  # that can show a loss; none of the domains
    not_measurable: Mapping[str, str]
    spec: SequenceSpec
    fits: SequenceFits
    home: Path

    @cached_property
    def directory(self) -> Path:
        plan = [[one.measure.name, one.measure.version, data_digest(one.examples)] for one in self.plan.values()]
        told = self.spec.model_dump(mode="json", include={"merge", "router"})
        if self._weights:
            told["merge"]["weights"] = self._weights
        recipes = sorted(json.dumps(domain.recipe.model_dump(mode="json"), sort_keys=True) for domain in self.domains)
        deciding = [self.fits.backbone.fingerprint, recipes, told, sorted(map(str, plan)), self.fits.sweep is not None]
        return self.home / "sequence" / hashlib.sha256(json.dumps(deciding).encode()).hexdigest()[:12]

    @cached_property
    def plan(self) -> dict[str, Planned]:
        """Items of the select split, which no fit and no sweep reads."""
        found = {
            domain.name: Planned(MEASURES[DOMAIN_MEASURE], domain.task, domain.task.examples("select", self.spec.items), "domain")
            for domain in self.domains
        }
        for task in self.families:
            examples = task.examples("select", self.spec.family_items)
            found[task.name] = Planned(gate_measure(task), task, examples, "protected")
        return found

    @cached_property
    def orders(self) -> tuple[Order, ...]:
        return orders_of([domain.name for domain in self.domains], self.spec.orders)

    @property
    def left(self) -> list[Place]:
        """Stages that were not read yet."""
        found = self._kept()
        return [one for one in self._wanted() if one not in found]

    def finished(self) -> Sequenced:
        """What is whole of it by now; nothing is read for it."""
        return self._told(self._kept())

    def run(self, on_progress: Told = lambda what, done, of: None) -> Sequenced:
        backbone, precision = self.fits.backbone, self.domains[0].recipe.evaluation.precision
        wanted = list(self._wanted())
        with alone_in(self.directory):
            found = self._kept()
            if left := self.left:
                engine = TorchEngine(backbone, max_rows=64, precision=precision)
                reader = Reader(engine, backbone, self.plan, self.home / "cache", precision)
                try:
                    for number, (order, policy, stage) in enumerate(left, start=len(wanted) - len(left)):
                        on_progress("stages", number, len(wanted))
                        stages = Stages(
                            [self._domain(name) for name in order],
                            self.families,
                            self.fits,
                            reader,
                            self.spec.merge,
                            self.spec.router,
                            self._weights,
                        )
                        document = stages.document(policy, stage)
                        self._journal.append({"order": list(order), "policy": policy, "stage": stage, "document": document})
                        found[order, policy, stage] = document
                finally:
                    engine.close()
                on_progress("stages", len(wanted), len(wanted))
            told = self._told(found)
            write_whole(self.directory / "sequence.json", json.dumps(self.as_dict(told), indent=2))
        return told

    def as_dict(self, told: Sequenced) -> dict[str, Any]:
        return {
            "backbone": self.fits.backbone.name,
            "directory": str(self.directory),
            "not_measurable": dict(self.not_measurable),
            "matrices": [
                {"order": list(order), "policy": policy, **matrix.as_dict()} for (order, policy), matrix in told.matrices.items()
            ],
        }

    @property
    def _weights(self) -> dict[str, float]:
        """In a merge, by domain; empty for 1 each."""
        weights = self.spec.merge.weights
        return dict(zip((domain.name for domain in self.domains), weights, strict=True)) if weights else {}

    @property
    def _journal(self) -> Journal:
        return Journal(self.directory / "stages.jsonl")

    def _kept(self) -> dict[Place, Document]:
        return {_place(entry): entry["document"] for entry in self._journal.entries()}

    def _wanted(self) -> Iterator[Place]:
        for order in self.orders:
            for policy in self.spec.policies:
                for stage in range(1, len(order) + 1):
                    yield order, policy, stage

    def _domain(self, name: str) -> Fittable:
        return next(domain for domain in self.domains if domain.name == name)

    def _told(self, found: Mapping[Place, Document]) -> Sequenced:
        matrices = {}
        for order in self.orders:
            for policy in self.spec.policies:
                stages = [(order, policy, stage) for stage in range(1, len(order) + 1)]
                if all(stage in found for stage in stages):
                    matrices[order, policy] = PolicyMatrix.of([found[stage] for stage in stages])
        return Sequenced(matrices)


def _place(entry: Mapping[str, Any]) -> Place:
    return tuple(entry["order"]), entry["policy"], entry["stage"]


def study_of(recipes: Sequence[Recipe], spec: SequenceSpec, home: Path, fits: SequenceFits) -> SequenceStudy:
    """Loads and checks the rows of all; what the home does not know about the backbone is read first, and kept there."""
    domains, left_out = [], dict[str, str]()
    for recipe in recipes:
        task = task_named(recipe.domain)
        examples = training_examples(recipe, task)
        check_usable(recipe, task, examples)
        check_lengths(recipe, fits.backbone, examples)
        check_start(recipe, fits.backbone)
        domains.append(Fittable(recipe, task, examples))
        left_out |= not_measurable(recipe, fits.backbone, home / "cache")
    names = {domain.name for domain in domains}
    guarded = {task.name: task for recipe in recipes for task in map(task_named, recipe.protected)}
    # What one recipe protects may be another's domain: it is a column of its own already.
    families = [task for name, task in guarded.items() if name not in names and name not in left_out]
    return SequenceStudy(domains, families, left_out, spec, fits, home)


def fits_in(home: Path, backbone: Backbone, on_progress: Told) -> SequenceFits:
    """Fits of the recipes' own values, kept in the home for every sequence that asks for the same."""
    return SequenceFits(backbone, home / "sequence" / "made", on_progress)
