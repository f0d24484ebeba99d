"""TIP: which tokens begin a thought, when they are penalised, and that the engine does what a plain logits processor does."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import pytest
import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from adapters.backbone import Backbone
from engine.decoding.tip import CompiledPenalty, SwitchPenalty, first_token
from engine.decoding.trace import Trace
from engine.engine import GenerationRequest
from engine.errors import CannotRun
from engine.profile import DecodingPolicy, Profile
from engine.torch_engine import TorchEngine

# What the tiny backbone writes often; each is one token in some of its forms.
WORDS = ("W", "skin", "lin", "En", "Th", "es", "a")
QUESTION = "Start with 12. Add 5."
END = "ses"  # stands in for the answer cue: the tiny backbone comes to write it


@dataclass
class Reference(LogitsProcessor):  # type: ignore[misc]
    """TIP's equation 2 over one row, or its constant or cyclic form, from the whole history at every step."""

    backbone: Backbone
    spaced: set[int]
    bare: set[int]
    alpha: float
    beta: int
    prompt_length: int
    end: str | None = None
    schedule: str = "window"

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        written = input_ids[0, self.prompt_length :].tolist()
        if self.end and self.end in self.backbone.decode(written):
            return scores
        if self.schedule == "cyclic":  # amplitude 6, period 9
            return self.shifted(scores, written, 12 / math.pi * math.asin(math.sin(2 * math.pi * len(written) / 9)))
        start = 0
        for place, token in enumerate(written):
            if token in self.spaced or (token in self.bare and not self.in_word(written[:place])):
                start = place + 1
        return self.shifted(scores, written, -self.alpha) if self.is_on(len(written) - start) else scores

    def is_on(self, since_switch: int) -> bool:
        return self.schedule == "const" or since_switch < self.beta

    def shifted(self, scores: Tensor, written: list[int], shift: float) -> Tensor:
        scores = scores.clone()
        scores[0, list(self.spaced | (set() if self.in_word(written) else self.bare))] += shift
        return scores

    def in_word(self, written: list[int]) -> bool:
        return self.backbone.decode(written)[-1:].isalpha()


@pytest.fixture
def engine(backbone: Backbone) -> Iterator[TorchEngine]:
    engine = TorchEngine(backbone)
    yield engine
    engine.close()


def plain_generate(backbone: Backbone, ids: tuple[int, ...], count: int, *processors: LogitsProcessor) -> tuple[int, ...]:
    """What `generate` of transformers writes greedily."""
    with torch.no_grad():
        found = backbone.model.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            max_new_tokens=count,
            do_sample=False,
            logits_processor=LogitsProcessorList(processors),
            eos_token_id=sorted(backbone.stop_ids),
            pad_token_id=backbone.tokenizer.pad_token_id,
        )
    return tuple(found[0, len(ids) :].tolist())


def form_tokens(backbone: Backbone) -> tuple[set[int], set[int]]:
    """Only the forms that are one token: with the space before, and without."""
    forms = [form for word in WORDS for form in (word, word[0].upper() + word[1:])]
    spaced, bare = ({i for form in forms for i in one(backbone, space + form)} for space in (" ", ""))
    return spaced, bare - spaced


def one(backbone: Backbone, form: str) -> list[int]:
    ids = backbone.encode(form)
    return ids if len(ids) == 1 else []


@pytest.mark.parametrize(
    ("schedule", "alpha", "beta"),
    [("window", 3.0, 600), ("window", 8.0, 4), ("window", 8.0, 1), ("window", 8.0, 0), ("const", 5.0, 0), ("cyclic", 0.0, 0)],
)
def test_the_engine_writes_what_generate_writes_under_a_plain_processor(
    engine: TorchEngine, backbone: Backbone, schedule: Literal["window", "const", "cyclic"], alpha: float, beta: int
) -> None:
    spaced, _ = form_tokens(backbone)
    penalty = SwitchPenalty(schedule=schedule, alpha=alpha, beta=beta, amplitude=6, period=9, words=WORDS)
    assert CompiledPenalty.of(penalty, backbone, END).spaced >= spaced
    engine.load("tip", Profile(policy=DecodingPolicy(tip=penalty, trace_end="never")))
    for question in (QUESTION, "Diagnosis: Cholera"):
        ids = backbone.chat_ids(question)
        compiled = CompiledPenalty.of(penalty, backbone, "never")
        processor = Reference(backbone, set(compiled.spaced), set(compiled.bare), alpha, beta, len(ids), schedule=schedule)
        assert engine.complete([GenerationRequest(ids, "tip", 40)])[0].token_ids == plain_generate(backbone, ids, 40, processor)


def test_the_penalty_is_felt(engine: TorchEngine, backbone: Backbone) -> None:
    spaced, bare = form_tokens(backbone)
    assert spaced and bare
    engine.load("tip", Profile(policy=DecodingPolicy(tip=SwitchPenalty(alpha=30, words=WORDS), trace_end="never")))
    ids = backbone.chat_ids(QUESTION)
    counts = [
        sum(token in spaced for token in engine.complete([GenerationRequest(ids, name, 60)])[0].token_ids)
        for name in (None, "tip")
    ]
    assert counts[0] > counts[1] == 0


def test_the_answer_is_not_penalised(engine: TorchEngine, backbone: Backbone) -> None:
    penalty = SwitchPenalty(alpha=8, words=WORDS)
    compiled = CompiledPenalty.of(penalty, backbone, END)
    ids = backbone.chat_ids(QUESTION)
    begun = tuple(backbone.encode(f"x {END}"))
    engine.load("tip", Profile(policy=DecodingPolicy(tip=penalty, trace_end=END)))
    answered = GenerationRequest(ids, None, 30, begun_ids=begun)
    under, plain = engine.complete([GenerationRequest(ids, "tip", 30, begun_ids=begun), answered])
    assert under.token_ids == plain.token_ids
    processor = Reference(backbone, set(compiled.spaced), set(compiled.bare), 8, 600, len(ids), END)
    whole = plain_generate(backbone, ids, 60, processor)
    assert engine.complete([GenerationRequest(ids, "tip", 60)])[0].token_ids == whole


def test_a_reply_that_has_begun_keeps_its_window(engine: TorchEngine, backbone: Backbone) -> None:
    engine.load("tip", Profile(policy=DecodingPolicy(tip=SwitchPenalty(alpha=8, beta=3, words=WORDS), trace_end="never")))
    ids = backbone.chat_ids(QUESTION)
    whole = engine.complete([GenerationRequest(ids, "tip", 40)])[0].token_ids
    for cut in (1, 5, 17):
        rest = engine.complete([GenerationRequest(ids, "tip", 40 - cut, begun_ids=whole[:cut])])[0].token_ids
        assert rest == whole[cut:]


def test_the_window_opens_again_after_every_switch() -> None:
    penalty = SwitchPenalty(alpha=2, beta=3)
    assert [penalty.shift(place, place) for place in range(5)] == [-2, -2, -2, 0, 0]
    assert penalty.shift(100, 0) == -2 and penalty.shift(100, 3) == 0
    assert SwitchPenalty(schedule="const", alpha=2, beta=3).shift(100, 50) == -2


def test_the_cyclic_wave_rises_falls_and_comes_back() -> None:
    wave = SwitchPenalty(schedule="cyclic", amplitude=5, period=8)
    assert [wave.shift(place, 0) for place in range(9)] == [0, 2.5, 5, 2.5, 0, -2.5, -5, -2.5, 0]


def test_a_piece_that_other_words_begin_with_is_not_penalised(backbone: Backbone) -> None:
    tokens = backbone.tokenizer.get_vocab()
    assert first_token(backbone, " Options") == tokens["\u0120Options"]
    assert backbone.encode("the")[0] in {tokens["t"], tokens["th"]} and first_token(backbone, "the") is None
    assert first_token(backbone, "Vibrio") is None  # V begins anything, whatever else the vocabulary holds
    assert first_token(backbone, "Diagno") == tokens["Diag"]  # what else begins with it begins with all of Diagno


def test_a_form_inside_a_word_is_neither_penalised_nor_a_switch(backbone: Backbone) -> None:
    compiled = CompiledPenalty.of(SwitchPenalty(alpha=1, beta=2, words=("lin",)), backbone, "never")
    bare = backbone.encode("lin")[0]
    assert bare in compiled.bare
    row, trace, logits_V = compiled.for_row(9), Trace(backbone.decode, "never"), torch.zeros(backbone.embeddings.num_embeddings)
    assert row.adjust(logits_V, trace)[bare] == -1

    def take(text: str) -> None:
        (token,) = backbone.encode(text)
        trace.take(token)
        row.take(token, trace)

    take("x")
    assert row.adjust(logits_V, trace)[bare] == 0
    take("lin")  # "xlin": no switch, so the window of 2 is over
    assert row.adjust(logits_V, trace)[backbone.encode(" lin")[0]] == 0
    take("-")
    take("lin")
    assert row.adjust(logits_V, trace)[backbone.encode(" lin")[0]] == -1
    assert not logits_V.any()


def test_a_word_without_a_token_of_its_own_is_refused_at_load_by_its_name(engine: TorchEngine) -> None:
    with pytest.raises(CannotRun, match="`tip`.*'wait'.*Leave that word out"):
        engine.load("tip", Profile(policy=DecodingPolicy(tip=SwitchPenalty(words=("skin", "wait")))))
    assert engine.loaded == ()


@pytest.mark.slow
def test_the_default_words_have_tokens_in_the_built_in_backbone() -> None:
    backbone = Backbone.load("smollm2-135m")
    compiled = CompiledPenalty.of(SwitchPenalty(), backbone, "Answer:")
    forms = {backbone.decode([token]) for token in compiled.spaced | compiled.bare}
    assert forms >= {"wait", " wait", "Wait", "but", " But", " alternatively", "Alternatively"}
    assert "altern" not in forms
