"""A fit on two processes is the fit of one: with the backbone whole in each, and with half of it in each."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_studies import small

from adapters.backbone import Backbone
from adapters.files import new_adapter
from adapters.lora import WEIGHTS, LoRASpec
from adapters.softcot import SoftCoTSpec
from adapters.steering import SteeringSpec
from evaluation.task import Example
from tuning import launch
from tuning.errors import BadRecipe
from tuning.methods.method import Method
from tuning.methods.sft import SFT, SFTSpec
from tuning.methods.star import STaR, STaRSpec
from tuning.processes import Processes
from tuning.recipe import Recipe
from tuning.sharding import by_deepspeed, shard, sharded

ROOT = Path(__file__).parent.parent
FSDP = """
compute_environment: LOCAL_MACHINE
distributed_type: FSDP
fsdp_config:
  fsdp_version: {version}
  fsdp_reshard_after_forward: true
  fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP
mixed_precision: 'no'
num_machines: 1
machine_rank: 0
num_processes: 2
use_cpu: true
"""
ZERO = """
compute_environment: LOCAL_MACHINE
distributed_type: DEEPSPEED
deepspeed_config:
  zero_stage: {stage}
  offload_param_device: none
  offload_optimizer_device: none
  zero3_init_flag: false
mixed_precision: 'no'
num_machines: 1
machine_rank: 0
num_processes: 2
use_cpu: true
"""


def fit(backbone: Backbone, batch_size: int, directory: Path, kinds: str) -> None:
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
    # Some batches are more parts in one process than in the other.
    spec = SFTSpec(steps=4, batch_size=batch_size, learning_rate=1e-2, kl_weight=0.5, target="rationale", micro_batch_tokens=150)
    known = {
        "lora": LoRASpec(rank=4),
        "softcot": SoftCoTSpec(num_thoughts=2, assistant_layers=1),
        "steering": SteeringSpec(),
    }
    adapters = [new_adapter(known[kind]) for kind in kinds.split("+")]
    done = SFT(spec).fit(backbone, adapters, examples)
    for index, adapter in enumerate(adapters):
        place = directory / str(index)
        place.mkdir(parents=True)
        adapter.save(place)
    torch.save([done.losses, done.kl, done.num_tokens], directory / "fit.pt")


def whole(backbone_directory: str, recompute: bool = False) -> Backbone:
    # In float64 nothing is cast to bfloat16, whose rounding depends on how a batch is split.
    return Backbone.load(backbone_directory, device="cpu", dtype=torch.float64, recompute=recompute)


def environment() -> dict[str, str]:
    paths = (str(ROOT), str(ROOT / "tests"), *filter(None, [os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}


def launched(launcher: list[str], *arguments: str) -> None:
    command = [sys.executable, "-m", *launcher, __file__, *arguments]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


def assert_alike(directory: Path, number: int) -> None:
    """Tolerance: float32 gradients of the adapters are summed in another order, and AdamW divides by their size."""
    one, two, other = (torch.load(directory / name / "fit.pt") for name in ("one", "0", "1"))
    assert one[2] == two[2] == other[2]
    assert one[0] == pytest.approx(two[0], rel=1e-5) and one[1] == pytest.approx(two[1], rel=1e-5)
    for index in range(number):
        weights = WEIGHTS if (directory / "one" / str(index) / WEIGHTS).is_file() else "steering.safetensors"
        wanted = load_file(directory / "one" / str(index) / weights)
        for process in ("0", "1"):
            found = load_file(directory / process / str(index) / weights)
            for key, tensor in wanted.items():
                torch.testing.assert_close(found[key], tensor, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [3, 1])
def test_two_processes_fit_the_adapters_that_one_fits(tmp_path: Path, backbone_directory: Path, batch_size: int) -> None:
    fit(whole(str(backbone_directory)), batch_size, tmp_path / "one", "lora+softcot")
    launched(TORCHRUN, str(backbone_directory), str(batch_size), str(tmp_path), "lora+softcot")
    assert_alike(tmp_path, 2)


@pytest.mark.slow
@pytest.mark.parametrize(("by", "batch_size", "recompute"), [("fsdp", 3, False), ("fsdp", 1, True), ("deepspeed", 3, False)])
def test_two_processes_with_half_of_the_backbone_each_fit_the_adapter_that_one_fits(
    tmp_path: Path, backbone_directory: Path, by: str, batch_size: int, recompute: bool
) -> None:
    if by == "deepspeed" and importlib.util.find_spec(by) is None:
        pytest.skip("DeepSpeed is not installed")
    fit(whole(str(backbone_directory)), batch_size, tmp_path / "one", "lora+steering")
    config = tmp_path / "config.yaml"
    config.write_text(FSDP.format(version=2) if by == "fsdp" else ZERO.format(stage=3))
    launcher = ["accelerate.commands.launch", "--config_file", str(config)]
    launched(
        launcher, str(backbone_directory), str(batch_size), str(tmp_path), "lora+steering", *(["again"] if recompute else [])
    )
    assert_alike(tmp_path, 2)
    for process in "01":
        held, all_of_it, digest = json.loads((tmp_path / process / "held.json").read_text())
        assert held < 0.6 * all_of_it
        assert digest == "the same"


@pytest.mark.slow
def test_a_fit_by_command_on_two_processes_is_that_of_one(tmp_path: Path, backbone_directory: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f'name = "own"\nbackbone = "{backbone_directory}"\ndomain = "icd10-chapter"\nprotected = ["arithmetic"]\n'
        "[method]\nsteps = 3\nbatch_size = 4\nnum_examples = 20\n[adapter]\nkind = 'lora'\n"
    )
    for out, processes in (("one", "1"), ("two", "2")):
        command = [sys.executable, "-m", "service.cli", "fit", str(recipe), "--out", str(tmp_path / out), "--json"]
        done = subprocess.run(
            [*command, "--processes", processes], env=environment(), cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert len(json.loads(done.stdout)["fit"]["numbers"]["loss"]) == 3
    one, two = (load_file(tmp_path / out / WEIGHTS) for out in ("one", "two"))
    for key, tensor in one.items():
        # Where the CPU computes in bfloat16, a part of a batch is rounded as it is split.
        torch.testing.assert_close(two[key], tensor, rtol=0.05, atol=2e-3)
    assert (tmp_path / "two" / "manifest.json").is_file()
    assert sorted(place.name for place in tmp_path.iterdir()) == ["one", "recipe.toml", "two"]
    again = subprocess.run(command, env=environment(), cwd=tmp_path, capture_output=True, text=True)
    assert again.returncode == 2 and "is written to a new directory" in again.stdout


@pytest.mark.slow
def test_a_trial_whose_fit_has_two_processes_is_measured_like_any(tmp_path: Path, home: Path, backbone_directory: Path) -> None:
    from tuning.trial import Job, run

    recipe = small(backbone_directory, **{"adapter.kind": "lora", "fit.processes": 2})
    seen: list[str] = []
    outcome = run(Job(recipe, tmp_path / "trial", home / "cache", threads=1), lambda phase, share: seen.append(phase))
    assert outcome.state == "complete" and len(outcome.fit["numbers"]["loss"]) == 2
    assert "fit" in seen
    spoilt = recipe.with_values({"adapter.lora.alpha": 10**40})
    outcome = run(Job(spoilt, tmp_path / "spoilt", home / "cache", threads=1), lambda phase, share: None)
    assert outcome.state == "failed" and "Diverged: " in outcome.reason and "must stay finite" in outcome.reason


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORLD_SIZE": "2", "RANK": "1"}.items():
        monkeypatch.setenv(name, value)


def test_a_method_that_has_text_written_is_refused_by_its_name(backbone: Backbone, two: None) -> None:
    with pytest.raises(BadRecipe, match="'star' has text written for its fit, which runs in one process, but 2"):
        STaR(STaRSpec()).fit(backbone, [new_adapter(LoRASpec())], [])


@pytest.mark.parametrize("given", [{"fit.processes": 2}, {"fit.accelerate": "fsdp.yaml"}])
def test_a_recipe_of_such_a_method_is_refused_before_anything_is_launched(given: dict[str, object]) -> None:
    recipe = Recipe(name="own", domain="icd10", search=("method.learning_rate",))
    recipe.with_values({**given, "method.name": "softcot"})
    with pytest.raises(BadRecipe, match="'rlvr' has text written for its fit.*take the method sft or softcot"):
        recipe.with_values({**given, "method.name": "rlvr"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read: .*No such file"),
        ("name = 'own'\n", "has no distributed_type. Correct the path"),
    ],
)
def test_a_config_that_shards_in_no_way_of_ours_is_refused_before_a_launch(
    tmp_path: Path, text: str | None, message: str
) -> None:
    if text is not None:
        (tmp_path / "config.yaml").write_text(text)
    recipe = Recipe(name="own", domain="icd10").with_values({"fit.accelerate": str(tmp_path / "config.yaml")})
    with pytest.raises(BadRecipe, match=message):
        launch.launched(recipe, tmp_path / "out", threads=1)
    assert not (tmp_path / "out").exists()


def test_an_older_version_of_fsdp_is_refused(backbone: Backbone, two: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FSDP_VERSION", "1")
    with pytest.raises(BadRecipe, match="has fsdp_version 1. Set fsdp_version: 2"):
        shard(backbone, torch.device("cpu"))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2", "says zero_stage 2. Set zero_stage: 3"),
        ("ACCELERATE_DEEPSPEED_CONFIG_FILE", "ds.json", "names a deepspeed_config_file. Set"),
    ],
)
def test_a_stage_that_shards_no_weights_is_refused(
    backbone: Backbone, two: None, monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv(name, value)
    with pytest.raises(BadRecipe, match=message):
        shard(backbone, torch.device("cpu"))


def test_a_sharded_backbone_in_four_bits_is_refused() -> None:
    recipe = Recipe(name="own", domain="icd10").with_values({"backbone_format": "nf4"})
    with pytest.raises(BadRecipe, match="held in its own dtype, but backbone_format is 'nf4'"):
        sharded(recipe, torch.device("cpu"))


def test_replay_is_refused_in_several_processes(backbone: Backbone, two: None) -> None:
    with pytest.raises(BadRecipe, match="Replay is written for a fit in one process, but 2 were launched"):
        SFT(SFTSpec(replay_share=0.1)).fit(backbone, [new_adapter(LoRASpec())], [])


def test_soft_thoughts_around_a_sharded_backbone_are_refused(
    backbone: Backbone, two: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert Processes.here() == Processes(1, 2, in_step=True)
    with pytest.raises(BadRecipe, match="LoRA and steering vectors are fitted, but adapter.kind names soft thoughts"):
        SFT(SFTSpec()).fit(backbone, [new_adapter(SoftCoTSpec(num_thoughts=2, assistant_layers=1))], [])


def test_how_a_fit_is_laid_out_is_no_part_of_what_a_recipe_is() -> None:
    recipe = Recipe(name="own", domain="icd10")
    assert recipe.with_values({"fit.processes": 2, "fit.gradient_checkpointing": True}).digest() == recipe.digest()


def test_every_method_says_whether_it_splits() -> None:
    from tuning.methods import METHODS

    assert {name for name, method in METHODS.items() if method.splits} == {"sft", "softcot"}
    assert not Method.splits


def main(backbone_directory: str, batch_size: str, directory: str, kinds: str, *more: str) -> None:
    torch.set_num_threads(1)
    place, backbone = Path(directory) / os.environ["RANK"], whole(backbone_directory, "again" in more)
    if Processes.here().in_step:
        before = {name: parameter.clone() for name, parameter in backbone.model.named_parameters()}
        shard(backbone, torch.device("cpu"))
    fit(backbone, int(batch_size), place, kinds)
    if Processes.here().in_step:
        parameters = list(backbone.layers.named_parameters())
        if by_deepspeed():
            import deepspeed

            parts = [parameter.ds_tensor.numel() for _, parameter in parameters]
            with deepspeed.zero.GatheredParameters([parameter for _, parameter in parameters]):
                after = {name: parameter.detach().clone() for name, parameter in parameters}
        else:
            parts = [parameter.to_local().numel() for _, parameter in parameters]
            after = {name: parameter.full_tensor() for name, parameter in parameters}
        same = all(torch.equal(after[name], before[f"model.layers.{name}"]) for name in after)
        told = [sum(parts), sum(tensor.numel() for tensor in after.values()), "the same" if same else "another"]
        (place / "held.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
