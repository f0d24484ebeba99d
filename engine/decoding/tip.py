"""TIP: a penalty on the words that begin another thought, so that the one begun is followed further (arXiv 2501.18585).

The window form is the paper's equation 2. The constant form is what others call TIP; the cyclic form is the triangular wave of
CyclicReflex (arXiv 2506.11077) over the same words. All of them end with the trace.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from adapters.backbone import Backbone
from adapters.spec import Choices, Range, Spec
from engine.decoding.intervention import Compiled, Intervention
from engine.decoding.trace import Trace
from engine.decoding.vocabulary import Vocabulary
from engine.errors import CannotRun

# Legend: V vocabulary, W tokens of words

WORDS = ("wait", "but", "alternatively")  # as in CyclicReflex; the paper names the last one only
_SPACES = "\u0120\u2581"  # how byte-level and sentencepiece vocabularies write the space before a word


class SwitchPenalty(Spec):
    """`window`: minus `alpha` on the first `beta` tokens of the trace and after every switch. `const`: minus `alpha` throughout.

    `cyclic`: a triangular wave of `amplitude`, up first, every `period` tokens. Each word stands for itself and its capitalised
    form, both with and without a space before. The rest of the fields is not read by a schedule that does not name it.
    """

    schedule: Annotated[Literal["window", "const", "cyclic"], Choices(("window", "const", "cyclic"))] = "window"
    alpha: Annotated[float, Field(ge=0), Range(0, 30)] = 3.0
    beta: Annotated[int, Field(ge=0), Range(0, 700)] = 600
    amplitude: Annotated[float, Field(ge=0), Range(0, 10)] = 5.0
    period: Annotated[int, Field(ge=4), Range(100, 2000)] = 1200
    words: Annotated[tuple[str, ...], Field(min_length=1)] = WORDS

    @field_validator("words")
    @classmethod
    def _begin_with_text(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for word in value:
            if not word or word != word.strip():
                raise ValueError(f"A word stands with and without a space before it anyhow, but got {word!r}. Give it alone.")
        return value

    def shift(self, place: int, since_switch: int) -> float:
        """What is added to the words' logits at the trace's `place`, `since_switch` tokens after its start or the last switch."""
        if self.schedule == "const":
            return -self.alpha
        if self.schedule == "window":
            return -self.alpha if since_switch < self.beta else 0.0
        phase = place / self.period % 1
        rising = 4 * phase if phase < 0.25 else 2 - 4 * phase if phase < 0.75 else 4 * phase - 4
        return self.amplitude * rising


@dataclass(frozen=True)
class CompiledPenalty:
    spec: SwitchPenalty
    spaced: frozenset[int]  # begin a word wherever they stand
    bare: frozenset[int]  # may also stand inside a word: "but" in "attributable"
    device: torch.device

    @classmethod
    def of(cls, spec: SwitchPenalty, backbone: Vocabulary, end: str) -> CompiledPenalty:
        spaced, bare = set[int](), set[int]()
        for word in spec.words:
            forms = {word, word[:1].upper() + word[1:]}
            found = {first_token(backbone, f" {form}") for form in forms}, {first_token(backbone, form) for form in forms}
            if not any(ids - {None} for ids in found):
                raise CannotRun(
                    f"The policy's `tip` needs a token that begins each of its words and no other, but {backbone.name!r} has "
                    f"none for {word!r}, with or without a space before it. Leave that word out."
                )
            spaced |= {token for token in found[0] if token is not None}
            bare |= {token for token in found[1] if token is not None}
        return cls(spec, frozenset(spaced), frozenset(bare - spaced), backbone.device)

    @cached_property
    def spaced_W(self) -> Tensor:
        return torch.tensor(sorted(self.spaced), device=self.device, dtype=torch.long)

    @cached_property
    def all_W(self) -> Tensor:
        return torch.tensor(sorted(self.spaced | self.bare), device=self.device, dtype=torch.long)

    def for_row(self, max_tokens: int) -> Penalty:
        return Penalty(self)


class Penalty:
    """One row's."""

    def __init__(self, compiled: CompiledPenalty) -> None:
        self._compiled = compiled
        self._since = 0
        self._was_in_word = False

    def adjust(self, logits_V: Tensor, trace: Trace) -> Tensor:
        shift = self._compiled.spec.shift(trace.num_tokens, self._since) if trace.is_open else 0.0
        if not shift:
            return logits_V
        adjusted_V = logits_V.clone()
        adjusted_V[self._compiled.spaced_W if trace.in_word else self._compiled.all_W] += shift
        return adjusted_V

    def force(self, drawn: int, trace: Trace) -> int:
        return drawn

    def take(self, token_id: int, trace: Trace) -> None:
        switched = token_id in self._compiled.spaced or (token_id in self._compiled.bare and not self._was_in_word)
        self._since = 0 if switched else self._since + 1
        self._was_in_word = trace.in_word


def first_token(backbone: Vocabulary, form: str) -> int | None:
    """The token that a form begins with; None where it also begins other words, as "altern" of "alternatively" does.

    A form that is one token is itself. What else a piece begins is read off the vocabulary: other tokens with the same letters.
    As a vocabulary spells rare words in small pieces, one with less than half of the form's letters begins anything.
    """
    ids = backbone.encode(form)
    if len(ids) == 1:
        return ids[0]
    pieces: Sequence[str] = backbone.tokenizer.convert_ids_to_tokens(ids)
    first, whole = pieces[0].lstrip(_SPACES), "".join(pieces).lstrip(_SPACES)
    if 2 * len(first) < len(whole):
        return None
    return None if _begins_others(backbone.tokenizer, first, whole) else ids[0]


@lru_cache(256)  # a whole vocabulary is read, and every policy that a request narrows is compiled while rows run
def _begins_others(tokenizer: PreTrainedTokenizerBase, first: str, whole: str) -> bool:
    tokens = (token.lstrip(_SPACES) for token in tokenizer.get_vocab())
    return any(token.startswith(first) and not whole.startswith(token) and not token.startswith(whole) for token in tokens)


if TYPE_CHECKING:
    _: Compiled = CompiledPenalty.of(SwitchPenalty(), Backbone.load(""), "")
    __: Intervention = CompiledPenalty.of(SwitchPenalty(), Backbone.load(""), "").for_row(1)
