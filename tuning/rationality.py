"""How much a model's own rationale tells it of the right answer: a reward for explanations that carry information.

This is an extension of ours. In RLAG (arXiv 2509.20162) the rationality of explanations is something that is evaluated, and no
part of the loss. A rationale that states the answer and nothing else also gains all of it: the reward belongs beside accuracy,
and never alone.
"""

from __future__ import annotations

from collections.abc import Sequence

from adapters.backbone import Backbone
from engine.engine import Continuation, Engine
from evaluation.task import Example, answer_line, reasoning_prompt, trace_of

BOUND = 1.0  # nats per token of the answer, either way


def rationality(
    engine: Engine,
    backbone: Backbone,
    profile: str | None,
    example: Example,
    completions: Sequence[str],
    prompt_ids: tuple[int, ...] | None = None,
) -> list[float]:
    """Of each completion: log p(answer | question, its steps) - log p(answer | question), cut to [-1, 1].

    The answer is the right one, its log-probability the mean per token, under the prompt that the completions were written from
    (`prompt_ids`; the one to reason where there is none). A completion without steps gains 0; of steps that leave no room for the
    answer, what leaves it is read.
    """
    prompt = prompt_ids or tuple(backbone.chat_ids(reasoning_prompt(example)))
    head = len(backbone.encode(answer_line("").rstrip()))
    answer = tuple(backbone.encode(answer_line(example.answer)))
    room = max(0, backbone.context_length - len(prompt) - len(answer))
    steps = [tuple(backbone.encode("".join(f"{step}\n" for step in trace_of(text).steps)))[:room] for text in completions]
    asked = [Continuation(prompt, answer, head)]
    asked += [Continuation(prompt, (*read, *answer), len(read) + head) for read in steps if read]
    bare, *after = (sum(found) / len(found) for found in engine.score(asked, profile))
    gained = iter(after)
    return [max(-BOUND, min(BOUND, next(gained) - bare)) if read else 0.0 for read in steps]
