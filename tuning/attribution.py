"""Attribution of a recipe: one fit with checkpoints, the influence of every row, and the removal experiment that tests it.

Everything lies in a folder named by all that decides it, and goes there row by row and arm by arm: the same call again goes on
where the last one stopped.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from adapters.spec import Spec
from adapters.whole_file import write_whole
from engine.torch_engine import TorchEngine
from evaluation.base_cache import BaseCache
from evaluation.retention import is_written
from evaluation.task import Example
from evaluation.tasks import task_named
from tuning import removal
from tuning.arms import ArmBench, Progress, finished
from tuning.batches import rows_of
from tuning.checkpoints import Checkpoint, checkpoint_steps
from tuning.errors import SweepRefused
from tuning.gradients import Weighted
from tuning.ground import Ground, new_adapters
from tuning.influence import Influence, Pool, conflicts, influences, length_correlations, lens
from tuning.journal import Journal, alone_in
from tuning.laid_out import fitted_on
from tuning.queries import DOMAIN, ENOUGH, domain_query, family_query
from tuning.recipe import Recipe
from tuning.removal import Removal

Cosines = dict[tuple[int, str], Mapping[str, float]]  # by (step, row id), then by query


class AttributionSpec(Spec):
    """`rows` is None for as many as the fit reads: its steps times its batch size."""

    rows: int | None = Field(default=None, ge=10)
    queries: int = Field(default=64, ge=1)  # items a family; fewer than 50 are mostly noise
    checkpoints: int = Field(default=4, ge=2)
    dims: int = Field(default=2048, ge=64)  # of a sketched gradient
    share: float = Field(default=0.1, gt=0, lt=0.5)  # of the rows, left out by each arm of the removal experiment
    seeds: int = Field(default=3, ge=1)  # of the removal experiment


@dataclass(frozen=True)
class Attributed:
    """`removal` is None while the experiment is not made or not finished; the scores are then alignments of gradients."""

    directory: Path
    checkpoints: Sequence[Checkpoint]
    influences: Sequence[Influence]
    removal: Removal | None
    num_queries: int
    not_measurable: Mapping[str, str]

    @property
    def evidence(self) -> str:
        return self.removal.evidence if self.removal else removal.ALIGNMENT

    @property
    def worst(self) -> list[Influence]:
        """All rows, the costliest first."""
        return sorted(self.influences, key=lambda one: one.retention)

    def sentences(self) -> list[str]:
        said = ["Gradient alignment: no removal experiment stands behind these scores yet."]
        if self.removal:
            said = [self.removal.sentence()]
        if self.num_queries < ENOUGH:
            said.append(f"{self.num_queries} items a query: the gradient of fewer than {ENOUGH} is mostly noise.")
        return said

    def as_dict(self) -> dict[str, Any]:
        families = list(self.influences[0].families)
        total = sum(checkpoint.learning_rate for checkpoint in self.checkpoints)
        return {
            "evidence": self.evidence,
            "sign": "above 0: training on the row lowers the family's loss; below 0: it raises it",
            "said": self.sentences(),
            "checkpoints": [{"step": one.step, "weight": one.learning_rate / total} for one in self.checkpoints],
            "queries": self.num_queries,
            "length_correlation": length_correlations(self.influences),
            "below_zero": {name: sum(one.families[name] < 0 for one in self.influences) for name in families},
            "conflicts": {
                **{name: [one.row for one in conflicts(self.influences, name)] for name in families},
                "retention": [one.row for one in conflicts(self.influences)],
            },
            "rows": [one.as_dict() for one in self.worst],
            "removal": self.removal.as_dict() if self.removal else None,
            "not_measurable": dict(self.not_measurable),
        }


@dataclass(frozen=True)
class Attribution:
    recipe: Recipe
    spec: AttributionSpec
    ground: Ground
    home: Path

    def run(
        self,
        check: bool = True,
        on_progress: Progress = lambda what, done, of: None,
        out_of_time: Callable[[], bool] = lambda: False,
    ) -> Attributed | None:
        """None when time ran out before every row was scored; call again to go on. `check`: make the removal experiment too."""
        self._refuse_what_cannot_end(check)
        with alone_in(self.directory):
            checkpoints = self._checkpoints(on_progress)
            cosines = self._cosines(checkpoints, on_progress, out_of_time)
            if cosines is None:
                return None
            found = influences(self.pool, checkpoints, cosines)
            removed = self._removal(found, on_progress, out_of_time) if check else None
        done = Attributed(self.directory, checkpoints, found, removed, self.spec.queries, self.ground.not_measurable)
        write_whole(self.directory / "attribution.json", json.dumps(done.as_dict(), indent=2))
        return done

    @cached_property
    def examples(self) -> Sequence[Example]:
        method = self.recipe.sft
        return self.ground.examples[: self.spec.rows or method.steps * method.batch_size]

    @cached_property
    def pool(self) -> Pool:
        method = self.recipe.sft
        rows = rows_of(self.ground.backbone, self.examples, method.target, method.prompt, method.trace_loss)
        return Pool([example.id for example in self.examples], rows)

    @cached_property
    def directory(self) -> Path:
        scoring = self.spec.model_dump(mode="json", exclude={"share", "seeds"})
        digest = self.ground.digest(self.recipe, self.examples, scoring, removal.reading_plan(self.recipe, self.ground))
        return self.home / "attribution" / f"{self.recipe.name}-{digest[:12]}"

    @property
    def families(self) -> list[str]:
        return [name for name in self.recipe.protected if task_named(name).name not in self.ground.not_measurable]

    def _refuse_what_cannot_end(self, check: bool) -> None:
        if check:
            removal.check_removable(self.recipe.sft)
            if not any(is_written(task_named(name)) for name in self.families):
                raise SweepRefused(
                    f"The removal experiment reads written chains, but of {', '.join(self.recipe.protected)} none is both "
                    "written and measurable on this backbone. Protect one that is, or pass --no-check."
                )
        checkpoint_steps(self.recipe.sft.steps, self.spec.checkpoints)

    def _checkpoints(self, on_progress: Progress) -> list[Checkpoint]:
        steps = checkpoint_steps(self.recipe.sft.steps, self.spec.checkpoints)
        files = [self.directory / f"checkpoint-{step}.safetensors" for step in steps]
        if not all(file.is_file() for file in files):
            fitted = fitted_on(
                self.recipe,
                self.ground.backbone,
                self.examples,
                lambda step, of, loss: on_progress("steps of the fit", step, of),
                checkpoints=steps,
            )
            for file, checkpoint in zip(files, fitted.checkpoints, strict=True):
                checkpoint.save(file)
        return [Checkpoint.load(file) for file in files]

    def _queries(self) -> dict[str, list[Weighted]]:
        backbone, count = self.ground.backbone, self.spec.queries
        tasks = [task_named(name) for name in self.families]
        found = {task.name: family_query(backbone, task, task.examples("search", count)) for task in tasks}
        return found | {DOMAIN: domain_query(backbone, self.ground.domain.examples("search", count))}

    def _cosines(
        self, checkpoints: Sequence[Checkpoint], on_progress: Progress, out_of_time: Callable[[], bool]
    ) -> Cosines | None:
        """Of every row at every checkpoint; None when time ran out."""
        journal, queries = Journal(self.directory / "rows.jsonl"), self._queries()
        entries = journal.entries()
        asked = {(e["step"], e["query"]): torch.tensor(e["sketch"], dtype=torch.float64) for e in entries if "query" in e}
        found: Cosines = {(entry["step"], entry["row"]): entry["cosines"] for entry in entries if "row" in entry}
        total = len(checkpoints) * len(self.pool.ids)
        for checkpoint in checkpoints:
            step = checkpoint.step
            left = [pair for pair in zip(self.pool.ids, self.pool.rows, strict=True) if (step, pair[0]) not in found]
            if not left:
                continue
            with lens(self.ground.backbone, new_adapters(self.recipe, self.ground.backbone), checkpoint, self.spec.dims) as view:
                for name in queries:
                    if out_of_time():
                        return None
                    if (step, name) not in asked:
                        asked[step, name] = view.query(queries[name])
                        journal.append({"step": step, "query": name, "sketch": asked[step, name].tolist()})
                here = {name: asked[step, name] for name in queries}
                for row_id, row in left:
                    if out_of_time():
                        return None
                    found[step, row_id] = view.cosines(row, here)
                    journal.append({"step": step, "row": row_id, "cosines": found[step, row_id]})
                    on_progress("rows scored", len(found), total)
        return found

    @cached_property
    def bench(self) -> ArmBench:
        """Where the removal experiment fits and reads its arms; its journal takes other arms of the same rows too."""
        backbone, precision = self.ground.backbone, self.recipe.evaluation.precision
        plan = removal.reading_plan(self.recipe, self.ground)
        engine = TorchEngine(backbone, max_rows=64, precision=precision)
        cache = BaseCache(self.home / "cache" / "base", precision)
        journal = Journal(self.directory / f"removal-{self.spec.share:g}.jsonl")
        return ArmBench(self.recipe, backbone, engine, plan, cache, journal)

    def _removal(self, found: Sequence[Influence], on_progress: Progress, out_of_time: Callable[[], bool]) -> Removal | None:
        arms = removal.arms(self.examples, found, self.spec.share, self.recipe.sft, range(self.spec.seeds))
        read = self.bench.run(arms, on_progress, out_of_time)
        return Removal.of(read, self.bench.plan) if finished(read, arms) else None
