"""A fit in processes of its own, launched from the one that waits for it: by torchrun, or by Accelerate where it has a config."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from adapters.whole_file import write_whole
from evaluation.task import Example
from tuning.errors import BadRecipe, FitFailed
from tuning.loop import OnStep
from tuning.methods.method import Fit
from tuning.recipe import Recipe

ASKED, FIT, FAILED = "asked.json", "fit.json", "failed.json"
_SHOWN = 1500  # characters of what the processes said, where they left nothing else


class AskedFit(BaseModel):
    """What the launched processes read. They end when `waiting`, a process of this machine, has."""

    model_config = ConfigDict(frozen=True)

    recipe: dict[str, Any]
    directory: Path
    threads: int
    waiting: int
    examples: tuple[Example, ...] | None = None  # None: those that the recipe draws
    checkpoints: dict[int, Path] = {}  # by step, where what is known after it goes


def launched(
    recipe: Recipe,
    directory: Path,
    threads: int,
    on_step: OnStep | None = None,
    examples: Sequence[Example] | None = None,
    checkpoints: Mapping[int, Path] | None = None,
) -> Fit:
    """As `tuning.fitting.fit_recipe`, in `recipe.fit.processes` processes, or as many as its config file of Accelerate says.

    `examples` and `checkpoints` are those of `tuning.laid_out.launched_once`. FitFailed with what a process said; MemoryError
    where one was out of memory; OSError where one ended without a word.
    """
    if recipe.fit.accelerate is not None:
        check_config(Path(recipe.fit.accelerate))
    with tempfile.TemporaryDirectory(prefix="graftline-fit-") as name:
        place = Path(name)
        asked = AskedFit(
            recipe=recipe.model_dump(mode="json"),
            directory=directory.absolute(),
            threads=threads,
            waiting=os.getpid(),
            examples=None if examples is None else tuple(examples),
            checkpoints={step: file.absolute() for step, file in (checkpoints or {}).items()},
        )
        write_whole(place / ASKED, asked.model_dump_json())
        command = [*_launcher(recipe), "-m", "tuning.fit_process", str(place)]
        with (place / "said").open("w+b") as said:
            with subprocess.Popen(command, env=_environment(threads), stdout=subprocess.PIPE, stderr=said, text=True) as child:
                try:
                    _follow(child, on_step)
                except BaseException:
                    child.terminate()  # it ends its processes with itself
                    raise
            if child.returncode:
                said.seek(0)
                _raise(place, child.returncode, said.read().decode(errors="replace"))
        return Fit.of(json.loads((place / FIT).read_text()))


def check_config(file: Path) -> None:
    """Raises BadRecipe for what is no config file of Accelerate, or needs a package that is not installed."""
    import yaml

    try:
        told = yaml.safe_load(file.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise BadRecipe(f"fit.accelerate is what `accelerate config` writes, but {file} cannot be read: {error}.") from error
    kind = told.get("distributed_type") if isinstance(told, dict) else None
    if isinstance(kind, str) and kind.upper() == "DEEPSPEED" and importlib.util.find_spec("deepspeed") is None:
        raise BadRecipe(
            f"{file} asks for DeepSpeed, which is not installed. Install it with `pip install deepspeed`, or set "
            "distributed_type: FSDP and fsdp_version: 2 in it."
        )
    if not isinstance(kind, str):
        raise BadRecipe(
            f"fit.accelerate is what `accelerate config` writes, but {file} has no distributed_type. Correct the path."
        )


def _launcher(recipe: Recipe) -> list[str]:
    count = str(recipe.fit.processes)
    if recipe.fit.accelerate is None:
        return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", count]
    own = ["--num_processes", count] if recipe.fit.processes > 1 else []
    return [sys.executable, "-m", "accelerate.commands.launch", "--config_file", recipe.fit.accelerate, *own]


def _environment(threads: int) -> dict[str, str]:
    """Our packages as this process finds them, and as many threads a process as it is given."""
    ours = str(Path(__file__).parent.parent)
    paths = os.pathsep.join([ours, *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": str(threads)}


def _follow(child: subprocess.Popen[str], on_step: OnStep | None) -> None:
    assert child.stdout is not None
    for line in child.stdout:
        try:
            step, steps, loss = json.loads(line)
        except (ValueError, TypeError):
            continue  # a library's own word
        if on_step:
            on_step(int(step), int(steps), float(loss))


def _raise(place: Path, code: int, said: str) -> None:
    if (place / FAILED).is_file():
        told = json.loads((place / FAILED).read_text())
        if told["out_of_memory"]:
            raise MemoryError(told["sentence"])
        raise FitFailed(told["sentence"])
    if "SIGKILL" in said or "exitcode: -9" in said:
        raise MemoryError("a process of the fit was killed (SIGKILL), as the kernel does where memory is used up")
    raise OSError(f"The processes of the fit ended with exit code {code}: {said.strip()[-_SHOWN:]}")


def end_with(process: int) -> None:
    """This process ends soon after that one: a fit that nobody waits for holds the devices."""

    def watch() -> None:
        while _is_there(process):
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, name="end with who waits", daemon=True).start()


def _is_there(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
