"""A trial that ran out of memory: tried once more with half the micro-batch, then given up with its reason."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from bounded_children import fits_below, killed, no_room
from small_studies import small

from adapters.backbone import Backbone
from adapters.lora import LoRA, LoRASpec
from adapters.whole_file import write_whole
from evaluation.task import Example
from tuning.isolation import ChildDied
from tuning.memory import NOTE, run_within_memory, run_within_memory_here
from tuning.methods.sft import SFT, SFTSpec
from tuning.retries import kept_outcome, note_asked
from tuning.trial import RESULT, Job, Outcome, is_out_of_memory, run

EXAMPLES = [
    Example(
        id=str(n), question=f"What comes after {n}?", answer=str(n + 1), rationale=f"{n} + 1 = {n + 1}\n" * (n + 1), group=str(n)
    )
    for n in range(6)
]


@pytest.fixture
def job(backbone_directory: Path, tmp_path: Path) -> Job:
    recipe = small(backbone_directory, **{"adapter.kind": "lora", "method.micro_batch_tokens": 2048})
    return Job(recipe, tmp_path / "trial", tmp_path / "cache", threads=1)


def quiet(phase: str, share: float) -> None:
    pass


def test_what_does_not_fit_is_tried_once_with_half(job: Job) -> None:
    seen: list[int] = []
    outcome = run_within_memory(job, quiet, isolated=fits_below(2048, seen, no_room))
    assert (outcome.state, outcome.micro_batch_tokens, seen) == ("complete", (2048, 1024), [2048, 1024])


def test_what_fits_is_tried_as_it_is_written(job: Job) -> None:
    outcome = run_within_memory(job, quiet, isolated=fits_below(4096, [], no_room))
    assert outcome.micro_batch_tokens == (2048,) and not (job.directory / NOTE).exists()
    assert json.loads((job.directory / RESULT).read_text())["micro_batch_tokens"] == [2048]


def test_half_that_does_not_fit_either_is_given_up_with_both_sizes_and_the_way_out(job: Job) -> None:
    seen: list[int] = []
    outcome = run_within_memory(job, quiet, isolated=fits_below(1, seen, no_room))
    assert outcome.state == "failed" and seen == [2048, 1024]
    assert "Tried with micro_batch_tokens 2048 and 1024. Lower batch_size" in outcome.reason


def test_what_the_kernel_killed_begins_with_half_when_it_is_tried_again(job: Job) -> None:
    seen: list[int] = []
    isolated = fits_below(2048, seen, killed)
    with pytest.raises(ChildDied):
        run_within_memory(job, quiet, isolated=isolated)
    again = run_within_memory(job, quiet, isolated=isolated)
    assert (again.micro_batch_tokens, seen) == ((2048, 1024), [2048, 1024])


def test_what_is_killed_twice_is_given_up(job: Job) -> None:
    with pytest.raises(ChildDied):
        run_within_memory(job, quiet, isolated=fits_below(1, [], killed))
    outcome = run_within_memory(job, quiet, isolated=fits_below(1, [], killed))
    assert outcome.state == "failed" and "killed (SIGKILL), twice" in outcome.reason


def test_what_no_worker_tries_again_goes_on_with_half_at_once(job: Job) -> None:
    seen: list[int] = []
    outcome = run_within_memory_here(job, quiet, isolated=fits_below(2048, seen, killed))
    assert (outcome.state, outcome.micro_batch_tokens, seen) == ("complete", (2048, 1024), [2048, 1024])
    outcome = run_within_memory_here(replace(job, directory=job.directory / "other"), quiet, isolated=fits_below(1, [], killed))
    assert outcome.state == "failed" and "twice" in outcome.reason


def test_a_child_that_died_of_something_else_is_tried_again_as_it_was(job: Job) -> None:
    def died() -> Outcome:
        raise ChildDied("exit code 1")

    for tried in (run_within_memory, run_within_memory, run_within_memory_here):
        seen: list[int] = []
        with pytest.raises(ChildDied):
            tried(job, quiet, isolated=fits_below(1, seen, died))
        assert seen == [2048]


def test_a_result_without_room_is_kept_only_where_half_was_tried(job: Job) -> None:
    note_asked(job.directory, job.recipe, reference=False)
    write_whole(job.directory / RESULT, no_room().model_dump_json())
    assert kept_outcome(job.directory, job.recipe, reference=False) is None
    run_within_memory(job, quiet, isolated=fits_below(1, [], no_room))
    kept = kept_outcome(job.directory, job.recipe, reference=False)
    assert kept is not None and kept.micro_batch_tokens == (2048, 1024)


@pytest.mark.parametrize("note", ["", "{}", json.dumps({"micro_batch_tokens": [64]})])
def test_a_note_of_other_settings_or_none_counts_for_nothing(job: Job, note: str) -> None:
    job.directory.mkdir()
    (job.directory / NOTE).write_text(note)
    assert run_within_memory(job, quiet, isolated=fits_below(4096, [], no_room)).micro_batch_tokens == (2048,)


@pytest.mark.slow
def test_a_fit_that_runs_out_of_memory_ends_its_trial_with_the_smaller_one(
    job: Job, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tuning.methods.supervised as supervised

    def bounded(backbone: Backbone, batch: supervised.Batch) -> tuple[torch.Tensor, torch.Tensor]:
        if batch.mask_BT.numel() > 600:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return read(backbone, batch)

    read = supervised.label_logits
    monkeypatch.setattr(supervised, "label_logits", bounded)
    recipe = job.recipe.with_values({"method.batch_size": 8, "method.micro_batch_tokens": 1000})
    here = replace(job, recipe=recipe, cache=home / "cache")
    alone = run(replace(here, directory=home / "alone"), quiet)
    assert alone.out_of_memory and alone.reason.startswith("out of memory: CUDA")
    outcome = run_within_memory(here, quiet, isolated=lambda job, report, *more: run(job, report))
    assert (outcome.state, outcome.micro_batch_tokens) == ("complete", (1000, 500))
    manifest = json.loads((here.directory / "adapter" / "manifest.json").read_text())
    assert manifest["recipe"]["method"]["micro_batch_tokens"] == 500


def test_memory_that_is_used_up_is_known_on_a_cpu_too() -> None:
    with pytest.raises(RuntimeError) as no_memory:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(no_memory.value)
    assert is_out_of_memory(MemoryError()) and not is_out_of_memory(RuntimeError("shapes differ"))


def test_smaller_micro_batches_fit_the_same_adapter(backbone_directory: Path) -> None:
    # In float64 nothing is cast to bfloat16, whose rounding depends on how a batch is split.
    backbone = Backbone.load(str(backbone_directory), device="cpu", dtype=torch.float64)

    def fitted(tokens: int) -> dict[str, torch.Tensor]:
        lora = LoRA(LoRASpec(rank=4))
        SFT(SFTSpec(steps=4, batch_size=6, learning_rate=1e-2, micro_batch_tokens=tokens)).fit(backbone, [lora], EXAMPLES)
        return lora.tensors()

    whole, parts = fitted(100_000), fitted(1)
    # The adapter's gradients are float32 sums in another order; AdamW divides small ones by their own size.
    assert all(torch.allclose(whole[key], parts[key], rtol=1e-5, atol=1e-5) for key in whole)
    assert any(not torch.equal(whole[key], parts[key]) for key in whole)
