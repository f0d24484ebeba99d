"""Any task of lm-evaluation-harness by name, read on backbone and adapter, and paired item by item.

The harness builds the prompts, and says what is right; the engine computes. Its scores per item are compared, not its means. A
metric that is no number of an item (F1 over a whole task) cannot be paired, and is reported as not measurable.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapters.backbone import Backbone
from engine.engine import Engine
from evaluation.errors import MissingPackage, UnknownTask, UnreadableFile
from evaluation.evaluate import change_between, told
from evaluation.measure import Readings
from evaluation.statistics import PairedChange

# Log-likelihoods of an item, alone or with the number of its words or bytes; the task's number is made of all of them.
_PERPLEXITIES = {
    "perplexity": "nats",
    "word_perplexity": "nats per word",
    "byte_perplexity": "nats per byte",
    "bits_per_byte": "nats per byte",
}
_FEWSHOT_SEED = 1234  # the harness's own


@dataclass(frozen=True)
class HarnessRow:
    """One metric of one task, with its filter where it has one. Higher is better: what the harness wants low is negated."""

    base: Readings
    adapted: Readings
    change: PairedChange
    not_measurable: str = ""

    @property
    def summary(self) -> Mapping[str, float | None]:
        return {}

    def as_dict(self) -> dict[str, Any]:
        return told(self)


def evaluate_harness(
    engine: Engine,
    backbone: Backbone,
    profile: str | None,
    names: Sequence[str],
    limit: int | None = None,
    include_path: Path | None = None,
    on_progress: Callable[[float], None] | None = None,
) -> tuple[HarnessRow, ...]:
    """Every metric of the named tasks, groups and tags. `limit` items a task; `include_path` holds YAML tasks of one's own.

    An item is a cluster of its own. `tokens` of a row are those of all the tasks that were read with it.
    """
    tasks = _loaded(names, include_path)
    base = _read(engine, backbone, None, tasks, limit)
    if on_progress:
        on_progress(0.5)
    adapted = base if profile is None else _read(engine, backbone, profile, tasks, limit)
    return tuple(_paired(found, adapted[key]) for key, found in base.items())


def _loaded(names: Sequence[str], include_path: Path | None) -> dict[str, Any]:
    if importlib.util.find_spec("lm_eval") is None:
        raise MissingPackage(
            f"A harness task needs the package lm-eval, which is not installed, to read {', '.join(names)}. "
            "Install it with `pip install 'graftline[harness]'`."
        )
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=None if include_path is None else str(include_path))
    if unknown := [name for name in names if name not in manager.all_tasks]:
        raise UnknownTask(
            f"lm-evaluation-harness has no task, group or tag {unknown[0]!r}. `lm_eval ls tasks` lists what it has; tasks of "
            "your own are found in --include-path."
        )
    try:
        tasks: dict[str, Any] = manager.load(list(names))
    except Exception as error:  # what fetching data and reading YAML raise has no common root
        raise UnreadableFile(
            f"The data of {', '.join(names)} must be on the hub, in the cache, or in a local file, but cannot be loaded: "
            f"{type(error).__name__}: {_one_line(error)}. Fetch it first, or name another task."
        ) from error
    for task in tasks["tasks"].values():
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=_FEWSHOT_SEED)
    return tasks


def _one_line(error: Exception) -> str:
    """Its first line, where libraries say what is wrong before they say at length what to try."""
    return str(error).strip().partition("\n")[0][:200].rstrip(".")


def _read(
    engine: Engine, backbone: Backbone, profile: str | None, tasks: dict[str, Any], limit: int | None
) -> dict[tuple[str, str], Readings]:
    """By task and metric."""
    from lm_eval.evaluator import evaluate

    from evaluation.harness_model import EngineLM

    before = engine.stats().forward_tokens
    found = evaluate(EngineLM(engine, backbone, profile), tasks, limit=limit, bootstrap_iters=0)
    tokens = engine.stats().forward_tokens - before
    readings = {}
    for task, samples in found["samples"].items():
        wants_high = found["higher_is_better"].get(task, {})
        for metric, filtered in dict.fromkeys((m, sample["filter"]) for sample in samples for m in sample["metrics"]):
            rows = [sample for sample in samples if sample["filter"] == filtered]
            name = metric if filtered == "none" else f"{metric},{filtered}"
            readings[task, name] = _readings(task, name, metric, rows, wants_high.get(metric) is not False, tokens)
    return readings


def _readings(task: str, name: str, metric: str, samples: Sequence[Mapping[str, Any]], wants_high: bool, tokens: int) -> Readings:
    samples = sorted(samples, key=lambda sample: int(sample["doc_id"]))
    values = [_number(metric, sample.get(metric)) for sample in samples]
    known = [value for value in values if value is not None]
    sign = 1.0 if wants_high or metric in _PERPLEXITIES else -1.0
    reason = "" if len(known) == len(values) else "the harness gives no number an item, only one for the whole task"
    items = tuple(f"{task}/{sample['doc_id']}/{sample['doc_hash'][:12]}" for sample in samples)
    return Readings(
        name,
        task,
        items,
        tuple(math.nan for _ in values) if reason else tuple(sign * value for value in known),
        items,
        _PERPLEXITIES.get(metric, metric if sign > 0 else f"{metric}, negated"),
        reason=reason,
        tokens=tokens,
    )


def _number(metric: str, value: object) -> float | None:
    """An item's own number; of a log-likelihood with a count, their ratio."""
    if metric in _PERPLEXITIES and isinstance(value, (tuple, list)):
        total, count = value
        return float(total) / max(1, int(count))
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None


def _paired(base: Readings, adapted: Readings) -> HarnessRow:
    assert base.item_ids == adapted.item_ids  # the same documents, in the same order
    return HarnessRow(base, adapted, *change_between(base, adapted))
