"""The markers between which a backbone thinks, as its chat template or its vocabulary tells them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Markers:
    """What stands before and behind a chain of thought in the text of a reply."""

    begin: str
    end: str

    def are_open_in(self, prompt: str) -> bool:
        """Whether a prompt that ends so has begun the chain itself, as templates do: its reply starts inside."""
        return prompt.rstrip().endswith(self.begin)


# Qwen3, QwQ, DeepSeek-R1, Nemotron, SmolLM3 and most others; Magistral; Command A; Seed-OSS; Kimi; EXAONE Deep; Sky-T1.
KNOWN = (
    Markers("<think>", "</think>"),
    Markers("[THINK]", "[/THINK]"),
    Markers("<|START_THINKING|>", "<|END_THINKING|>"),
    Markers("<seed:think>", "</seed:think>"),
    Markers("◁think▷", "◁/think▷"),
    Markers("<thought>", "</thought>"),
    Markers("<|begin_of_thought|>", "<|end_of_thought|>"),
    Markers("<thinking>", "</thinking>"),
    Markers("<reasoning>", "</reasoning>"),
)
# With which models begin and end a call of a tool.
CALL_MARKERS = ("<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "<|python_tag|>")


def markers_of(tokenizer: PreTrainedTokenizerBase) -> Markers | None:
    """Those that its chat template speaks of, else those that both are tokens of their own; None where it knows none."""
    templates = tokenizer.chat_template or ""
    text = "\n".join(templates.values()) if isinstance(templates, dict) else str(templates)
    tokens = tokenizer.get_added_vocab()
    in_template = (pair for pair in KNOWN if pair.begin in text or pair.end in text)
    as_tokens = (pair for pair in KNOWN if pair.begin in tokens and pair.end in tokens)
    return next(in_template, None) or next(as_tokens, None)


def shown_specials(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The special tokens that a reply's text must show: leaving them out would run a chain into its answer."""
    shown: Collection[str] = {*CALL_MARKERS, *(text for pair in KNOWN for text in (pair.begin, pair.end))}
    specials = set(tokenizer.all_special_ids) | {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return frozenset(i for i in specials if str(tokenizer.convert_ids_to_tokens(i)) in shown)
