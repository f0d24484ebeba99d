"""A picture of every measure for docs/measures.md, from what it reads of a model that can do the task and of a damaged one.

    python -m benchmarks.measure_pictures            # reads all measures again (minutes), keeps the numbers, draws
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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from adapters.backbone import TESTBED, Backbone
from adapters.whole_file import write_whole
from benchmarks.measure_drawing import draw_all
from benchmarks.results import provenance
from engine.torch_engine import TorchEngine
from evaluation.base_cache import BaseCache
from evaluation.evaluate import Paired, Planned, evaluate
from evaluation.measures import MEASURES

NUMBERS = Path(__file__).with_suffix(".json")
TESTS = Path(__file__).parent.parent / "tests"


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--draw", action="store_true")
    if not parser.parse_args().draw:
        write_whole(NUMBERS, json.dumps({"provenance": provenance("measure_pictures"), "measures": read_all()}, indent=1) + "\n")
    draw_all(json.loads(NUMBERS.read_text()))


def read_all() -> dict[str, Any]:
    """By measure: what was read of the backbone, under an adapter of zeros, and under the damage that the measure must flag."""
    sys.path.insert(0, str(TESTS))
    from damaged import CONTROLS, STORY_READER, Bench

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        cache = BaseCache(Path(place), "float32")
        able = {name: str(path) for name, path in (("bench", TESTBED), ("story_bench", STORY_READER))}
        benches = {
            name: Bench(TorchEngine(Backbone.load(path, device="cpu", dtype=torch.float32), max_rows=64), cache)
            for name, path in able.items()
        }
        found: dict[str, Any] = {}
        for name, control in CONTROLS.items():
            bench = benches[control.able]
            task = control.task(bench.engine.backbone)
            planned = [Planned(control.measure or MEASURES[name], task, task.examples("gate", control.count), "report")]
            rows = {
                damage: evaluate(bench.engine, bench.engine.backbone, bench.name_of(damage), planned, cache).rows[0]
                for damage in ("zeros", control.damage)
            }
            found[name] = told(control.damage, rows["zeros"], rows[control.damage])
            print(name, found[name]["change"], flush=True)
        found["soft_thoughts"] = soft_thoughts(benches["bench"].engine.backbone, STORY_READER)
    return found


def soft_thoughts(backbone: Backbone, assistant: Path) -> dict[str, Any]:
    """Who hears the answer from its thoughts, as the backbone, and the same once it has learnt the answers by heart."""
    from test_fitted_thoughts import PLANNED, knowing, listener, teach

    from adapters.softcot import SoftCoT, SoftCoTSpec
    from engine.profile import Profile
    from evaluation.admission import random_update
    from evaluation.evaluate import compared

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
    pairs = {name: compared(PLANNED, rows["listens"].adapted, rows[name].adapted) for name in ("zeros", "knows")}
    return told("knows by heart", pairs["zeros"], pairs["knows"])


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
