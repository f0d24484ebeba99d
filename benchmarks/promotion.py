"""How soon a promotion is served: from the ledger's entry to the first token of the release that it promotes, over HTTP.

    python -m benchmarks.promotion [--full]

A server process looks at the ledger every second, and two releases of one name take turns as its champion. An entry's time is
the registry's own, which it stamps just before it writes the entry, in milliseconds; what `promote` does after it is in the wait.
Default: 20 promotions; --full: 100.
"""

from __future__ import annotations

import argparse
import socket
import statistics
import tempfile
import time
from pathlib import Path

import openai
import torch

from adapters.backbone import TESTBED, Backbone
from adapters.lora import LoRA, LoRASpec
from benchmarks.results import provenance, run_kind, table, write_section
from engine.profile import Profile
from registry.ledger import Ledger
from registry.manifest import BackboneIdentity, ProfileDescription, TrainingHashes, write_manifest
from registry.names import ledger_name
from registry.release import publish
from registry.tracking import Tracking
from service.serve import start_server
from service.settings import Settings

NAME, POLL_S, BOUND_S = "law", 1.0, 2.0
PROMOTIONS, FULL_PROMOTIONS = 20, 100


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.promotion", description=__doc__)
    parser.add_argument("--backbone", default=str(TESTBED))
    parser.add_argument("--full", action="store_true", help=f"{FULL_PROMOTIONS} promotions")
    parser.add_argument("--promotions", type=int, help=f"[default: {PROMOTIONS}]")
    parser.add_argument("--no-write", action="store_true", help="Print alone.")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="graftline-promotion-") as folder:
        waits = measure(Path(folder), given.backbone, given.promotions or (FULL_PROMOTIONS if given.full else PROMOTIONS))
    body = table(
        ["promotions", "median s", "largest s", f"within {BOUND_S:g} s"],
        [
            [
                str(len(waits)),
                f"{statistics.median(waits):.2f}",
                f"{max(waits):.2f}",
                f"{sum(wait <= BOUND_S for wait in waits)} of {len(waits)}",
            ]
        ],
    )
    print(body)
    if not given.no_write:
        text = (
            f"From the ledger's entry to the first token of the promoted release, looks {POLL_S:g} s apart. Two releases take "
            "turns, each promoted as soon as the other is served: from the third entry on their files are there already."
            f"\n\n{body}"
        )
        title = f"How soon a promotion is served ({run_kind(given.promotions, full=given.full)})"
        write_section("promotion", title, f"{text}\n\n{provenance('promotion')}")


def measure(home: Path, name: str, count: int) -> list[float]:
    """Seconds by promotion."""
    backbone = Backbone.load(name, device="cpu")
    tracking = Tracking.at(home).create()
    for seed in (1, 2):
        write_adapter(home / str(seed), backbone, seed)
        publish(tracking, NAME, home / str(seed))
    ledger = Ledger(tracking, NAME)
    ledger.promote(1, None, override=True, reason="a benchmark")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = Settings(backbone=name, device="cpu", home=home, port=port, poll_s=POLL_S)
    with start_server(settings, log_file=home / "log", timeout_s=600) as server:
        client = openai.OpenAI(base_url=server.openai_url, api_key="none", max_retries=0)
        return [promoted(client, ledger, 2 - number % 2) for number in range(count)]


def promoted(client: openai.OpenAI, ledger: Ledger, version: int) -> float:
    """From the time of the ledger's entry to the first token of that version, which is asked for once `promote` is back."""
    entry = ledger.promote(version, None, override=True, reason="a benchmark")
    while True:
        for chunk in client.completions.create(model=ledger.name, prompt="Add 5.", max_tokens=1, stream=True):
            if chunk.model == f"{ledger.name}@{version}":
                served = time.time()
                return served - written_at(ledger, entry.number)


def written_at(ledger: Ledger, number: int) -> float:
    """When the registry wrote the entry, in seconds of this machine's clock: its registry and the benchmark share one."""
    with ledger.tracking.client() as registry:
        return float(registry.get_model_version(ledger_name(ledger.name), str(number)).creation_timestamp) / 1000


def write_adapter(directory: Path, backbone: Backbone, seed: int) -> None:
    lora = LoRA(LoRASpec(rank=8, seed=seed))
    generator = torch.Generator().manual_seed(seed)
    with lora.attach(backbone), torch.no_grad():
        for parameter in lora.parameters():
            parameter.copy_(0.01 * torch.randn(parameter.shape, generator=generator))
    Profile((lora,)).save(directory)
    write_manifest(
        directory,
        backbone=BackboneIdentity(name=backbone.name, fingerprint=backbone.fingerprint, dtype="float32"),
        profile=ProfileDescription(adapters=("lora",)),
        recipe={"name": NAME},
        task={},
        data_digests={},
        lock_digest="0" * 64,
        seeds={"fit": seed},
        training=TrainingHashes(frozenset(), frozenset()),
    )


if __name__ == "__main__":
    main()
