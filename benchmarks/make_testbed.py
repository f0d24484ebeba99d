"""Makes the test-bed: a tiny Llama trained from scratch on alchemy, which computes its answers through its trace.

    python -m benchmarks.make_testbed --out runs/testbed
    python -m benchmarks.make_testbed --out runs/testbed --ship adapters/testbed

Resumable: run it again with the same `--out`; `--seconds` ends a run early. It reads rows of the train split alone: 3 to 5 atoms,
1 to 3 operations. One row in ten asks for the answer at once, of one operation only: the direct format is learnt, and no way
around a trace. Positions are rotary, and half of the prompts are stretched by a gap at a random place, so that a longer element
or chain lies at no distance that was never seen.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from adapters.backbone import Backbone
from adapters.whole_file import write_whole, written_whole
from benchmarks.results import provenance, table, write_section
from engine.torch_engine import TorchEngine
from evaluation.measures.shift import ShiftRobustness
from evaluation.statistics import wilson
from evaluation.task import DIRECT, REASON, answer_line, direct_prompt, reasoning_prompt
from evaluation.tasks.alchemy import ALCHEMY

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIALS = ["<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
DIRECT_SHARE, WIDEST_GAP = 0.1, 24
Row = tuple[list[int], list[int]]  # prompt, completion


@dataclass
class Progress:
    step: int = 0
    tokens: int = 0
    seconds: float = 0.0


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Words of the task are a token each, all else is bytes; the two instructions are one token, as they say nothing here."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False, min_frequency=20
    )
    shown = [f"{example.question}\n{example.chain}" for example in ALCHEMY.examples("train", 600)]
    # An atom that the task holds out is a token like the others, but one that is never seen.
    tokenizer.train_from_iterator([*shown, *(f"rot {' '.join(ascii_uppercase)}" for _ in range(50))], trainer)
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in (REASON, DIRECT)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|end|>",
        pad_token="<|end|>",
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def make_model(tokenizer: PreTrainedTokenizerBase, hidden: int, layers: int, seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    model.set_attn_implementation("eager")
    return model


def draw_rows(tokenizer: PreTrainedTokenizerBase, seed: int, step: int, batch: int) -> list[Row]:
    rng = random.Random(f"{seed}/{step}")
    rows = []
    for example in ALCHEMY.examples("train", batch, seed=1_000_000 * (seed + 1) + step):
        direct = len(example.steps) == 1 and rng.random() < 3 * DIRECT_SHARE
        turns = [{"role": "user", "content": (direct_prompt if direct else reasoning_prompt)(example)}]
        encoded: Any = tokenizer.apply_chat_template(turns, add_generation_prompt=True)
        completion = answer_line(example.answer) if direct else example.chain
        rows.append((list(encoded["input_ids"]), [*tokenizer(completion)["input_ids"], tokenizer.eos_token_id]))
    return rows


def loss_of(model: LlamaForCausalLM, rows: list[Row], rng: random.Random) -> torch.Tensor:
    """Mean cross-entropy of the completions' tokens."""
    width = max(len(prompt) + len(completion) for prompt, completion in rows)
    ids_BT, mask_BT = torch.zeros(2, len(rows), width, dtype=torch.long)
    targets_BT = torch.full((len(rows), width), -100)
    positions_BT = torch.arange(width).repeat(len(rows), 1)
    for row, (prompt, completion) in enumerate(rows):
        length = len(prompt) + len(completion)
        ids_BT[row, :length] = torch.tensor(prompt + completion)
        targets_BT[row, len(prompt) - 1 : length - 1] = torch.tensor(completion)
        mask_BT[row, :length] = 1
        if rng.random() < 0.5:
            positions_BT[row, rng.randrange(1, len(prompt)) :] += rng.randint(1, WIDEST_GAP)
    hidden_BTH = model.model(ids_BT, attention_mask=mask_BT, position_ids=positions_BT, use_cache=False).last_hidden_state
    kept = targets_BT != -100
    return cross_entropy(model.lm_head(hidden_BTH[kept]).float(), targets_BT[kept])


def rate(step: int, steps: int) -> float:
    """Share of the learning rate: up over the first 100 steps, then falling linearly to next to nothing from the middle on."""
    return min(1.0, step / 100 + 0.01, 2 * (1 - step / steps) + 0.002)


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """A Hugging Face directory, in float16."""
    shutil.rmtree(directory, ignore_errors=True)
    copy = LlamaForCausalLM(model.config)
    copy.load_state_dict(model.state_dict())
    copy.half().save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def profile_of(directory: Path, items: int) -> dict[str, float]:
    """Share right in every step on the gate split: as drawn, and under every shift."""
    backbone = Backbone.load(str(directory), device="cpu")
    examples = ALCHEMY.examples("gate", items, seed=3)
    readings = ShiftRobustness().read(TorchEngine(backbone, precision="float32"), backbone, None, ALCHEMY, examples)
    return {name: readings.part_mean(name) for name in readings.parts}


def report(out: Path, seed: int, items: int) -> None:
    found, progress = profile_of(out / "model", items), json.loads((out / "progress.json").read_text())
    base, size = found["original"], sum(file.stat().st_size for file in (out / "model").iterdir()) / 1e6
    rows = []
    for name, share in found.items():
        low, high = wilson(round(share * items), items)
        rows.append([name.replace("_", " "), f"{share:.3f}", f"[{low:.3f}, {high:.3f}]", f"{share / base:.3f}"])
    note = (
        f"{progress['parameters']:,} parameters, {size:.1f} MB; {progress['step']} steps of {progress['batch']} rows "
        f"({progress['tokens'] / 1e6:.1f}M tokens) in {progress['seconds'] / 60:.0f} minutes on one thread. "
        f"Greedy traces right in every step, {items} problems of the gate split and their twins, with Wilson's 95 % interval."
    )
    body = f"{provenance('make_testbed', str(seed))}\n\n{note}\n\n{table(['', 'right', '95 %', 'RD'], rows)}"
    write_section("testbed", "The test-bed, and where it ends", body)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1600)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--hidden", type=int, default=96)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=math.inf, help="stop after so long; the same command goes on")
    parser.add_argument("--items", type=int, default=200, help="of the report")
    parser.add_argument("--ship", type=Path, help="write the model there (adapters/testbed), and its report, and stop")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.ship:
        shutil.rmtree(args.ship, ignore_errors=True)
        shutil.copytree(args.out / "model", args.ship)
        report(args.out, args.seed, args.items)
        return
    tokenizer = make_tokenizer()
    model = make_model(tokenizer, args.hidden, args.layers, args.seed)
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=args.lr, weight_decay=0.01, betas=(0.9, 0.98))
    checkpoint, progress = args.out / "checkpoint.pt", Progress()
    args.out.mkdir(parents=True, exist_ok=True)
    if checkpoint.exists():
        stored = torch.load(checkpoint)
        progress = Progress(**stored["progress"])
        optimizer.load_state_dict(stored["optimizer"])
        model.load_state_dict(stored["model"])
    begun = last = time.monotonic()
    while progress.step < args.steps and time.monotonic() - begun < args.seconds:
        for group in optimizer.param_groups:
            group["lr"] = args.lr * rate(progress.step, args.steps)
        rows = draw_rows(tokenizer, args.seed, progress.step, args.batch)
        loss = loss_of(model, rows, random.Random(f"gaps/{args.seed}/{progress.step}"))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        progress.step += 1
        progress.tokens += sum(len(prompt) + len(completion) for prompt, completion in rows)
        progress.seconds += time.monotonic() - last
        last = time.monotonic()
        if progress.step % 50 == 0:
            print(f"step {progress.step} loss {loss.item():.4f} {progress.seconds:.0f} s", flush=True)
    with written_whole(checkpoint) as part:
        torch.save({"progress": asdict(progress), "optimizer": optimizer.state_dict(), "model": model.state_dict()}, part)
    save(model, tokenizer, args.out / "model")
    size = sum(parameter.numel() for parameter in parameters)
    write_whole(args.out / "progress.json", json.dumps({**asdict(progress), "batch": args.batch, "parameters": size}))
    if progress.step == args.steps:
        print(json.dumps(profile_of(args.out / "model", args.items)))


if __name__ == "__main__":
    main()
