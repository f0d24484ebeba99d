"""The service under faults, as a real server: `python -m benchmarks.faults`.

Every fault of `fault_trials` and a soak, on a server process over the test-bed (`--backbone NAME`: another). The default run
takes about 25 minutes, 15 of them the soak; `--full` has 1,000 promotions, a registry away for ten minutes and an hour's soak.
A row is kept as soon as it is there; the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import psutil
import torch

from adapters.backbone import TESTBED, Backbone
from adapters.whole_file import write_whole
from benchmarks.fault_trials import FAULTS, FULL, Outcome, Size, Target
from benchmarks.fault_world import World, new_world
from benchmarks.results import commit, provenance, table, write_section
from benchmarks.soak import Sample, soak
from service.serve import start_server
from service.settings import Settings

ROWS = Path("runs/benchmarks/faults")
DEFAULT = Size(promotions=200, hang_ups=500, away_s=60.0, readers=4, settle_s=60.0)
SMOKE = Size(promotions=20, hang_ups=40, away_s=5.0, readers=2, settle_s=30.0)
SOAK = "soak"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=__doc__)
    parser.add_argument("--backbone", default=str(TESTBED), help="what is served [default: the test-bed]")
    parser.add_argument("--only", action="append", choices=[*FAULTS, SOAK], help="these faults alone")
    parser.add_argument("--soak-s", type=float, help="seconds of the soak")
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--smoke", action="store_true", help="small, and written to no document")
    given = parser.parse_args()
    torch.set_num_threads(1)
    size = FULL if given.full else SMOKE if given.smoke else DEFAULT
    seconds = given.soak_s or (3600.0 if given.full else 60.0 if given.smoke else 900.0)
    kind = "full" if given.full else "smoke" if given.smoke else "default"
    named = Path(given.backbone).name
    rows = {}
    for name in given.only or [*FAULTS, SOAK]:
        asked = {"fault": name, "backbone": named, "kind": kind, "soak_s": seconds if name == SOAK else None}
        file = ROWS / f"{name}-{kind}-{named}.json"
        kept = json.loads(file.read_text()) if file.is_file() else None
        if kept is not None and kept["asked"] == asked:
            rows[name] = kept
        else:
            outcome = run(name, given.backbone, size, seconds)
            rows[name] = {"asked": asked, "commit": commit(), **told(outcome)}
            write_whole(file, json.dumps(rows[name], indent=2))
        print(f"{'held' if rows[name]['held'] else 'DOES NOT HOLD'}: {rows[name]['fault']}: {rows[name]['told']}", flush=True)
    if not given.smoke and not given.only:
        write_section("faults", f"Under load and faults ({kind} run)", section(rows, named))


def run(name: str, backbone_name: str, size: Size, seconds: float) -> Outcome:
    with served(backbone_name) as (world, target):
        if name == SOAK:
            return soak(world, target, seconds, _show)
        return FAULTS[name](world, target, size)


@contextmanager
def served(backbone_name: str) -> Iterator[tuple[World, Target]]:
    """A server of its own over a fresh registry, as `graftline serve` starts it."""
    folder = Path(tempfile.mkdtemp(prefix="graftline-faults-"))
    try:
        backbone = Backbone.load(backbone_name, device="cpu")
        base = Path(backbone_name).name if Path(backbone_name).exists() else backbone_name
        world = new_world(folder, backbone, base)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        settings = Settings(
            backbone=backbone_name,
            device="cpu",
            home=world.home,
            port=port,
            poll_s=0.5,
            threads=1,
            log_level="warning",
            send_timeout_s=10.0,
        )
        with start_server(settings, log_file=folder / "service.log", timeout_s=300) as server:
            yield world, Target(server.url, lambda: worker_of(server.process_id), backbone)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def worker_of(server: int) -> int:
    """The process under the server that holds the engine; 0 while there is none."""
    for child in psutil.Process(server).children(recursive=True):
        try:
            if any("worker.service" in part for part in child.cmdline()) and child.status() != psutil.STATUS_ZOMBIE:
                return int(child.pid)
        except psutil.NoSuchProcess:
            continue
    return 0


def told(outcome: Outcome) -> dict[str, object]:
    tally = outcome.tally
    return {
        "fault": outcome.fault,
        "held": outcome.held,
        "told": outcome.told,
        "asked_for": tally.asked,
        "answered": tally.answered.total(),
        "refused": dict(tally.refused),
        "wrong": tally.wrong[:20],
        "lost": tally.lost[:20],
    }


def section(rows: dict[str, dict[str, object]], backbone: str) -> str:
    body = [
        [
            str(row["fault"]),
            "yes" if row["held"] else "**no**",
            *(str(row[key]) for key in ("asked_for", "answered")),
            *_counts(row),
            str(row["told"]),
            str(row["commit"]),
        ]
        for row in rows.values()
    ]
    headings = ["fault", "holds", "asked", "answered", "refused with an error", "wrong adapter", "lost", "seen", "commit"]
    intro = (
        f"{provenance('faults')}\n\nClients ask for four names, their versions and the backbone ({backbone}), whole and "
        "streamed, while one thing is broken. Each adapter writes its own name and nothing else, so that an answer of the wrong "
        "one shows in any token."
    )
    return f"{intro}\n\n{table(headings, body)}"


def _counts(row: dict[str, object]) -> list[str]:
    refused, wrong, lost = row["refused"], row["wrong"], row["lost"]
    assert isinstance(refused, dict) and isinstance(wrong, list) and isinstance(lost, list)
    told = ", ".join(f"{code} {count}" for code, count in refused.items()) or "0"
    return [told, str(len(wrong)), str(len(lost))]


def _show(sample: Sample) -> None:
    if os.environ.get("GRAFTLINE_SHOW_SOAK"):
        print(json.dumps(asdict(sample)), flush=True)


if __name__ == "__main__":
    main()
