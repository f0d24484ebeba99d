"""A picture of every measure for docs/measures.md, from what it reads of a model that can do the task and of a damaged one.

    python -m benchmarks.measure_pictures            # reads all measures again (minutes), keeps the numbers, draws
    python -m benchmarks.measure_pictures budget     # this one alone
    python -m benchmarks.measure_pictures --draw     # draws what was read before

The models and the damages are those of tests/damaged.py: the tiny test-bed, which solves `alchemy` through its trace, and the
story reader; each damage is fitted, and known. Needs what the extra `test` installs. The numbers are in measure_pictures.json.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from argparse import ArgumentParser
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from adapters.backbone import TESTBED, Backbone
from adapters.softcot import SoftCoT, SoftCoTSpec
from adapters.whole_file import write_whole
from benchmarks.measure_drawing import draw_all
from benchmarks.results import provenance
from engine.profile import Profile
from engine.torch_engine import TorchEngine
from evaluation.admission import random_update
from evaluation.base_cache import BaseCache
from evaluation.evaluate import Paired, Planned, compared, evaluate
from evaluation.measures import MEASURES

NUMBERS = Path(__file__).with_suffix(".json")
TESTS = Path(__file__).parent.parent / "tests"


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--draw", action="store_true")
    parser.add_argument("measures", nargs="*", help="all, where none is named")
    asked = parser.parse_args()
    found: dict[str, Any] = json.loads(NUMBERS.read_text()) if NUMBERS.is_file() else {}
    if not asked.draw:
        where = provenance("measure_pictures")
        for name, numbers in read(asked.measures or list(MEASURES)):
            found[name] = {"read": where, **numbers}
            print(name, numbers["change"], flush=True)
        write_whole(NUMBERS, json.dumps(found, separators=(",", ":")).replace('},"', '},\n"') + "\n")
    draw_all(found)


def read(names: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """What was read of the backbone, under an adapter of zeros, and under the damage that the measure must flag."""
    sys.path.insert(0, str(TESTS))
    from damaged import CONTROLS, STORY_READER, Bench

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        cache = BaseCache(Path(place), "float32")
        able = {"bench": TESTBED, "story_bench": STORY_READER}
        benches = {
            name: Bench(TorchEngine(Backbone.load(str(path), device="cpu", dtype=torch.float32), max_rows=64), cache)
            for name, path in able.items()
        }
        for name in names:
            if name not in CONTROLS:
                yield name, soft_thoughts(benches["bench"].engine.backbone, Path(place) / "assistant")
                continue
            control, bench = CONTROLS[name], benches[CONTROLS[name].able]
            task = control.task(bench.engine.backbone)
            planned = [Planned(control.measure or MEASURES[name], task, task.examples("gate", control.count), "report")]
            zeros, damaged = (
                evaluate(bench.engine, bench.engine.backbone, bench.name_of(damage), planned, cache).rows[0]
                for damage in ("zeros", control.damage)
            )
            yield name, told(control.damage, zeros, damaged)


def soft_thoughts(backbone: Backbone, assistant: Path) -> dict[str, Any]:
    """Who hears the answer from its thoughts, as the backbone, and the same once it has learnt the answers by heart."""
    from test_fitted_thoughts import PLANNED, knowing, listener, teach

    # The test-bed's own states of two questions differ too little to spell different answers; those of a random model do not.
    torch.manual_seed(0)
    config = backbone.model.config.to_dict() | {"num_hidden_layers": 2, "initializer_range": 0.3, "dtype": "float32"}
    LlamaForCausalLM(LlamaConfig(**config)).save_pretrained(assistant)
    backbone.tokenizer.save_pretrained(assistant)
    softcot = SoftCoT(SoftCoTSpec(num_thoughts=3, assistant=str(assistant), gate=1.0))
    lora = listener(backbone, softcot)
    teach(backbone, softcot, lora)
    profiles = {"listens": (softcot, lora), "zeros": (softcot, lora, random_update(backbone, 0.0))}
    profiles["knows"] = (softcot, knowing(backbone, softcot, lora))
    engine = TorchEngine(backbone, max_rows=64)
    for name, adapters in profiles.items():
        engine.load(name, Profile(adapters))
    rows = {name: evaluate(engine, backbone, name, [PLANNED]).rows[0] for name in profiles}
    engine.close()
    zeros, damaged = (compared(PLANNED, rows["listens"].adapted, rows[name].adapted) for name in ("zeros", "knows"))
    return told("knows by heart", zeros, damaged)


def told(damage: str, zeros: Paired, damaged: Paired) -> dict[str, Any]:
    sides = {"backbone": damaged.base, "zeros": zeros.adapted, "damaged": damaged.adapted}
    return {
        "damage": damage,
        "unit": damaged.adapted.unit,
        "task": damaged.adapted.task,
        "n": damaged.change.n,
        "change": [damaged.change.mean, damaged.change.low, damaged.change.high],
        "zeros": [zeros.change.mean, zeros.change.low, zeros.change.high],
        "values": {side: known(readings.values) for side, readings in sides.items()},
        "parts": {side: {name: known(values) for name, values in readings.parts.items()} for side, readings in sides.items()},
        "summary": plain(damaged.summary),
    }


def known(values: Sequence[float]) -> list[float | None]:
    """NaN is null in JSON."""
    return [None if math.isnan(value) else round(value, 4) for value in values]


def plain(summary: Mapping[str, float | None]) -> dict[str, float | None]:
    return {name: None if value is None or math.isnan(value) else round(value, 4) for name, value in summary.items()}


if __name__ == "__main__":
    main()
