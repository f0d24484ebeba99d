"""Pairs of a long and a short chain after one prompt: what a compression vector is made from, and a file of them."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from adapters.backbone import Backbone
from adapters.steering import Contrast
from adapters.whole_file import write_whole
from engine.engine import Completion, Continuation, Engine, GenerationRequest
from evaluation.errors import DataError, UnreadableFile, WrongRow
from evaluation.task import Example, Task, answer_line, is_right, reasoning_prompt

Verbose = Literal["own", "prompted"]  # as the backbone writes it, or asked to write at length
Concise = Literal["gold", "prompted", "answer"]  # the task's chain, the backbone's own when asked to be brief, the answer alone
AT_LENGTH = "Explain every step at length, in full sentences."
BE_CONCISE = "Be concise: write as little as you can."
LEAST = 4
MAX_NEW_TOKENS = 128


@dataclass(frozen=True)
class Pair:
    """Texts. `prompt` is a user's turn, the same for both, without what may have been asked to get them."""

    id: str
    prompt: str
    verbose: str
    concise: str
    verbose_ends: bool = True  # False: it was cut off, so that no end of text belongs to it

    def contrast(self, backbone: Backbone) -> Contrast:
        end = int(backbone.tokenizer.eos_token_id)
        verbose = (*backbone.encode(self.verbose), *([end] if self.verbose_ends else ()))
        return Contrast(backbone.chat_ids(self.prompt), (*backbone.encode(self.concise), end), verbose)

    def verbose_trace(self, backbone: Backbone) -> Continuation:
        contrast = self.contrast(backbone)
        return Continuation(contrast.prompt_ids, contrast.other_ids)

    def as_example(self) -> Example:
        """What the vector has seen of it, for a check of overlap."""
        return Example(id=self.id, question=self.prompt, answer=self.concise)


@dataclass(frozen=True)
class Pairs:
    """`left_out` counts by reason the examples that made no pair."""

    pairs: tuple[Pair, ...]
    left_out: Mapping[str, int]

    def digest(self) -> str:
        """SHA-256 over the pairs in order."""
        return hashlib.sha256(json.dumps([asdict(pair) for pair in self.pairs]).encode()).hexdigest()


def make_pairs(
    engine: Engine,
    backbone: Backbone,
    task: Task,
    examples: Sequence[Example],
    verbose: Verbose = "own",
    concise: Concise = "gold",
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> Pairs:
    """A pair's short chain ends in the right answer and has fewer tokens than its long one."""
    if concise == "gold" and (bare := [example.id for example in examples if not example.steps]):
        raise DataError(
            f"A gold chain needs a rationale, but {bare[0]!r} of {task.name} has none. Take another short form (--concise)."
        )
    long = _written(engine, backbone, examples, AT_LENGTH if verbose == "prompted" else "", max_new_tokens)
    short = _written(engine, backbone, examples, BE_CONCISE, max_new_tokens) if concise == "prompted" else None
    kept, left_out = list[Pair](), Counter[str]()
    for place, (example, done) in enumerate(zip(examples, long, strict=True)):
        if short is not None and not is_right(task, example, short[place].text):
            left_out["the short chain is not right"] += 1
            continue
        brief = short[place].text if short is not None else example.chain if concise == "gold" else answer_line(example.answer)
        pair = Pair(example.id, reasoning_prompt(example), done.text.strip(), brief.strip(), done.finish_reason == "stop")
        if len(backbone.encode(pair.concise)) < len(backbone.encode(pair.verbose)):
            kept.append(pair)
        else:
            left_out["the short chain is not shorter"] += 1
    found = Pairs(tuple(kept), dict(left_out))
    if len(kept) < LEAST:
        told = ", ".join(f"{number} because {reason}" for reason, number in left_out.items()) or "there were no more examples"
        raise DataError(
            f"A vector needs {LEAST} pairs or more, but {len(kept)} of {len(examples)} examples of {task.name} made one "
            f"({told}). Take other chains (--verbose, --concise), more examples, or pairs of your own (--pairs)."
        )
    return found


def read_pairs(file: Path) -> Pairs:
    """A file of JSON lines with `prompt`, `verbose` and `concise`; `id` and `verbose_ends` may be left out."""
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")  # a text may hold other separators of lines
    except (OSError, UnicodeDecodeError) as error:
        raise UnreadableFile(f"Pairs are a file of JSON lines, but {file} cannot be read: {error}.") from error
    pairs = tuple(_pair(file, number, line) for number, line in enumerate(lines, start=1) if line.strip())
    if len(pairs) < LEAST:
        raise DataError(f"A vector needs {LEAST} pairs or more, but {file} has {len(pairs)}. Add some.")
    return Pairs(pairs, {})


def write_pairs(file: Path, pairs: Sequence[Pair]) -> None:
    write_whole(file, "".join(json.dumps(asdict(pair), ensure_ascii=False) + "\n" for pair in pairs))


def _pair(file: Path, number: int, line: str) -> Pair:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise WrongRow(f"Line {number} of {file} must be a JSON object, but is none ({error}). Correct it.") from error
    texts = [row.get(name) for name in ("prompt", "verbose", "concise")] if isinstance(row, dict) else []
    prompt, verbose, concise = (text if isinstance(text, str) else "" for text in texts or ("", "", ""))
    if not (prompt.strip() and verbose.strip() and concise.strip()):
        raise WrongRow(
            f"A pair has the texts prompt, verbose and concise, none empty, but line {number} of {file} has not. Add them there."
        )
    if not isinstance(ends := row.get("verbose_ends", True), bool):
        raise WrongRow(f"verbose_ends of a pair is true or false, but line {number} of {file} says {ends!r}. Correct it.")
    return Pair(str(row.get("id", number)), prompt, verbose, concise, ends)


def _written(engine: Engine, backbone: Backbone, examples: Sequence[Example], also: str, max_new_tokens: int) -> list[Completion]:
    texts = [f"{reasoning_prompt(example)}\n{also}".rstrip() for example in examples]
    return engine.complete(
        [GenerationRequest(backbone.chat_ids(text), None, max_new_tokens=max_new_tokens, temperature=0.0) for text in texts]
    )
