"""The machine of a fit: what beside recipe and data decides its last bits."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from registry.manifest import Machine

# What the numbers of a fit go through; all that is installed is in the manifest's lock digest.
DECIDING = ("graftline", "torch", "transformers", "tokenizers", "safetensors", "numpy", "peft", "accelerate", "trl")


def this_machine(device: torch.device) -> Machine:
    """As it is now: the threads are those that PyTorch uses at this moment."""
    on = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return Machine(
        cpu=_processor(),
        instructions=torch.backends.cpu.get_cpu_capability(),
        device=on,
        threads=torch.get_num_threads(),
        packages={"python": platform.python_version(), **_versions()},
    )


def changes(then: Machine, now: Machine) -> Iterator[str]:
    """What differs, as "torch 2.12.0, now 2.13.0"."""
    for field in ("cpu", "instructions", "device", "threads"):
        was, found = getattr(then, field), getattr(now, field)
        if was != found:
            yield f"{field} {was}, now {found}"
    for name in sorted({*then.packages, *now.packages}):
        before, after = then.packages.get(name, "none"), now.packages.get(name, "none")
        if before != after:
            yield f"{name} {before}, now {after}"


@cache
def _versions() -> dict[str, str]:
    found = {}
    for name in DECIDING:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # an extra that is not installed, or a plain checkout
            continue
    return found


@cache
def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()
