"""What looking things up loads: never torch, and MLflow only when a store is opened."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def loaded_after(code: str, *arguments: str) -> set[str]:
    program = f"import sys\n{code}\nprint(*[name for name in ('torch', 'peft', 'mlflow', 'transformers') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_importing_every_module_of_the_registry_loads_neither_torch_nor_mlflow() -> None:
    folder = Path(__file__).parents[1] / "registry"
    modules = ", ".join(f"registry.{file.stem}" for file in folder.glob("*.py") if file.stem != "__init__")
    assert loaded_after(f"import {modules}") == set()


def test_what_tells_of_keys_acts_and_jobs_loads_no_torch() -> None:
    """Their commands answer at once, and a job's large data is read without a second PyTorch."""
    assert loaded_after("import service.audit, service.keys, service.errors, service.jobs.preparing, service.jobs.store") == set()
