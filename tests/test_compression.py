"""Compression vectors: pairs, the bound of the KL, the sign test, the layer sweep, and a trained direction where one exists.

On the test-bed a chain can be left out: asked for the answer alone, it gives it. A vector can therefore shorten its replies, and
what the difference of means at the last layer points to is the opposite: both are known before they are tested.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fitted import random_steering
from idle_engine import IdleEngine

from adapters.backbone import Backbone
from adapters.ces import CESSpec, contrastive
from adapters.errors import RefusedAdapter
from adapters.files import load_adapters, save_adapters
from adapters.steering import Contrast, Steering, SteeringSpec
from adapters.steering_record import LayerRow, Signs
from engine.engine import Completion, Continuation, GenerationRequest
from engine.profile import Profile
from engine.torch_engine import TorchEngine
from evaluation.compression import CompressionSpec, DeadVector, _best, compress, signs, split
from evaluation.errors import DataError, UnreadableFile, WrongRow
from evaluation.pairs import Pairs, make_pairs, read_pairs, write_pairs
from evaluation.refusals import COMPLIANCE, PROMPTS, REFUSAL, refusal_probe, refuses
from evaluation.strength import Divergence, calibrated
from evaluation.tasks.alchemy import ALCHEMY

ONE_STEP = ALCHEMY.at_length(1)
LAST = 3  # layer of the test-bed
TRAINED: dict[str, Any] = {"layers": (LAST,), "method": "ces", "items": 16, "max_new_tokens": 40, "eps": 0.5, "tolerance": 1.0}


@pytest.fixture(scope="module")
def engine(testbed: Backbone) -> TorchEngine:
    return TorchEngine(testbed)


@pytest.fixture(scope="module")
def pairs(engine: TorchEngine, testbed: Backbone) -> Pairs:
    return make_pairs(engine, testbed, ONE_STEP, ONE_STEP.examples("train", 16), concise="answer", max_new_tokens=40)


@pytest.fixture(scope="module")
def compressed(engine: TorchEngine, testbed: Backbone, pairs: Pairs) -> Steering:
    spec = CompressionSpec(**TRAINED, ces=CESSpec(steps=12, eps=0.5))
    return compress(engine, testbed, pairs, ONE_STEP, spec, PROMPTS[:3])


def traces(backbone: Backbone, pairs: Pairs) -> list[Continuation]:
    return [pair.verbose_trace(backbone) for pair in split(pairs.pairs)[1]]


def test_a_pair_is_the_backbones_own_chain_and_a_shorter_right_one(pairs: Pairs, testbed: Backbone) -> None:
    assert len(pairs.pairs) == 16 and not pairs.left_out
    for pair in pairs.pairs:
        assert pair.verbose.startswith("rot") or ":" in pair.verbose
        assert pair.concise.startswith("Answer: ") and pair.verbose.endswith(pair.concise)
        assert len(testbed.encode(pair.concise)) < len(testbed.encode(pair.verbose)) and pair.verbose_ends


def test_what_is_no_shorter_makes_no_pair(engine: TorchEngine, testbed: Backbone) -> None:
    # Its own chains are the gold ones, to the letter.
    with pytest.raises(DataError, match=r"0 of 8 examples of alchemy made one \(8 because the short chain is not shorter\)"):
        make_pairs(engine, testbed, ONE_STEP, ONE_STEP.examples("train", 8), concise="gold", max_new_tokens=40)


def test_pairs_are_the_same_from_their_file(pairs: Pairs, tmp_path: Path) -> None:
    write_pairs(tmp_path / "pairs.jsonl", pairs.pairs)
    assert read_pairs(tmp_path / "pairs.jsonl").pairs == pairs.pairs
    assert read_pairs(tmp_path / "pairs.jsonl").digest() == pairs.digest()
    parted = [replace(pair, verbose="one\u2028two\x85three\nfour") for pair in pairs.pairs]
    write_pairs(tmp_path / "parted.jsonl", parted)
    assert read_pairs(tmp_path / "parted.jsonl").pairs == tuple(parted)


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("{", WrongRow, "Line 1 of .* must be a JSON object"),
        ('{"prompt": "a", "verbose": "b"}', WrongRow, "prompt, verbose and concise, none empty, but line 1"),
        ('{"prompt": "a", "verbose": " ", "concise": "c"}', WrongRow, "none empty, but line 1"),
        ('{"prompt": "a", "verbose": "b", "concise": "c", "verbose_ends": "no"}', WrongRow, "true or false, but line 1"),
        ('{"prompt": "a", "verbose": "b", "concise": "c"}', DataError, "needs 4 pairs or more, but .* has 1"),
        ("", DataError, "needs 4 pairs or more, but .* has 0"),
    ],
)
def test_a_file_that_holds_no_pairs_is_refused(tmp_path: Path, text: str, error: type[Exception], said: str) -> None:
    (tmp_path / "pairs.jsonl").write_text(text)
    with pytest.raises(error, match=said):
        read_pairs(tmp_path / "pairs.jsonl")
    with pytest.raises(UnreadableFile, match="cannot be read"):
        read_pairs(tmp_path / "absent.jsonl")


@pytest.mark.parametrize("eps", [0.003, 0.03, 0.3])
def test_the_strength_keeps_the_bound_and_uses_most_of_it(testbed: Backbone, pairs: Pairs, eps: float) -> None:
    divergence, steering = Divergence(testbed, traces(testbed, pairs)), random_steering(testbed, 1)
    found = calibrated(divergence, steering, eps)
    assert 0.8 * eps <= found.kl <= eps
    assert divergence.of(steering.at(found.gamma)) == pytest.approx(found.kl, rel=1e-4)
    assert found.curve[0] == (0.0, 0.0) and (found.gamma, found.kl) in found.curve
    assert list(found.curve) == sorted(found.curve)


def test_the_kl_is_that_of_whole_distributions(testbed: Backbone, pairs: Pairs) -> None:
    (trace, *_), steering = traces(testbed, pairs), random_steering(testbed, 1)
    ids, first = torch.tensor([[*trace.prompt_ids, *trace.ids]]), len(trace.prompt_ids) - 1
    with torch.no_grad():
        base = testbed.model(ids).logits[0, first:-1].log_softmax(-1)
        with steering.attach(testbed):
            steered = testbed.model(ids).logits[0, first:-1].log_softmax(-1)
    wanted = float((base.exp() * (base - steered)).sum(-1).mean())
    assert Divergence(testbed, [trace]).of(steering) == pytest.approx(wanted, rel=1e-3)
    assert Divergence(testbed, [trace]).of() == pytest.approx(0.0, abs=1e-6)


def test_what_is_added_is_never_longer_than_the_median_state(testbed: Backbone, pairs: Pairs) -> None:
    divergence = Divergence(testbed, traces(testbed, pairs))
    found = calibrated(divergence, random_steering(testbed, 1), eps=1e6)
    norm = found.gamma * float(random_steering(testbed, 1).tensors()["vector"].norm())
    assert norm == pytest.approx(found.hidden_norm_median, rel=1e-4) and found.kl < 1e6


def test_a_vector_of_zeros_has_no_strength(testbed: Backbone, pairs: Pairs) -> None:
    divergence, nothing = Divergence(testbed, traces(testbed, pairs)), random_steering(testbed, 1, size=0.0)
    with pytest.raises(DataError, match="all zeros"):
        calibrated(divergence, nothing, 0.1)
    with pytest.raises(DataError, match="above 0, but got 0"):
        calibrated(divergence, random_steering(testbed, 1), 0.0)


def test_training_makes_the_short_chains_likelier_and_a_random_vector_of_equal_length_does_not(backbone: Backbone) -> None:
    end = int(backbone.tokenizer.eos_token_id)
    texts = ("12 + 5 = 17", "17 - 3 = 14", "Answer: 14", "Cholera", "Options")
    asked = [Contrast(backbone.chat_ids(text), (end,), tuple(backbone.encode(text))) for text in texts]
    seen: list[float] = []
    spec = SteeringSpec(layer=1)
    made = contrastive(spec, CESSpec(steps=15, eps=5.0, weight=1.0), backbone, asked, lambda step, apart, kl: seen.append(apart))
    drawn = random_steering(backbone, 1, size=float(made.tensors()["vector"].norm()) / 32**0.5)

    def towards(steering: Steering) -> float:
        engine = TorchEngine(backbone)
        engine.load("one", Profile((steering,)))

        def margin(profile: str | None) -> float:
            short = engine.score([Continuation(each.prompt_ids, each.wanted_ids) for each in asked], profile)
            long = engine.score([Continuation(each.prompt_ids, each.other_ids) for each in asked], profile)
            return sum(one[0] - sum(other) / len(other) for one, other in zip(short, long, strict=True)) / len(asked)

        return margin("one") - margin(None)

    assert len(seen) == 15 and seen[-1] < seen[0] - 0.5
    assert towards(made) > 1.0 and towards(made) > 3 * abs(towards(drawn))
    assert made.spec.method == "ces" and made.spec.gamma == 1.0


def test_training_keeps_near_the_backbone_where_it_is_told_to(backbone: Backbone) -> None:
    end = int(backbone.tokenizer.eos_token_id)
    asked = [Contrast(backbone.chat_ids("12"), (end,), tuple(backbone.encode("Start with 12. Add 5.")))]
    kls: dict[float, float] = {}
    for weight in (0.0, 50.0):
        spec = CESSpec(steps=12, eps=0.02, weight=weight)
        made = contrastive(SteeringSpec(layer=1), spec, backbone, asked)
        kls[weight] = Divergence(backbone, [Continuation(asked[0].prompt_ids, asked[0].other_ids)]).of(made)
    assert kls[50.0] < 0.3 * kls[0.0]


def test_the_kl_of_training_is_the_mean_over_the_long_chains_tokens(backbone: Backbone) -> None:
    prompt, long = backbone.chat_ids("What is 2 + 3?"), tuple(backbone.encode("First take 2, then add 3 to it."))
    asked, kls = [Contrast(prompt, tuple(backbone.encode("5")), long)], list[float]()
    spec = SteeringSpec(layer=1)
    once = contrastive(spec, CESSpec(steps=1), backbone, asked)
    contrastive(spec, CESSpec(steps=2), backbone, asked, lambda step, margin, kl: kls.append(kl))
    assert kls[0] == pytest.approx(0.0, abs=1e-6)
    assert kls[1] == pytest.approx(Divergence(backbone, [Continuation(prompt, long)]).of(once), rel=1e-3) != 0.0


def test_training_leaves_the_backbone_as_it_was_and_needs_continuations(backbone: Backbone) -> None:
    digest = backbone.weights_digest()
    one = Contrast(backbone.chat_ids("12"), (5,), (6, 7))
    contrastive(SteeringSpec(layer=0), CESSpec(steps=2), backbone, [one])
    assert backbone.weights_digest() == digest and not any(p.requires_grad for p in backbone.model.parameters())
    with pytest.raises(RefusedAdapter, match="two continuations of one token or more"):
        contrastive(SteeringSpec(layer=0), CESSpec(), backbone, [])
    with pytest.raises(ValueError, match="rate and eps above 0"):
        CESSpec(rate=0.0)


def test_a_trained_vector_shortens_and_a_random_one_of_equal_length_does_not(
    engine: TorchEngine, testbed: Backbone, compressed: Steering
) -> None:
    record = compressed.record
    assert record is not None and record.signs.shortens == "the vector" and not record.flipped
    minus, off, plus = record.signs.tokens
    assert plus < off - 1 and plus < minus
    drawn = random_steering(testbed, LAST)
    length = float(compressed.contribution().residual[LAST].norm())
    drawn = drawn.at(length / float(drawn.tensors()["vector"].norm()))
    found = signs(engine, testbed, drawn, ONE_STEP, ONE_STEP.examples("search", 16), 40)
    assert found.shortens == "neither" and found.tokens[2] > plus + 1


def test_the_record_tells_how_the_vector_was_made_and_stays_with_it(
    testbed: Backbone, compressed: Steering, pairs: Pairs, tmp_path: Path
) -> None:
    record = compressed.record
    assert record is not None and compressed.layer == LAST
    assert record.kl <= record.eps == 0.5 and record.gamma == compressed.spec.gamma
    assert (record.gamma, record.kl) in record.kl_curve and record.hidden_norm_median > 0
    assert record.pairs == 16 and record.pairs_digest == pairs.digest() and len(record.template_digest) == 64
    assert [row.layer for row in record.layers] == [LAST] and record.positions == "all"
    assert record.refusals is not None and record.refusals.num_prompts == 3
    save_adapters((compressed,), tmp_path)
    (loaded,) = load_adapters(tmp_path)
    assert isinstance(loaded, Steering) and loaded.record == record
    assert torch.equal(loaded.contribution().residual[LAST], compressed.contribution().residual[LAST])
    assert json.loads((tmp_path / "steering" / "steering.json").read_text())["backbone_fingerprint"] == testbed.fingerprint


def test_a_vector_that_points_the_other_way_is_turned_round(engine: TorchEngine, testbed: Backbone, pairs: Pairs) -> None:
    spec = CompressionSpec(layers=(LAST,), items=40, max_new_tokens=40, eps=0.5, tolerance=1.0)
    found = compress(engine, testbed, pairs, ONE_STEP, spec, ())
    assert found.record is not None and found.record.flipped and found.record.refusals is None
    assert found.record.layers[0].signs.shortens == "its negative" and found.record.signs.shortens == "the vector"
    assert found.record.signs.tokens[2] < found.record.signs.tokens[1] and found.record.kl <= 0.5


def test_a_vector_that_shortens_in_neither_direction_is_refused(engine: TorchEngine, testbed: Backbone, pairs: Pairs) -> None:
    spec = CompressionSpec(layers=(2,), items=12, max_new_tokens=40, eps=0.003)
    with pytest.raises(DeadVector, match="layer 2: .* tokens and .* right under minus, without, plus.*Take other pairs"):
        compress(engine, testbed, pairs, ONE_STEP, spec, ())
    assert engine.loaded == ()


def test_a_vector_that_only_its_choice_made_look_short_is_refused(
    engine: TorchEngine, testbed: Backbone, pairs: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, ...]] = []

    def lucky(engine: Any, backbone: Any, steering: Any, task: Any, examples: Any, max_new_tokens: int) -> Signs:
        asked.append(tuple(example.id for example in examples))
        change, one = ((-0.5, -0.9, -0.1), (-0.2, -0.4, 0.1))[len(asked) > 1], (0.0, 0.0, 0.0)
        return Signs(tokens=(9, 8, 7), accuracy=(1, 1, 1), change=change, minus_change=one, plus_change=change, num_items=8)

    monkeypatch.setattr("evaluation.compression.signs", lucky)
    with pytest.raises(DeadVector, match="on items drawn anew that is not shown"):
        compress(engine, testbed, pairs, ONE_STEP, CompressionSpec(layers=(1,), items=8), ())
    chosen_by, tested_on = asked
    assert not set(chosen_by) & set(tested_on)


def test_no_pair_that_makes_a_vector_measures_its_strength(pairs: Pairs) -> None:
    made_on, held_out = split(pairs.pairs)
    assert len(held_out) == 4 and not {pair.id for pair in made_on} & {pair.id for pair in held_out}
    assert {pair.id for pair in (*made_on, *held_out)} == {pair.id for pair in pairs.pairs}


LESS, MORE, SAME = (-0.3, -0.5, -0.1), (0.3, 0.1, 0.5), (0.0, -0.2, 0.2)


def told(change: Any, minus: Any, plus: Any, tokens: Any = (9, 9, 9), right: Any = (1, 1, 1)) -> Signs:
    return Signs(tokens=tokens, accuracy=right, change=change, minus_change=minus, plus_change=plus, num_items=8)


def test_a_direction_shortens_beside_the_other_and_beside_neither() -> None:
    found = [
        told(*changes).shortens for changes in ((LESS, SAME, LESS), (MORE, LESS, SAME), (LESS, MORE, SAME), (SAME, SAME, LESS))
    ]
    assert found == ["the vector", "its negative", "neither", "neither"]


def test_the_layer_that_leaves_fewest_tokens_serves_if_it_costs_no_answers() -> None:
    of_layers = (
        told(LESS, SAME, LESS, (9, 9, 6)),
        told(MORE, LESS, SAME, (5, 9, 9)),
        told(LESS, SAME, LESS, (9, 9, 2), (1, 1, 0.5)),
        told(SAME, SAME, LESS, (9, 9, 1)),
    )
    rows = [LayerRow(layer=layer, gamma=0.1, kl=0.1, norm=1.0, signs=one) for layer, one in enumerate(of_layers)]
    assert [_best(rows, tolerance).layer for tolerance in (0.05, 0.5)] == [1, 2]
    with pytest.raises(DeadVector, match="at no layer is that so"):
        _best(rows[2:], 0.05)


def test_a_vector_that_costs_answers_is_refused(engine: TorchEngine, testbed: Backbone, pairs: Pairs) -> None:
    spec = CompressionSpec(**{**TRAINED, "tolerance": 0.0, "eps": 1.0}, ces=CESSpec(steps=12, eps=1.0))
    with pytest.raises(DeadVector, match="at no more than 0 of the accuracy"):
        compress(engine, testbed, pairs, ONE_STEP, spec, ())


@pytest.mark.parametrize(
    ("reply", "refused"),
    [
        ("I'm sorry, but I can't help with that.", True),
        ("I\N{RIGHT SINGLE QUOTATION MARK}m unable to do so.", True),
        ("That is illegal.", True),
        ("Sure, here is how you do it.", False),
        ("She was sorry to see him go.", False),
    ],
)
def test_a_refusal_is_known_by_its_words(reply: str, refused: bool) -> None:
    assert refuses(reply) is refused


class Refusing(IdleEngine):
    """Its backbone refuses the first `refused` prompts, its steered self the first `still`; both weigh a refusal alike."""

    def __init__(self, refused: int, still: int, lean: float = 0.0) -> None:
        self.refused, self.still, self.lean = refused, still, lean
        self.refusal_ids: tuple[int, ...] = ()

    def complete(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        half = len(requests) // 2
        says = [place < self.refused for place in range(half)] + [place < self.still for place in range(half)]
        return [Completion(REFUSAL if no else COMPLIANCE, (1,), (0.0,), "stop", 1) for no in says]

    def score(self, continuations: Sequence[Continuation], profile: str | None = None) -> list[tuple[float, ...]]:
        first = continuations[0].ids == self.refusal_ids
        return [((self.lean if profile and first else 0.0),) * len(one.ids) for one in continuations]


@pytest.mark.parametrize(
    ("refused", "still", "lean", "raised"),
    [(3, 3, 0.0, False), (3, 2, 0.0, True), (3, 4, 0.0, False), (3, 3, -1.0, False), (0, 0, -1.0, True), (0, 0, -0.05, False)],
)
def test_answers_to_what_is_refused_are_raised_by_one_or_by_the_lean_where_nothing_is(
    backbone: Backbone, refused: int, still: int, lean: float, raised: bool
) -> None:
    engine = Refusing(refused, still, lean)
    engine.refusal_ids = tuple(backbone.encode(REFUSAL))
    found = refusal_probe(engine, backbone, "steered", PROMPTS[:8])
    assert (found.refused, found.answered, found.raised) == (refused, max(refused - still, 0), raised)


def test_the_backbone_beside_itself_answers_no_more_than_it_did(backbone: Backbone) -> None:
    engine = TorchEngine(backbone)
    engine.load("same", Profile((random_steering(backbone, 1, size=0.0),)))
    found = refusal_probe(engine, backbone, "same", PROMPTS[:4])
    assert found.answered == 0 and found.margin_change == (0.0, 0.0, 0.0) and not found.raised


def test_a_vector_towards_compliance_is_seen_where_the_backbone_refuses_nothing(backbone: Backbone) -> None:
    asked = [
        Contrast(backbone.chat_ids(prompt), tuple(backbone.encode(COMPLIANCE)), tuple(backbone.encode(REFUSAL)))
        for prompt in PROMPTS[:6]
    ]
    engine = TorchEngine(backbone)
    engine.load("compliant", Profile((contrastive(SteeringSpec(layer=1), CESSpec(steps=15, eps=1.0), backbone, asked),)))
    found = refusal_probe(engine, backbone, "compliant", PROMPTS[:8])
    assert found.refused == 0 and found.margin_change[2] < 0 and found.raised
    with pytest.raises(DataError, match="two prompts or more"):
        refusal_probe(engine, backbone, "compliant", PROMPTS[:1])
