"""Makes the built-in reasoner: warms SmolLM2-135M up on generated reasoning, as a low-rank update of its weights.

    python -m benchmarks.make_reasoner --out runs/reasoner --tokens 1900000
    python -m benchmarks.make_reasoner --out runs/reasoner --ship adapters/reasoner

Resumable: run it again with the same `--out`. Writes `checkpoint.pt` while it runs, `progress.jsonl` (one line an
evaluation), and `best/` = the LoRA of the evaluation with the highest mean share of traces right in every step.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerBase

from adapters.backbone import RAW, Backbone
from adapters.lora_linear import with_fast_layers
from adapters.whole_file import write_whole, written_whole
from benchmarks.results import provenance, table, write_section
from evaluation.task import Example, answer_line, direct_prompt, reasoning_prompt
from evaluation.tasks import FAMILIES
from tuning.allocator import keep_freed_memory

# Families whose steps need computing get more of the tokens than those whose steps are read off the question.
WEIGHTS = {
    "arithmetic": 2.0,
    "word_problem": 1.6,
    "boxes": 1.4,
    "deduction": 1.1,
    "ordering": 1.2,
    "calendar": 2.0,
    "kinship": 1.0,
}
DIRECT_SHARE = 0.1  # rows answered at once, so that the direct format is followed too


def prompt_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    messages = [{"role": "user", "content": text}]
    encoded: Any = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    return list(encoded["input_ids"])


def draw_rows(tokenizer: PreTrainedTokenizerBase, seed: int, step: int, batch: int) -> list[tuple[list[int], list[int]]]:
    rng = random.Random(f"{seed}/{step}")
    names = rng.choices(list(WEIGHTS), weights=list(WEIGHTS.values()), k=batch)
    rows = []
    for name in sorted(set(names)):
        for example in FAMILIES[name].examples("train", names.count(name), seed=1_000_000 * (seed + 1) + step):
            direct = rng.random() < DIRECT_SHARE
            prompt = direct_prompt(example) if direct else reasoning_prompt(example)
            completion = answer_line(example.answer) if direct else example.chain
            ids = tokenizer(completion, add_special_tokens=False)["input_ids"]
            rows.append((prompt_ids(tokenizer, prompt), [*ids, tokenizer.eos_token_id]))
    return sorted(rows, key=lambda row: len(row[0]) + len(row[1]))


def loss_of(model: PeftModel, rows: list[tuple[list[int], list[int]]], num_targets: int) -> torch.Tensor:
    """Summed cross-entropy of the completions over `num_targets`; logits only where a target is."""
    width = max(len(prompt) + len(completion) for prompt, completion in rows)
    ids_BT = torch.zeros(len(rows), width, dtype=torch.long)
    targets_BT = torch.full((len(rows), width), -100)
    mask_BT = torch.zeros(len(rows), width, dtype=torch.long)
    for row, (prompt, completion) in enumerate(rows):
        length = len(prompt) + len(completion)
        ids_BT[row, :length] = torch.tensor(prompt + completion)
        targets_BT[row, len(prompt) - 1 : length - 1] = torch.tensor(completion)
        mask_BT[row, :length] = 1
    with torch.autocast("cpu", torch.bfloat16):
        hidden_BTH = model.base_model.model.model(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False).last_hidden_state
        kept = targets_BT != -100
        logits_NV = model.base_model.model.lm_head(hidden_BTH[kept])
    return cross_entropy(logits_NV.float(), targets_BT[kept], reduction="sum") / num_targets


@torch.no_grad()
def generate(
    model: PeftModel, tokenizer: PreTrainedTokenizerBase, examples: list[Example], max_new_tokens: int = 110
) -> list[str]:
    tokenizer.padding_side = "left"
    prompts = [tokenizer.decode(prompt_ids(tokenizer, reasoning_prompt(example))) for example in examples]
    inputs = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False)
    with torch.autocast("cpu", torch.bfloat16):
        out = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=tokenizer.pad_token_id)
    return tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def evaluate(model: PeftModel, tokenizer: PreTrainedTokenizerBase, per_family: int) -> dict[str, float]:
    """Share of greedy traces right in every step, by family, on the search split."""
    model.eval()
    examples = {name: task.examples("search", per_family, seed=7) for name, task in FAMILIES.items()}
    flat = sorted((e for group in examples.values() for e in group), key=lambda e: len(e.question))
    texts: dict[str, str] = {}
    for start in range(0, len(flat), 64):
        chunk = flat[start : start + 64]
        texts.update(zip((e.id for e in chunk), generate(model, tokenizer, chunk), strict=True))
    model.train()
    return {
        name: sum(FAMILIES[name].check(e, texts[e.id]).all_right for e in group) / len(group) for name, group in examples.items()
    }


def ship(adapter: Path, out: Path) -> None:
    """The update as the package carries it: bfloat16, and a config that names no place of this machine."""
    out.mkdir(parents=True, exist_ok=True)
    tensors = {key: value.to(torch.bfloat16) for key, value in load_file(adapter / "adapter_model.safetensors").items()}
    save_file(tensors, out / "adapter_model.safetensors", metadata={"format": "pt"})
    config = json.loads((adapter / "adapter_config.json").read_text())
    kept = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": RAW, "inference_mode": True}
    kept |= {key: config[key] for key in ("r", "lora_alpha", "lora_dropout", "bias")} | {
        "target_modules": sorted(config["target_modules"])
    }
    write_whole(out / "adapter_config.json", json.dumps(kept, indent=2) + "\n")


def report(progress: Path, rank: int, rate: float, batch: int, seed: int) -> None:
    """The warm-up's course in docs/results.md, from what it wrote while it ran."""
    lines = [json.loads(line) for line in progress.read_text().splitlines()]
    rows = [
        [str(line["step"]), f"{line['tokens'] / 1e6:.2f}M", f"{line['seconds'] / 60:.0f}", f"{line['mean']:.2f}"]
        + [f"{line[name]:.2f}" for name in FAMILIES]
        for line in lines
    ]
    text = table(["step", "tokens", "minutes", "mean", *FAMILIES], rows)
    note = (
        f"Rank {rank} on all linear layers, learning rate {rate:g} falling over the last 40 % of the tokens, batches of {batch}, "
        f"seed {seed}. Share of greedy traces right in every step on the search split, 24 items a family (48 in the last line)."
    )
    command = provenance("make_reasoner", str(seed))
    write_section("warmup", "The warm-up of the built-in reasoner", f"{command}\n\n{note}\n\n{text}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default=RAW)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=2_400_000)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--evaluate-every", type=int, default=150, help="steps")
    parser.add_argument("--ship", type=Path, help="write the best update there (adapters/reasoner) and stop")
    args = parser.parse_args()
    if args.ship:
        ship(args.out / "best", args.ship)
        report(args.out / "progress.jsonl", args.rank, args.lr, args.batch, args.seed)
        return
    keep_freed_memory()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    backbone = Backbone.load(args.backbone)
    tokenizer = backbone.tokenizer
    # The eager attention's backward is about twice as fast as SDPA's on a CPU at these lengths.
    plain = backbone.model
    plain.set_attn_implementation("eager")
    spec = LoraConfig(r=args.rank, lora_alpha=2 * args.rank, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(plain, with_fast_layers(spec))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=args.lr, weight_decay=0.0, betas=(0.9, 0.98))
    args.out.mkdir(parents=True, exist_ok=True)
    checkpoint, state = args.out / "checkpoint.pt", {"step": 0, "tokens": 0, "seconds": 0.0, "best": -1.0}
    if checkpoint.exists():
        saved = torch.load(checkpoint)
        state = saved["state"]
        optimizer.load_state_dict(saved["optimizer"])
        for parameter, value in zip(trained, saved["weights"], strict=True):
            parameter.data.copy_(value)

    def save() -> None:
        with written_whole(checkpoint) as part:
            torch.save({"state": state, "optimizer": optimizer.state_dict(), "weights": [p.data for p in trained]}, part)

    while state["tokens"] < args.tokens:
        started = time.monotonic()
        done = state["tokens"] / args.tokens
        # Warm up over 2 % of the tokens, stay, then fall linearly to a twentieth over the last 40 %.
        scale = min(1.0, state["step"] / 12 + 0.05, max(0.05, (1 - done) / 0.4))
        for group in optimizer.param_groups:
            group["lr"] = args.lr * scale
        rows = draw_rows(tokenizer, args.seed, int(state["step"]), args.batch)
        num_targets = sum(len(completion) for _, completion in rows)
        total = 0.0
        for start in range(0, len(rows), args.batch // 2):
            loss = loss_of(model, rows[start : start + args.batch // 2], num_targets)
            loss.backward()
            total += loss.item()
        if not math.isfinite(total):
            raise FloatingPointError(f"The loss is {total} at step {state['step']}. Lower --lr (now {args.lr}).")
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        state["step"] += 1
        state["tokens"] += sum(len(prompt) + len(completion) for prompt, completion in rows)
        state["seconds"] += time.monotonic() - started
        if state["step"] % 10 == 0:
            rate = f"lr {args.lr * scale:.0e} {state['seconds']:.0f} s"
            print(f"step {state['step']} tokens {state['tokens']} loss {total:.4f} {rate}", flush=True)
        if state["step"] % 50 == 0:
            save()
        if state["step"] % args.evaluate_every == 0 or state["tokens"] >= args.tokens:
            shares = evaluate(model, tokenizer, per_family=24 if state["tokens"] < args.tokens else 48)
            mean = sum(shares.values()) / len(shares)
            if mean >= state["best"]:
                state["best"] = mean
                model.save_pretrained(args.out / "best")
            with (args.out / "progress.jsonl").open("a") as out:
                out.write(json.dumps({**state, "mean": mean, **shares}) + "\n")
            print(
                json.dumps({"step": state["step"], "mean": round(mean, 3), **{k: round(v, 3) for k, v in shares.items()}}),
                flush=True,
            )
            save()


if __name__ == "__main__":
    main()
