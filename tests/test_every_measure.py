"""A contract over all measures: deterministic, paired with itself exactly, and moved by damage."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from adapters.backbone import Backbone
from engine.profile import Profile
from engine.torch_engine import TorchEngine
from evaluation.admission import admit, random_update
from evaluation.base_cache import BaseCache
from evaluation.errors import DataError
from evaluation.evaluate import Planned, evaluate
from evaluation.measures import MEASURES
from evaluation.measures.correction import triple
from evaluation.task import Example, Task
from evaluation.tasks import TASKS

TASK_OF = {
    "shift_robustness": "alchemy",
    "text_likelihood": "text",
    "pair_preference": "grammar",
    "pair_margin": "grammar",
    "systematic_search": "maze",
    "belief": "belief",
}
# Information gain is flat where nothing is known, as here; test_information_gain.py damages a reader that knows.
CONTINUOUS = {"chain_likelihood", "text_likelihood", "brier_score", "candidate_log_probability"}


def task_of(measure: str) -> Task:
    return TASKS[TASK_OF.get(measure, "boxes")]


@pytest.fixture(scope="module")
def engine(session_backbone: Backbone) -> TorchEngine:
    engine = TorchEngine(session_backbone)
    engine.load("noop", Profile((random_update(session_backbone, 0.0),)))
    engine.load("noise", Profile((random_update(session_backbone, 1.0),)))
    return engine


@pytest.mark.parametrize("name", MEASURES)
def test_an_adapter_of_zeros_changes_nothing_at_all(engine: TorchEngine, backbone: Backbone, name: str) -> None:
    task = task_of(name)
    found = evaluate(engine, backbone, "noop", [Planned(MEASURES[name], task, task.examples("search", 4), "protected")])
    row = found.rows[0]
    # A random backbone is right on nothing; what is a share of that says so, and reads alike on both sides (a NaN as well).
    assert set(row.change.per_item) == {0.0} or (row.not_measurable and row.base.reason)
    assert repr(row.adapted.parts) == repr(row.base.parts)
    # What the backbone cannot show is NaN of the backbone; the adapted model may have gained it, so that its values stand.
    assert repr(row.adapted.values) == repr(row.base.values) or all(math.isnan(value) for value in row.base.values)


@pytest.mark.parametrize("name", MEASURES)
def test_one_value_an_item_and_a_part(engine: TorchEngine, backbone: Backbone, name: str) -> None:
    task = task_of(name)
    examples = task.examples("search", 4)
    readings = MEASURES[name].read(engine, backbone, "noise", task, examples)
    assert readings.item_ids == tuple(example.id for example in examples)
    assert {len(part) for part in (readings.values, readings.clusters, *readings.parts.values())} == {len(examples)}


@pytest.mark.parametrize("name", sorted(CONTINUOUS))
def test_noise_in_the_weights_moves_it(engine: TorchEngine, backbone: Backbone, name: str) -> None:
    task = task_of(name)
    found = evaluate(engine, backbone, "noise", [Planned(MEASURES[name], task, task.examples("search", 4), "protected")])
    assert any(found.rows[0].change.per_item)


def test_the_correction_triple_separates_repair_from_damage(engine: TorchEngine, backbone: Backbone) -> None:
    task = TASKS["boxes"]
    readings = MEASURES["correction"].read(engine, backbone, None, task, task.examples("search", 2))
    written = {name: (1.0,) * 4 for name in ("fast_parsed", "slow_parsed")}
    made = type(readings)(
        **{**readings.__dict__, "parts": {"fast": (1.0, 1.0, 0.0, 0.0), "slow": (1.0, 0.0, 1.0, 0.0), **written}}
    )
    assert triple(made) == type(triple(made))(0.5, 0.5, 0.5)


def test_choice_reads_the_text_of_the_options_and_prefers_what_was_made_likely(backbone: Backbone) -> None:
    from adapters.lora import LoRA, LoRASpec
    from tuning.methods.sft import SFT, SFTSpec

    task = TASKS["icd10-chapter"]
    examples = task.examples("search", 6)
    lora = LoRA(LoRASpec(rank=8))
    # Asked as it is read: what was learnt after another prompt is likelier here only by chance.
    SFT(SFTSpec(prompt="matching", steps=60, batch_size=6, learning_rate=1e-2)).fit(backbone, [lora], examples)
    engine = TorchEngine(backbone)
    engine.load("fitted", Profile((lora,)))
    found = evaluate(engine, backbone, "fitted", [Planned(MEASURES["choice_accuracy"], task, examples, "domain")])
    assert found.domain.adapted.mean == 1.0 > found.domain.base.mean


def test_the_stored_readings_of_the_backbone_are_the_read_ones(engine: TorchEngine, backbone: Backbone, tmp_path: Path) -> None:
    task = TASKS["boxes"]
    examples = task.examples("search", 3)
    measure, cache = MEASURES["chain_likelihood"], BaseCache(tmp_path, "float32")
    fresh = cache.read(measure, engine, backbone, task, examples)
    assert cache.read(measure, engine, backbone, task, examples) == fresh
    assert cache.key(measure, backbone, task, examples) != cache.key(measure, backbone, task, examples[:2])
    assert len(list(tmp_path.iterdir())) == 1


def test_a_task_at_the_floor_is_not_admitted_and_the_reason_is_told(engine: TorchEngine, backbone: Backbone) -> None:
    found = admit(engine, backbone, MEASURES["generation"], TASKS["boxes"], chance=0.0, items=6)
    assert not found.admitted
    assert any("not above chance" in reason for reason in found.reasons)
    assert found.noop_change == 0.0


def test_a_rationale_is_asked_for_where_a_chain_is_measured(engine: TorchEngine, backbone: Backbone) -> None:
    bare = [Example(id="bare", question="q", answer="a")]
    with pytest.raises(DataError, match="'bare'.*has none. Add one"):
        MEASURES["chain_likelihood"].read(engine, backbone, None, TASKS["boxes"], bare)
