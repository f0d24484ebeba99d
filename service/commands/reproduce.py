"""`graftline reproduce`: a release fitted again from its manifest, beside what was released."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import torch
from rich.console import Console

from adapters.backbone import Backbone
from engine.torch_engine import TorchEngine
from registry.home import home_directory
from registry.manifest import MANIFEST, file_digest
from registry.names import resolve
from registry.release import load_release
from registry.tracking import Tracking
from tuning.gating import Subject
from tuning.reproduce import Reproduction
from tuning.reproduce import reproduce as fit_again

DIFFERENT = 1


def reproduce(reference: str, home: Path | None, tracking_uri: str | None, as_json: bool) -> int:
    """0 where the two are identical or equivalent, 1 where they are different."""
    place = home_directory(home)
    tracking = Tracking.at(place, tracking_uri).existing()
    named = resolve(tracking, reference)
    release = load_release(tracking, named.name, named.version)
    subject = Subject(str(release.full_name), release.directory, release.manifest)
    fitted_in = release.manifest.backbone
    backbone = Backbone.load(fitted_in.name, dtype=getattr(torch, fitted_in.dtype), format=fitted_in.format)
    engine = TorchEngine(backbone, max_rows=64)
    kept = place / "reproduced" / file_digest(release.directory / MANIFEST)[:16]
    console = Console(stderr=as_json, markup=False, width=None if sys.stdout.isatty() else 140)
    with console.status(f"fitting {subject.name} again") as shown:

        def told(share: float) -> None:
            shown.update(f"fitting {subject.name} again: {share:.0%}")

        found = fit_again(subject, backbone, engine, kept, told, tracking)
    verdict = found.nearness.verdict
    if as_json:
        print(json.dumps({"release": subject.name, "verdict": verdict, **_told(found)}))
    else:
        console.print(f"{subject.name} fitted again: {verdict}", highlight=False)
        for line in _lines(found):
            console.print(f"  {line}", highlight=False)
    return DIFFERENT if verdict == "different" else 0


def _told(found: Reproduction) -> dict[str, object]:
    nearness = found.nearness
    numbers = {
        "relative_distance": nearness.relative_distance,
        "mean_nats": nearness.mean_nats,
        "max_nats": nearness.max_nats,
    }
    return {
        **{name: value if math.isfinite(value) else None for name, value in numbers.items()},
        "changed": None if found.changed is None else list(found.changed),
        "bits_expected": found.bits_expected,
        "directory": str(found.directory),
    }


def _lines(found: Reproduction) -> list[str]:
    nearness = found.nearness
    lines = [
        f"weights: |again - release| / |release| = {nearness.relative_distance:.2g}",
        f"right answers: {nearness.mean_nats:.2g} nats a token apart on average, {nearness.max_nats:.2g} at most",
    ]
    if found.changed is None:
        lines.append("its manifest does not say what machine it was fitted on")
    elif found.changed:
        lines.append(f"not as it was: {'; '.join(found.changed)}")
    else:
        lines.append("same processor, threads and packages: the same bits were to be expected")
    return [*lines, f"what was fitted now: {found.directory}"]
