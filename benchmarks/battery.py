"""What a trial's battery by likelihood costs: five families of 400 items each, and the domain, under one adapter.

    python -m benchmarks.battery [--items 400] [--results]

The backbone's own readings are kept by content and made once a study, so that a trial pays for the adapter's alone; both are
shown. The adapter is a LoRA of random weights: what the weights are does not change what they cost. A row that is in
runs/benchmarks/battery is not made again; delete the folder to measure anew. About 10 minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from adapters.backbone import REASONER, Backbone
from adapters.whole_file import write_whole
from benchmarks.results import commit, provenance, table, write_section
from engine.profile import Profile
from engine.torch_engine import TorchEngine
from evaluation.admission import random_update
from evaluation.measures import MEASURES
from evaluation.retention import search_measure
from evaluation.tasks import FAMILIES
from evaluation.tasks.icd10 import ICD10
from tuning.plan import DOMAIN_MEASURE

NUM_FAMILIES, GOAL_S = 5, 240


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=400)
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmarks/battery"))
    parser.add_argument("--results", action="store_true", help="write the table into docs/results.md too")
    args = parser.parse_args()
    args.runs.mkdir(parents=True, exist_ok=True)
    backbone = Backbone.load(REASONER)
    engine = TorchEngine(backbone, precision="bfloat16")
    engine.load("adapter", Profile((random_update(backbone, 0.05, rank=16),)))
    families = list(FAMILIES.values())[:NUM_FAMILIES]
    planned = [(search_measure(task), task) for task in families] + [(MEASURES[DOMAIN_MEASURE], ICD10)]
    rows, total = [], {"backbone": 0.0, "adapter": 0.0}
    for measure, task in planned:
        file = args.runs / f"{task.name}-{args.items}.json"
        if not file.is_file():
            examples, found = task.examples("search", args.items), dict[str, float]()
            for side, profile in (("backbone", None), ("adapter", "adapter")):
                before, began = engine.stats(), time.monotonic()
                measure.read(engine, backbone, profile, task, examples)
                found[side], after = time.monotonic() - began, engine.stats()
                found["tokens"] = after.forward_tokens - before.forward_tokens
                found["unshared"] = after.scored_tokens_unshared - before.scored_tokens_unshared
            write_whole(file, json.dumps({**found, "items": len(examples), "commit": commit()}))
        kept = json.loads(file.read_text())
        total = {side: seconds + kept[side] for side, seconds in total.items()}
        shared = kept["unshared"] / kept["tokens"]
        rows.append([task.name, measure.name, f"{kept['items']:.0f}", f"{kept['tokens']:.0f}", f"{shared:.1f}x"])
        rows[-1] += [*(f"{kept[side]:.0f} s" for side in total), kept.get("commit", "unknown")]
        print(*rows[-1], flush=True)
    rows.append(["all", "", "", "", "", *(f"{seconds:.0f} s" for seconds in total.values()), ""])
    text = table(["task", "measure", "items", "forward tokens", "saved by sharing", *total, "commit"], rows)
    taken, goal = total["adapter"] / 60, GOAL_S / 60
    end = (
        f"goal: at most {goal:.0f}, {'met' if taken <= goal else 'missed'}"
        if args.items >= 400
        else "of fewer items than the goal's"
    )
    note = f"A trial reads the adapter's column, once a scale: {taken:.1f} minutes ({end})."
    print(f"{text}\n{note}")
    if args.results:
        write_section("battery", "A trial's battery by likelihood", f"{provenance('battery')}\n\n{text}\n\n{note}")


if __name__ == "__main__":
    main()
