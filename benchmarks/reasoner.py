"""What the built-in reasoner can do, and what its warm-up cost: raw model beside reasoner, by family and by shift.

    python -m benchmarks.reasoner [--full]

Greedy generations right in every step, on the gate split: as trained, in the held-out wording, and at the held-out lengths.
Grammar and text show what the warm-up did to skills that the raw model had. One row a cell in runs/benchmarks/reasoner.jsonl;
a row that is there is not made again. Default: 24 items a cell, about 10 minutes on two cores; --full: 200.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from adapters.backbone import RAW, REASONER, Backbone
from benchmarks.results import commit, commits, provenance, table, write_section
from engine.torch_engine import TorchEngine
from evaluation.measures import MEASURES
from evaluation.statistics import score, wilson
from evaluation.task import Task
from evaluation.tasks import FAMILIES, TASKS
from evaluation.tasks.generated import HELD_OUT_LENGTHS
from tuning.journal import Journal

SHIFTS = ("as trained", "held-out wording", *(f"{length} steps" for length in HELD_OUT_LENGTHS))


def cells() -> list[tuple[str, str, str, Task]]:
    """(task, shift, measure, the task as shifted)."""
    found: list[tuple[str, str, str, Task]] = []
    for name, family in FAMILIES.items():
        shifted = (family, family.in_held_out_wording(), *(family.at_length(length) for length in HELD_OUT_LENGTHS))
        found.extend((name, shift, "generation", task) for shift, task in zip(SHIFTS, shifted, strict=True))
    found.append(("grammar", "as is", "pair_preference", TASKS["grammar"]))
    found.append(("text", "as is", "text_likelihood", TASKS["text"]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--rows", type=Path, default=Path("runs/benchmarks/reasoner.jsonl"))
    args = parser.parse_args()
    items = 200 if args.full else 24
    journal = Journal(args.rows)
    done = {tuple(row["cell"]): row for row in journal.entries()}
    for model in (REASONER, RAW):
        backbone = Backbone.load(model)
        engine = TorchEngine(backbone, max_rows=64, precision="bfloat16")
        for name, shift, measure, task in cells():
            if model == RAW and shift not in ("as trained", "as is"):
                continue
            cell = (backbone.fingerprint[:12], model, name, shift, items)
            if cell in done:
                continue
            readings = MEASURES[measure].read(engine, backbone, None, task, task.examples("gate", items, seed=3))
            found = score(readings.values)
            row = {"cell": cell, "mean": found.mean, "stderr": found.stderr, "n": found.n, "commit": commit()}
            journal.append(row)
            done[cell] = row
            print(*cell[1:4], f"{found.mean:.3f}", flush=True)
        fingerprint = backbone.fingerprint[:12]
        done = {(cell[1:] if cell[0] == fingerprint else cell): row for cell, row in done.items()}
    write_section("reasoner", "The built-in backbone that reasons", body(done, items, args.full))


def body(done: dict[tuple[object, ...], dict[str, Any]], items: int, full: bool) -> str:
    def shown(model: str, name: str, shift: str) -> str:
        row = done.get((model, name, shift, items))
        if row is None:
            return "-"
        if name == "text":
            return f"{row['mean']:.3f} ± {row['stderr']:.3f}"
        low, high = wilson(round(row["mean"] * row["n"]), int(row["n"]))
        return f"{row['mean']:.2f} [{low:.2f}, {high:.2f}]"

    rows = [[name, shown(RAW, name, "as trained"), *(shown(REASONER, name, shift) for shift in SHIFTS)] for name in FAMILIES]
    families = table(["family", "raw model", *(f"reasoner, {shift}" for shift in SHIFTS)], rows)
    others = table(
        ["skill that the raw model had", "raw model", "reasoner"],
        [
            ["grammar, minimal pairs right", shown(RAW, "grammar", "as is"), shown(REASONER, "grammar", "as is")],
            ["text, nats per token", shown(RAW, "text", "as is"), shown(REASONER, "text", "as is")],
        ],
    )
    told = commits(row for cell, row in done.items() if cell[0] in (RAW, REASONER) and cell[-1] == items)
    return (
        f"{provenance('reasoner', '3')} · rows of {told}\n\nShare of greedy traces right in every step with its 95 % Wilson "
        f"interval, {items} items a cell ({'full' if full else 'default'} run)."
        f"\n\n{families}\n\nWhat the warm-up cost:\n\n{others}"
    )


if __name__ == "__main__":
    main()
