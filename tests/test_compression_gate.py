"""What a compression must show: its own bound, no more answers to what is refused, and more than a token cap gives."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from fitted import fitted_lora, random_steering

from adapters.adapter import Adapter
from adapters.backbone import TESTBED, Backbone
from adapters.ces import CESSpec, contrastive
from adapters.steering import Contrast, Steering, SteeringSpec
from adapters.steering_record import Refusals, Signs, SteeringRecord
from engine.decoding.budget import Budget
from engine.decoding.tracing import Tracing
from engine.profile import DecodingPolicy, Profile
from engine.torch_engine import TorchEngine
from evaluation.cap_curve import AboveCap, Point, above_cap, at_tokens, cap_points, written_point
from evaluation.evaluate import Planned, evaluate
from evaluation.refusals import COMPLIANCE, PROMPTS, REFUSAL, digest_of
from evaluation.tasks import TASKS
from evaluation.tasks.alchemy import ALCHEMY
from evaluation.tasks.generated import HELD_OUT_LENGTHS
from evaluation.written_answer import WrittenAnswer
from registry.errors import PromotionRefused
from registry.manifest import read_manifest
from tuning import compression_gate, gating
from tuning.compression_gate import DomainTest, check_steering
from tuning.gating import Subject, gate, gate_settings
from tuning.manifest import complete
from tuning.plan import DOMAIN_MEASURE
from tuning.recipe import Recipe

LAST = 3  # layer of the test-bed


@pytest.fixture(scope="module")
def engine(testbed: Backbone) -> TorchEngine:
    return TorchEngine(testbed)


@pytest.fixture
def compression() -> Recipe:
    return Recipe(
        name="concise",
        backbone=str(TESTBED),
        domain="alchemy",
        protected=("arithmetic",),
        adapter={"kind": "steering"},  # type: ignore[arg-type]
        method={"name": "compression", "max_new_tokens": 64},  # type: ignore[arg-type]
        gate={"round_items": 8, "max_rounds": 1, "domain_items": 8, "earlier_domains": False},  # type: ignore[arg-type]
    )


def with_bound(steering: Steering, eps: float) -> Steering:
    flat: Any = {"tokens": (1, 1, 1), "accuracy": (1, 1, 1), "num_items": 8}
    none = (0.0, 0.0, 0.0)
    record = SteeringRecord(
        eps=eps,
        gamma=steering.spec.gamma,
        kl=eps,
        kl_curve=((0.0, 0.0),),
        kl_tokens=1,
        hidden_norm_median=1.0,
        signs=Signs(**flat, change=none, minus_change=none, plus_change=none),
        flipped=False,
        layers=(),
        pairs=4,
        pairs_digest="0" * 64,
        template_digest="0" * 64,
    )
    return steering.recorded(record)


def test_between_two_caps_the_curve_is_the_best_draw_between_any() -> None:
    caps = {0: Point((0.0, 0.0), (2.0, 2.0)), 8: Point((1.0, 0.0), (6.0, 6.0)), 16: Point((1.0, 1.0), (14.0, 22.0))}
    assert at_tokens(caps, 4.0) == Point((0.5, 0.0), (4.0, 4.0))
    assert at_tokens(caps, 1.0) == caps[0] and at_tokens(caps, 99.0) == caps[16]
    assert at_tokens(caps, 12.0) == Point((1.0, 0.5), (10.0, 14.0))


def test_half_a_trace_that_is_worse_than_none_is_not_on_the_curve() -> None:
    caps = {0: Point((1.0, 0.0), (2.0, 2.0)), 8: Point((0.0, 0.0), (10.0, 10.0)), 16: Point((1.0, 1.0), (18.0, 18.0))}
    assert at_tokens(caps, 10.0) == Point((1.0, 0.5), (10.0, 10.0))
    between = Point((1.0, 0.0), (10.0, 10.0))  # above the cap of as many tokens, and no better than none at all
    assert above_cap(between, caps, ["a", "b"]).mean == -0.25


def test_what_is_a_cap_itself_is_not_above_the_curve_and_what_is_right_sooner_is() -> None:
    right = tuple(float(number % 2) for number in range(24))
    caps = {0: Point((0.0,) * 24, (2.0,) * 24), 8: Point(right, (10.0,) * 24), 16: Point((1.0,) * 24, (18.0,) * 24)}
    clusters = [str(number) for number in range(24)]
    assert above_cap(caps[8], caps, clusters).per_item == (0.0,) * 24
    sooner, later = Point((1.0,) * 24, (10.0,) * 24), Point(right, (18.0,) * 24)
    assert above_cap(sooner, caps, clusters).low > 0 > above_cap(later, caps, clusters).high


def test_a_cap_that_is_never_reached_changes_nothing_and_no_trace_leaves_no_answer(
    engine: TorchEngine, testbed: Backbone
) -> None:
    examples = ALCHEMY.at_length(2).examples("select", 8)
    caps, off = cap_points(engine, testbed, ALCHEMY, examples, 64), written_point(engine, testbed, None, ALCHEMY, examples, 64)
    assert off.accuracy == 1.0 and caps[64] == off == caps[48] and caps[0].accuracy < 0.5
    means = [point.mean_tokens for point in caps.values()]
    assert means == sorted(means) and means[0] < means[-1] / 2
    # As a policy writes it, whose forced cue is counted too.
    engine.load("capped", Profile(policy=DecodingPolicy(budget=Budget(max_trace_tokens=8))))
    assert caps[8] == written_point(engine, testbed, "capped", ALCHEMY, examples, 64)
    engine.unload("capped")


def test_the_backbone_beside_itself_lies_on_its_own_curve(engine: TorchEngine, testbed: Backbone) -> None:
    engine.load("same", Profile((random_steering(testbed, LAST, size=0.0),)))
    measure, examples = AboveCap(max_new_tokens=64), ALCHEMY.at_length(2).examples("select", 8)
    row = evaluate(engine, testbed, "same", [Planned(measure, ALCHEMY, examples, "domain")]).rows[0]
    assert row.adapted.mean == 1.0 and measure.against(row.base, row.adapted) == row.adapted.values == (1.0,) * 8
    engine.unload("same")


def test_a_vector_is_asked_on_hard_items_a_policy_by_what_it_writes_and_any_other_fit_as_before(
    compression: Recipe, testbed: Backbone
) -> None:
    fitted = Profile((random_steering(testbed, LAST),))
    asked = DomainTest.of(compression, TASKS["boxes"], fitted)
    assert isinstance(asked.measure, AboveCap) and asked.measure.max_new_tokens == 64
    assert {asked.task.length(example.id) for example in asked.task.examples("gate", 12)} == set(HELD_OUT_LENGTHS)  # type: ignore[attr-defined]
    assert DomainTest.of(compression, TASKS["icd10"], fitted).task is TASKS["icd10"]
    plain, capped = Recipe(name="x", domain="icd10"), DecodingPolicy(budget=Budget(max_trace_tokens=9))
    assert isinstance(DomainTest.of(plain, TASKS["icd10"], fitted).measure, AboveCap)
    assert DomainTest.of(plain, TASKS["icd10"], Profile(policy=capped)).measure == WrittenAnswer()
    lora = fitted_lora(testbed, 1)
    for policy, written in ((DecodingPolicy(), None), (DecodingPolicy(tracing=Tracing()), None), (capped, WrittenAnswer())):
        asked = DomainTest.of(plain, TASKS["icd10"], Profile((lora,), policy))
        assert (asked.measure.name, asked.written) == (DOMAIN_MEASURE, written)


def refused(engine: TorchEngine, backbone: Backbone, recipe: Recipe, *adapters: Adapter) -> str:
    try:
        check_steering(Profile(adapters), recipe, engine, backbone, ALCHEMY.at_length(1), "concise@1")
    except PromotionRefused as error:
        return str(error)
    finally:
        assert engine.loaded == ()
    return ""


def test_a_vector_that_breaks_its_own_bound_on_fresh_traces_is_not_gated(
    engine: TorchEngine, testbed: Backbone, compression: Recipe
) -> None:
    strong = random_steering(testbed, 1, size=1.0)
    assert "keeps the KL that it was made under, 1e-05 nats a token" in refused(
        engine, testbed, compression, with_bound(strong, 1e-5)
    )
    assert "KL" not in refused(engine, testbed, compression, with_bound(strong, 10.0))
    assert refused(engine, testbed, compression, with_bound(random_steering(testbed, 1, size=0.0), 1e-5)) == ""
    assert refused(engine, testbed, compression) == ""
    # What overflows has no KL, which is not a KL within the bound.
    assert "has nan on 16 fresh traces" in refused(
        engine, testbed, compression, with_bound(random_steering(testbed, 1, size=math.inf), 10.0)
    )


def test_a_vector_towards_compliance_is_not_gated(engine: TorchEngine, testbed: Backbone, compression: Recipe) -> None:
    asked = [
        Contrast(testbed.chat_ids(text), tuple(testbed.encode(COMPLIANCE)), tuple(testbed.encode(REFUSAL)))
        for text in PROMPTS[:6]
    ]
    made = contrastive(SteeringSpec(layer=LAST), CESSpec(steps=12, eps=2.0), testbed, asked)
    assert "does not raise answers to what the backbone refuses" in refused(engine, testbed, compression, made)


@pytest.mark.parametrize(("of_usual", "of_own"), [(1, 0), (0, 1)])
def test_harmless_prompts_of_one_s_own_do_not_stand_in_for_the_usual_ones(
    of_usual: int,
    of_own: int,
    engine: TorchEngine,
    testbed: Backbone,
    compression: Recipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file, made = tmp_path / "prompts.txt", with_bound(random_steering(testbed, 1, size=0.0), 1.0)
    file.write_text("How are you?\nWhat is new?")
    recipe, answered = compression.with_values({"method.refusal_prompts": str(file)}), {PROMPTS: of_usual}

    def probe(engine: object, backbone: object, profile: str, prompts: tuple[str, ...]) -> Refusals:
        told, flat = answered.get(prompts, of_own), (0.0, 0.0, 0.0)
        return Refusals(num_prompts=2, refused=2, answered=told, margin_change=flat, prompts_digest=digest_of(prompts))

    monkeypatch.setattr(compression_gate, "refusal_probe", probe)
    assert "answers 1 of 2 such prompts" in refused(engine, testbed, recipe, made)


def test_the_gate_asks_the_refusal_prompts_that_the_vector_was_made_with(
    engine: TorchEngine, testbed: Backbone, compression: Recipe, tmp_path: Path
) -> None:
    file, made = tmp_path / "prompts.txt", with_bound(random_steering(testbed, 1, size=0.0), 1.0)
    file.write_text("\n".join(PROMPTS[:2]))
    recipe, flat = compression.with_values({"method.refusal_prompts": str(file)}), (0.0, 0.0, 0.0)
    known = Refusals(num_prompts=2, refused=0, answered=0, margin_change=flat, prompts_digest=digest_of(PROMPTS[:2]))
    assert made.record is not None
    asked = made.recorded(made.record.model_copy(update={"refusals": known}))
    assert refused(engine, testbed, recipe, asked) == ""
    file.write_text("How are you?\nWhat is new?")
    assert "holds others than when that of concise@1 was made. Put the 2 of then back" in refused(engine, testbed, recipe, asked)


def test_the_gate_compares_a_compression_with_the_cap_curve(
    engine: TorchEngine, testbed: Backbone, compression: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gating, "_measurable", lambda *_: ({}, {"arithmetic": "this backbone knows alchemy alone"}))
    same = random_steering(testbed, LAST, size=0.0)
    complete(tmp_path / "out", compression, testbed, Profile((same,)), 1.0, ALCHEMY.examples("train", 8))
    subject = Subject("concise@1", tmp_path / "out", read_manifest(tmp_path / "out"))
    report = gate(subject, engine, testbed, gate_settings(compression), tmp_path / "cache", seed=5)
    (test,) = report.tests
    assert (test.role, test.name, test.num_items) == ("domain", "alchemy", 8)
    # What changes nothing lies on the curve, however many of the hard items it does: it gains nothing.
    assert test.change == 0.0 and report.verdict != "pass"
