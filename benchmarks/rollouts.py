"""Rollout tokens per second: a step's completions through our engine against TRL's default generate, interleaved in one run.

    python -m benchmarks.rollouts [--rounds 3] [--completions 16] [--max-new-tokens 128]      needs the extra `trl`

All sides write the same number of completions to the same prompts with the same LoRA on, at temperature 1. TRL's side is what
its GRPOTrainer does by itself on a CPU, in float32, and once more under bfloat16 autocast, which it must be given; ours is what
the on-policy methods do, in bfloat16 where that is fast and once more in float32, the reading of the adapter's weights included.
One row a round in runs/benchmarks/rollouts.jsonl; a row that is there is not made again. About 5 minutes on two cores.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch

from adapters.adapter import Stack
from adapters.backbone import REASONER, Backbone
from adapters.lora import LoRA, LoRASpec
from benchmarks.results import commit, commits, provenance, table, write_section
from engine.twin import Precision
from evaluation.task import Example, reasoning_prompt
from evaluation.tasks import task_named
from tuning.journal import Journal
from tuning.methods.on_policy import OnPolicySpec, Policy
from tuning.rollouts import rollouts

GROUP = 8


def ours(backbone: Backbone, examples: list[Example], spec: OnPolicySpec, precision: Precision) -> tuple[int, float]:
    """Tokens written, and the seconds that they took."""
    stack = Stack([LoRA(LoRASpec(rank=16, alpha=32))])
    with rollouts(backbone, precision=precision) as engine, stack.attach(backbone):
        writer = Policy(backbone, stack.adapters, examples, spec, f"benchmark/{spec.seed}", engine)
        started = time.monotonic()
        writer.write(0)
        return writer.num_written(1), time.monotonic() - started


def trl(backbone: Backbone, examples: list[Example], spec: OnPolicySpec, precision: Precision) -> tuple[int, float]:
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    lora = LoRA(LoRASpec(rank=16, alpha=32))
    prompts = [[{"role": "user", "content": reasoning_prompt(example)}] for example in examples]
    with tempfile.TemporaryDirectory() as out, warnings.catch_warnings(), lora.attach(backbone):
        warnings.simplefilter("ignore")
        config = GRPOConfig(
            output_dir=out, max_steps=1, per_device_train_batch_size=spec.batch_size, num_generations=GROUP, use_cpu=True,
            max_completion_length=spec.max_new_tokens, temperature=spec.temperature, bf16=False, gradient_checkpointing=False,
            report_to=[], disable_tqdm=True, seed=spec.seed,
        )  # fmt: skip
        trainer = GRPOTrainer(
            lora.peft_model,
            reward_funcs=lambda completions, **_: [0.0 for _ in completions],
            args=config,
            train_dataset=Dataset.from_dict({"prompt": prompts}),
            processing_class=backbone.tokenizer,
        )
        trainer.model.train()
        asked = [prompt for prompt in prompts for _ in range(GROUP)]
        started = time.monotonic()
        with backbone.autocast() if precision == "bfloat16" else nullcontext():
            _, completion_ids, *_ = trainer._generate(asked)
        seconds = time.monotonic() - started
        del backbone.model.__dict__["forward"]  # the trainer's own
    return sum(map(len, completion_ids)), seconds


OURS, OURS_FULL, TRL, TRL_LOW = "ours, bfloat16", "ours, float32", "TRL, float32", "TRL, bfloat16"
SIDES: dict[str, tuple[Callable[..., tuple[int, float]], Precision]] = {
    OURS: (ours, "bfloat16"),
    TRL: (trl, "float32"),
    OURS_FULL: (ours, "float32"),
    TRL_LOW: (trl, "bfloat16"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default=REASONER)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--completions", type=int, default=16)
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--rows", type=Path, default=Path("runs/benchmarks/rollouts.jsonl"))
    parser.add_argument("--note", default="", help="What else is to be known of the run, such as other work on the machine.")
    args = parser.parse_args()
    backbone = Backbone.load(args.backbone)
    cell = ["four sides", backbone.fingerprint[:12], args.completions, args.max_new_tokens, torch.get_num_threads()]
    journal = Journal(args.rows)
    done = [row for row in journal.entries() if row["cell"] == cell]
    for number in range(len(done), args.rounds):
        spec = OnPolicySpec(
            name="rollouts", batch_size=args.completions, group_size=GROUP, max_new_tokens=args.max_new_tokens, seed=number
        )
        examples = task_named("icd10").examples("train", args.completions // GROUP, seed=number)
        row = {"cell": cell, "commit": commit()} | {
            name: side(backbone, examples, spec, precision) for name, (side, precision) in SIDES.items()
        }
        journal.append(row)
        done.append(row)
        print(row, flush=True)
    rates = {side: [row[side][0] / row[side][1] for row in done] for side in SIDES}
    medians = {side: statistics.median(values) for side, values in rates.items()}
    rows = [
        [side, f"{medians[side]:.0f}", ", ".join(f"{rate:.0f}" for rate in rates[side]), str(sum(row[side][0] for row in done))]
        for side in rates
    ]
    body = table(["side", "tokens/s, median", "all rounds", "tokens written"], rows)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
    note = f"Ours against TRL's default: {medians[OURS] / medians[TRL]:.2f} (goal 3); against TRL under autocast "
    note += f"{medians[OURS] / medians[TRL_LOW]:.2f}; both in float32 {medians[OURS_FULL] / medians[TRL]:.2f}. "
    note += f"{args.completions} completions of at most "
    note += f"{args.max_new_tokens} tokens a round. Peak memory of this process: {peak:.1f} GiB. {cell[-1]} threads. {args.note}"
    seeds = f"0 to {args.rounds - 1}"
    write_section(
        "rollouts",
        "Rollout speed against TRL",
        f"{provenance('rollouts', seeds)} · rows of {commits(done)}\n\n{body}\n\n{note.rstrip()}",
    )
    print(note)


if __name__ == "__main__":
    main()
