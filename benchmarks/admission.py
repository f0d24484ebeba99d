"""Which retention tasks are measurable on the built-in backbones; what it finds is shipped in evaluation/admitted/, by content.

    python -m benchmarks.admission

About 5 minutes on two cores. Computed in float32. A file is looked up by all that decides it (evaluation.admission): a change to
the backbone, the measure, the items or the thresholds asks for a new look.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from adapters.backbone import REASONER, Backbone
from benchmarks.results import provenance, table, write_section
from engine.torch_engine import TorchEngine
from evaluation.admission import PACKAGED, admissions
from evaluation.tasks import FAMILIES, TASKS


def main() -> None:
    backbone = Backbone.load(REASONER)
    engine = TorchEngine(backbone, max_rows=64)
    rows = []
    PACKAGED.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        for name, task in {**FAMILIES, "grammar": TASKS["grammar"], "text": TASKS["text"]}.items():
            found = admissions(engine, backbone, [task], Path(place))[name]
            damaged = f"{found.damaged_change:+.2f} (at most {found.damaged_high:+.2f})"
            verdict = "admitted" if found.admitted else "; ".join(found.reasons)
            rows.append(
                [name, f"{found.base:.2f} ± {found.stderr:.2f}", damaged, f"{found.noop_change:+.2f}", str(found.n), verdict]
            )
            print(*rows[-1], flush=True)
        for file in (Path(place) / "admission").glob("*.json"):
            shutil.copy(file, PACKAGED / file.name)
    headings = ["family", "backbone", "damaged model", "adapter of zeros", "items", "verdict"]
    note = f"Backbone {REASONER}, fingerprint {backbone.fingerprint[:12]}."
    write_section(
        "admission",
        "Which families can show a loss",
        f"{provenance('admission')}\n\n{note}\n\n{table(headings, rows)}",
    )


if __name__ == "__main__":
    main()
