"""What a promotion costs by how many came before it: entry, proof and alias over SQLite, in one process and in a fresh one.

    python -m benchmarks.ledger [--promotions N]

Two versions take turns as champion, by overrides, so that no gate is in the time. Default: 300 promotions.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks.results import provenance, table, write_section
from registry.ledger import Ledger
from registry.ledger_reader import reader_of
from registry.tracking import Tracking

NAME, PROMOTIONS, MEAN_OF = "law", 300, 10


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ledger", description=__doc__)
    parser.add_argument("--promotions", type=int, default=PROMOTIONS)
    parser.add_argument("--no-write", action="store_true", help="Print alone.")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="graftline-ledger-") as folder:
        body = table(
            ["promotions before", "ms in a process that goes on", "ms in a fresh one"], measure(Path(folder), given.promotions)
        )
    print(body)
    if not given.no_write:
        text = (
            f"One promotion by the ledger's own code over SQLite, median of {MEAN_OF}: the look at the head, the entry, the "
            "proof that it won, the alias. A fresh process proves all entries once."
        )
        write_section("ledger", "What a promotion costs", f"{text}\n\n{body}\n\n{provenance('ledger')}")


def measure(home: Path, count: int) -> list[list[str]]:
    tracking = Tracking.at(home).create()
    with tracking.client() as client:
        client.create_registered_model(NAME)
        for _ in range(2):
            client.create_model_version(NAME, source=str(home))
    rows, going = [], []
    for number in range(count + MEAN_OF):
        going.append(timed(tracking, number))
        if number + 1 in (MEAN_OF, count // 3 + MEAN_OF, count + MEAN_OF):
            before = number + 1 - MEAN_OF
            fresh = []
            for again in range(3):
                reader_of.cache_clear()
                fresh.append(timed(tracking, number + 1 + again))
            rows.append([str(before), f"{statistics.median(going[-MEAN_OF:]):.0f}", f"{statistics.median(fresh):.0f}"])
    return rows


def timed(tracking: Tracking, number: int) -> float:
    """Milliseconds of one promotion."""
    begun = time.perf_counter()
    Ledger(tracking, NAME).promote(1 + number % 2, None, override=True, reason="a benchmark", actor="benchmark")
    return (time.perf_counter() - begun) * 1000


if __name__ == "__main__":
    main()
