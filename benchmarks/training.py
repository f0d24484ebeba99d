"""Training tokens per second against TRL's SFTTrainer: same rows, LoRA, batch and optimizer, interleaved in one run.

    python -m benchmarks.training [--rounds 3] [--steps 6]      needs the extra `trl`

Both sides train a rank-16 LoRA on all linear layers on completion tokens only, batches of 16. TRL runs in bfloat16 mixed
precision where it accepts it on this device, and in float32; the faster of the two is what the ratio is against.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch

from adapters.backbone import RAW, Backbone
from adapters.lora import LoRA, LoRASpec
from benchmarks.results import commit, commits, provenance, table, write_section
from evaluation.task import reasoning_prompt
from evaluation.tasks import task_named
from tuning.journal import Journal
from tuning.methods.sft import SFT, SFTSpec

BATCH = 16


def ours(backbone: Backbone, steps: int, seed: int) -> float:
    examples = task_named("icd10").examples("train", 400)
    spec = SFTSpec(steps=steps, batch_size=BATCH, target="rationale", seed=seed)
    return SFT(spec).fit(backbone, [LoRA(LoRASpec(rank=16, alpha=32))], examples).tokens_per_s


def trl(backbone_name: str, steps: int, seed: int, bf16: bool) -> float:
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    backbone = Backbone.load(backbone_name)
    rows = [
        {"prompt": [{"role": "user", "content": reasoning_prompt(e)}], "completion": [{"role": "assistant", "content": e.chain}]}
        for e in task_named("icd10").examples("train", 400)
    ]
    with tempfile.TemporaryDirectory() as out, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = SFTConfig(
            output_dir=out, max_steps=steps, per_device_train_batch_size=BATCH, learning_rate=5e-4, seed=seed, use_cpu=True,
            bf16=bf16, gradient_checkpointing=False, report_to=[], save_strategy="no", logging_strategy="no",
            completion_only_loss=True, max_length=None, disable_tqdm=True, include_num_input_tokens_seen="non_padding",
        )  # fmt: skip
        lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
        trainer = SFTTrainer(
            backbone.model,
            args=config,
            train_dataset=Dataset.from_list(rows),
            processing_class=backbone.tokenizer,
            peft_config=lora,
        )
        started = time.monotonic()
        trainer.train()
        return float(trainer.state.num_input_tokens_seen) / (time.monotonic() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default=RAW)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rows", type=Path, default=Path("runs/benchmarks/training.jsonl"))
    parser.add_argument("--note", default="", help="What else is to be known of the run, such as other work on the machine.")
    args = parser.parse_args()
    journal = Journal(args.rows)
    asked = {"backbone": args.backbone, "steps": args.steps}
    done = [row for row in journal.entries() if asked.items() <= row.items()]
    backbone = Backbone.load(args.backbone)
    ours(backbone, 1, 0)  # first use of kernels and caches
    for number in range(len(done), args.rounds):
        row: dict[str, Any] = {
            **asked,
            "commit": commit(),
            "ours": ours(backbone, args.steps, number),
            "trl_float32": trl(args.backbone, args.steps, number, False),
        }
        try:
            row["trl_bfloat16"] = trl(args.backbone, args.steps, number, True)
        except ValueError as refused:
            print(f"TRL refuses bfloat16 here: {refused}")
            row["trl_bfloat16"] = None
        journal.append(row)
        done.append(row)
        print(row, flush=True)
    rates = {key: [row[key] for row in done if row[key]] for key in ("ours", "trl_float32", "trl_bfloat16")}
    medians = {key: statistics.median(values) for key, values in rates.items() if values}
    best = max(value for key, value in medians.items() if key != "ours")
    body = table(
        ["side", "tokens/s, median", "all rounds"],
        [[k, f"{v:.0f}", ", ".join(f"{x:.0f}" for x in rates[k])] for k, v in medians.items()],
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
    note = f"Ratio to TRL's faster setting: {medians['ours'] / best:.2f} (goal 1.5). "
    note += f"Peak memory of this process: {peak:.1f} GiB. {torch.get_num_threads()} threads. {args.note}".rstrip()
    write_section(
        "training", "Training speed against TRL", f"{provenance('training')} · rows of {commits(done)}\n\n{body}\n\n{note}"
    )
    print(note)


if __name__ == "__main__":
    main()
