"""One of the processes of a fit that `tuning.launch` started: `python -m tuning.fit_process PLACE`, under a launcher."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

from adapters.whole_file import write_whole
from tuning.launch import ASKED, FAILED, FIT, AskedFit, end_with


def main(place: Path) -> int:
    """Fits what is asked there; the first process tells its steps on stdout and leaves what the fit came to."""
    asked = AskedFit.model_validate_json((place / ASKED).read_text())
    end_with(asked.waiting)
    from tuning.trial import in_words, is_out_of_memory

    try:
        fit = _fitted(asked)
    except Exception as error:
        told = {"sentence": in_words(error), "out_of_memory": is_out_of_memory(error)}
        write_whole(place / FAILED, json.dumps(told))
        return 1
    if fit is not None:
        write_whole(place / FIT, json.dumps(fit))
    return 0


def _fitted(asked: AskedFit) -> dict[str, object] | None:
    """None of a process that is not the first."""
    import torch

    from tuning.checkpoints import Recorder
    from tuning.fitting import fit_recipe
    from tuning.processes import Processes
    from tuning.recipe import Recipe

    torch.set_num_threads(asked.threads)
    recorder = Recorder(tuple(asked.checkpoints))
    fit = fit_recipe(
        Recipe(**asked.recipe),
        asked.directory,
        lambda *step: print(json.dumps(step), flush=True),
        recorder.on_update if asked.checkpoints else None,
        asked.examples,
    )
    if not Processes.here().is_main:
        return None
    for checkpoint in recorder.checkpoints:
        checkpoint.save(asked.checkpoints[checkpoint.step])
    return asdict(fit)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
