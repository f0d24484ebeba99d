"""Scoring speed: trees of shared prefixes against a plain loop of forwards, and against plain batches without sharing.

    python -m benchmarks.scoring [--rounds 3] [--items 24] [--precision bfloat16] [--results]

Items are the two shapes that evaluation scores: options of a multiple-choice question (ICD-10), and the gold answer after
each longer part of the chain (Information Gain, all reasoning families). All sides compute logits only where they are
read, run in the same precision with weights cast once, and take turns in one run. Tokens are counted as the plain loop
reads them, so the ratio of rates is the ratio of times.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from adapters.backbone import RAW, Backbone
from adapters.whole_file import write_whole
from benchmarks.results import provenance, table, write_section
from engine.engine import Continuation
from engine.torch_engine import TorchEngine
from engine.trie import batches
from evaluation.task import answer_line, direct_prompt, reasoning_prompt
from evaluation.tasks import FAMILIES
from evaluation.tasks.icd10 import ICD10

MAX_BATCH_TOKENS, GOAL = 4096, 3.0
Scores = list[tuple[float, ...]]
Side = Callable[[Sequence[Continuation]], Scores]


def multiple_choice(backbone: Backbone, count: int) -> list[Continuation]:
    return [
        Continuation(backbone.chat_ids(direct_prompt(example)), tuple(backbone.encode(answer_line(choice))))
        for example in ICD10.examples("search", count)
        for choice in example.choices or ()
    ]


def information_gain(backbone: Backbone, count: int) -> list[Continuation]:
    found = []
    for family in FAMILIES.values():
        for example in family.examples("search", -(-count // len(FAMILIES))):
            prompt, answer = backbone.chat_ids(reasoning_prompt(example)), tuple(backbone.encode(answer_line(example.answer)))
            for kept in range(len(example.steps) + 1):
                trace = backbone.encode("".join(f"{step}\n" for step in example.steps[:kept]))
                found.append(Continuation(prompt + tuple(trace), answer))
    return found


def tokens_of(continuations: Sequence[Continuation]) -> int:
    return sum(len(each.prompt_ids) + len(each.ids) for each in continuations)


@torch.inference_mode()
def plain_batch(backbone: Backbone, continuations: Sequence[Continuation]) -> Scores:
    """One padded forward; with one continuation, a step of the plain loop."""
    rows = [torch.tensor(each.prompt_ids + each.ids) for each in continuations]
    lengths_B = torch.tensor([len(row) for row in rows])
    ids_BT = pad_sequence(rows, batch_first=True)
    mask_BT = (torch.arange(ids_BT.shape[1]) < lengths_B[:, None]).long() if len(rows) > 1 else None
    states_BTH = backbone.decoder(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False).last_hidden_state
    head: Callable[[Tensor], Tensor] = backbone.model.get_output_embeddings()
    scores = []
    for row, each in enumerate(continuations):
        first = len(each.prompt_ids) - 1
        logprobs_TV = head(states_BTH[row, first : first + len(each.ids)]).float().log_softmax(-1)
        scores.append(tuple(logprobs_TV[range(len(each.ids)), list(each.ids)].tolist()))
    return scores


def loop(backbone: Backbone, continuations: Sequence[Continuation]) -> Scores:
    return [plain_batch(backbone, [each])[0] for each in continuations]


def batched(backbone: Backbone, continuations: Sequence[Continuation]) -> Scores:
    scores: Scores = [()] * len(continuations)
    for batch in batches([tokens_of([each]) for each in continuations], MAX_BATCH_TOKENS):
        for index, score in zip(batch, plain_batch(backbone, [continuations[index] for index in batch]), strict=True):
            scores[index] = score
    return scores


def measure(sides: dict[str, Side], asked: list[Continuation], rounds: int) -> dict[str, object]:
    """Seconds of each side, in turns, and how far their scores are apart."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    scores: dict[str, Scores] = {}
    for _ in range(rounds):
        for name, side in sides.items():
            started = time.monotonic()
            scores[name] = side(asked)
            seconds[name].append(time.monotonic() - started)
    trees = torch.tensor([value for row in scores["trees"] for value in row])
    plain = torch.tensor([value for row in scores["loop"] for value in row])
    return {
        "continuations": len(asked),
        "tokens": tokens_of(asked),
        "seconds": seconds,
        "tokens_per_s": {name: tokens_of(asked) / statistics.median(taken) for name, taken in seconds.items()},
        "largest_difference": float((trees - plain).abs().max()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default=RAW)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--items", type=int, default=24, help="questions of each shape")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/scoring.json"))
    parser.add_argument("--results", action="store_true", help="write the table into docs/results.md too")
    args = parser.parse_args()

    low = args.precision == "bfloat16"
    engine = TorchEngine(Backbone.load(args.backbone), precision="bfloat16" if low else None, max_batch_tokens=MAX_BATCH_TOKENS)
    plain = Backbone.load(args.backbone, dtype=torch.bfloat16) if low else engine.backbone
    sides: dict[str, Side] = {
        "loop": lambda asked: loop(plain, asked),
        "batched": lambda asked: batched(plain, asked),
        "trees": lambda asked: engine.score(asked),
    }
    shapes = {"multiple choice": multiple_choice, "information gain": information_gain}
    for side in sides.values():
        side(multiple_choice(plain, 1))  # first use of kernels
    found = {name: measure(sides, shape(plain, args.items), args.rounds) for name, shape in shapes.items()}
    row = {"provenance": provenance("scoring"), "precision": args.precision, **found}
    write_whole(args.out, json.dumps(row, indent=2) + "\n")
    lines = []
    for name, measured in found.items():
        rates = measured["tokens_per_s"]
        assert isinstance(rates, dict)
        ratios = [f"{rates['trees'] / rates[side]:.1f}x" for side in ("loop", "batched")]
        lines.append([name, *(f"{rates[side]:.0f}" for side in sides), *ratios, f"{measured['largest_difference']:.1g}"])
    body = table(["items", "loop, tokens/s", "batched", "trees", "to loop", "to batched", "largest difference, nats"], lines)
    faster = float(lines[-1][-3].rstrip("x"))
    goal = f"Information Gain by shared prefixes is {faster:.1f} times as fast as its separate passes (goal: {GOAL:.0f}, "
    body = f"{body}\n\n{goal}{'met' if faster >= GOAL else 'missed'})."
    print(body)
    if args.results:
        write_section("scoring", "Scoring", f"{body}\n\n{row['provenance']}")


if __name__ == "__main__":
    main()
