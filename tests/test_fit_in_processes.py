"""A fit on two processes is the fit of one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from adapters.backbone import Backbone
from adapters.files import new_adapter
from adapters.lora import WEIGHTS, LoRASpec
from adapters.softcot import SoftCoTSpec
from evaluation.task import Example
from tuning.methods.sft import SFT, SFTSpec

ROOT = Path(__file__).parent.parent


def fit(backbone_directory: str, batch_size: int, directory: Path) -> None:
    # In float64 nothing is cast to bfloat16, whose rounding depends on how a batch is split.
    backbone = Backbone.load(backbone_directory, device="cpu", dtype=torch.float64)
    # Of uneven lengths, so that a mean of the processes' means would be another gradient.
    examples = [
        Example(
            id=str(n),
            question=f"What comes after {n}?",
            answer=str(n + 1),
            rationale=f"{n} + 1 = {n + 1}\n" * (n + 1),
            group=str(n),
        )
        for n in range(6)
    ]
    spec = SFTSpec(steps=4, batch_size=batch_size, learning_rate=1e-2, kl_weight=0.5, target="rationale")
    adapters = [new_adapter(LoRASpec(rank=4)), new_adapter(SoftCoTSpec(num_thoughts=2, assistant_layers=1))]
    done = SFT(spec).fit(backbone, adapters, examples)
    for index, adapter in enumerate(adapters):
        place = directory / str(index)
        place.mkdir(parents=True)
        adapter.save(place)
    torch.save([done.losses, done.kl, done.num_tokens], directory / "fit.pt")


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [3, 1])
def test_two_processes_fit_the_adapters_that_one_fits(tmp_path: Path, backbone_directory: Path, batch_size: int) -> None:
    fit(str(backbone_directory), batch_size, tmp_path / "one")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", __file__]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests")))}
    subprocess.run(
        [*command, str(backbone_directory), str(batch_size), str(tmp_path)],
        env=environment,
        cwd=tmp_path,
        check=True,
        timeout=300,
    )
    one, two, other = (torch.load(tmp_path / name / "fit.pt") for name in ("one", "0", "1"))
    assert one[2] == two[2] == other[2]
    assert one[0] == pytest.approx(two[0], rel=1e-5) and one[1] == pytest.approx(two[1], rel=1e-5)
    for index in (0, 1):
        wanted = load_file(tmp_path / "one" / str(index) / WEIGHTS)
        for process in ("0", "1"):
            found = load_file(tmp_path / process / str(index) / WEIGHTS)
            for key, tensor in wanted.items():
                torch.testing.assert_close(found[key], tensor, rtol=1e-5, atol=1e-5)


if __name__ == "__main__":
    torch.set_num_threads(1)
    fit(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]) / os.environ["RANK"])
