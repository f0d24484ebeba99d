"""The arms of the comparison of methods: what each one fits, or is made of, and what it must beat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from adapters.merge import Combination, IntruderSpec, MergeSpec

SHORT, LONG = 20_000, 80_000  # tokens
SHARED: dict[str, object] = {
    "search": ("method.learning_rate",),  # nothing is searched; what the recipe searches, not every method has
    "ranges": {},
    "start": (),
    "method.steps": 1000,  # the budget ends the fit
    "method.batch_size": 8,
    "method.learning_rate": 4e-4,
    "study.scales": (0.25, 0.5, 1.0),
    "evaluation.domain_items": 200,
    "evaluation.chain_items": 16,
    "evaluation.generated_items": 12,
}
RATIONALE: dict[str, object] = {"method.target": "rationale"}
# Asked openly, the backbone writes no right answer on the domain (0 of 80), and a method that learns from its own right answers
# has none to learn from. It begins from a fit on questions that list four choices, as the published ones do, and goes on there.
FOUR: dict[str, object] = {"method.listed_choices": 4}
MIXED: dict[str, object] = {**FOUR, "method.target": "mixed", "method.learning_rate": 8e-4}
STAR: dict[str, object] = {**FOUR, "method.name": "star"}
SOFT: dict[str, object] = {**RATIONALE, "adapter.kind": "softcot", "method.name": "softcot", "method.learning_rate": 1e-3}
STATIC: dict[str, object] = {**SOFT, "adapter.softcot.static": True}
BOTH: dict[str, object] = {**RATIONALE, "adapter.kind": "lora+softcot"}  # at LoRA's rate, which thoughts bear and LoRA needs
UNLEARNT: dict[str, object] = {**STATIC, "method.learning_rate": 1e-12}  # the places with their unused tokens
CRITIQUE: dict[str, object] = {**RATIONALE, "method.name": "critique"}
ROLLOUTS: dict[str, object] = {**FOUR, "method.group_size": 4, "method.learning_rate": 1e-4}
RLVR: dict[str, object] = {**ROLLOUTS, "method.name": "rlvr"}
ONE: dict[str, object] = {**RLVR, "method.examples": "one", "method.candidates": 4, "method.history_epochs": 2}
RLAG: dict[str, object] = {"method.name": "rlag"}
RLAG_GRPO: dict[str, object] = {**ROLLOUTS, "method.name": "rlag_grpo"}
RLSF: dict[str, object] = {**FOUR, "method.name": "rlsf", "method.learning_rate": 3e-5}
NULL_SPACE: dict[str, object] = {"adapter.lora.init": "null_space", "adapter.lora.freeze_a": True}
GRAPH: dict[str, object] = {"domain": "graph:icd10"}  # fitted and read: the curriculum's own held-out paths
BRANCHED = {"method.num_questions": 1250, "method.num_labelled": 1000}  # so that half of the budget is left to learn
ON_GRAPH = ", on the graph"


@dataclass(frozen=True)
class Made:
    """An adapter that is made of those that other arms fitted, and read as it is. `how` None: one of them, unchanged."""

    of: tuple[str, ...]
    how: MergeSpec | IntruderSpec | None = None


@dataclass(frozen=True)
class Arm:
    """`control` names the arm that this one must beat before a gain is credited to what is particular about it.

    Of several the better one. `per_tokens`: numbers that grow with the budget, one for so many of its tokens. `earlier`: fields
    of the recipe that name an adapter, and the arm that fits it; its tokens come on top of the budget.
    """

    control: str | tuple[str, ...] | None
    values: Mapping[str, object] = field(default_factory=dict)
    per_tokens: Mapping[str, int] = field(default_factory=dict)
    earlier: Mapping[str, str] = field(default_factory=dict)
    made: Made | None = None

    @property
    def controls(self) -> tuple[str, ...]:
        return (self.control,) if isinstance(self.control, str) else self.control or ()

    @property
    def first(self) -> tuple[str, ...]:
        """The arms whose adapters it needs."""
        return self.made.of if self.made else tuple(self.earlier.values())

    def under(self, budget: int) -> dict[str, object]:
        grown = {name: max(1, budget // tokens) for name, tokens in self.per_tokens.items()}
        return {**SHARED, **self.values, **grown, "method.token_budget": budget}


def read(*of: str, how: MergeSpec | IntruderSpec | None = None, on: Mapping[str, object], against: tuple[str, ...] = ()) -> Arm:
    return Arm(against, on, made=Made(of, how))


SFT, CURRICULUM, APART, SPARED = "sft, rationale", "curriculum, sft", "sft, O-LoRA", "sft, null space"
BEGUN, AGAIN = "sft, four choices", "sft, four choices, continued"
TAUGHT = {"adapter.warm_start": BEGUN}
COMBINATIONS: tuple[Combination, ...] = ("cat", "svd", "ties", "dare")
ONE_DOMAIN: dict[str, Arm] = {
    "sft, answer": Arm(None, {}),
    SFT: Arm("sft, answer", RATIONALE),
    "sft, dft": Arm(SFT, {**RATIONALE, "method.loss": "dft"}),
    "sft, weight decay": Arm(SFT, {**RATIONALE, "method.weight_decay": 0.3}),
    "sft, KL on completions": Arm(SFT, {**RATIONALE, "method.kl_weight": 0.2}),
    "sft, KL on replay": Arm(SFT, {**RATIONALE, "method.kl_weight": 0.2, "method.kl_on": "replay"}),
    "sft, replay": Arm(SFT, {**RATIONALE, "method.replay_share": 0.25}),
    "sft, MLP alone": Arm(SFT, {**RATIONALE, "adapter.lora.target_modules": "mlp"}),
    "sft, lower third": Arm(SFT, {**RATIONALE, "adapter.lora.band": "lower"}),
    "sft, rank 4": Arm(SFT, {**RATIONALE, "adapter.lora.rank": 4, "adapter.lora.alpha": 8}),
    SPARED: Arm(SFT, {**RATIONALE, **NULL_SPACE}),
    "softcot": Arm("softcot, static", SOFT),
    "softcot, static": Arm("softcot, nothing learnt", STATIC),
    "softcot, nothing learnt": Arm(None, UNLEARNT),
    "lora+softcot": Arm((SFT, "lora+softcot, static"), BOTH),
    "lora+softcot, static": Arm(SFT, {**BOTH, "adapter.softcot.static": True}),
    "softcot++": Arm("softcot", {**SOFT, "adapter.softcot.num_chains": 4}),
    "rewrite": Arm((SFT, "rewrite, any"), {**RATIONALE, "method.name": "rewrite"}),
    "rewrite, any": Arm(None, {**RATIONALE, "method.name": "rewrite", "method.keep": "any"}),
    "critique": Arm("critique, shuffled", {**CRITIQUE, "method.problems": "both"}),
    "critique, shuffled": Arm(None, {**CRITIQUE, "method.problems": "both", "method.shuffled": True}),
    "criteria": Arm("criteria, plain labels", {"method.name": "criteria", "method.problems": "both"}),
    "criteria, plain labels": Arm(None, {"method.name": "criteria", "method.problems": "both", "method.guided": False}),
    "sdft": Arm("sdft, another's context", {"method.name": "sdft", "method.learning_rate": 1e-4}),
    "sdft, another's context": Arm(None, {"method.name": "sdft", "method.learning_rate": 1e-4, "method.context": "other"}),
    BEGUN: Arm(None, MIXED),
    AGAIN: Arm(BEGUN, MIXED, earlier=TAUGHT),
    "star": Arm(("star, any", AGAIN), STAR, earlier=TAUGHT),
    "star, any": Arm(None, {**STAR, "method.keep": "any"}, earlier=TAUGHT),
    "star, hints": Arm("star", {**STAR, "method.rationalise": True}, earlier=TAUGHT),
    "rlvr": Arm(("rlvr, coin", AGAIN), RLVR, earlier=TAUGHT),
    "rlvr, format": Arm(None, {**RLVR, "method.reward": "format"}, earlier=TAUGHT),
    "rlvr, coin": Arm(None, {**RLVR, "method.reward": "random"}, earlier=TAUGHT),
    "rlvr, one example": Arm("rlvr, one example, format", ONE, earlier=TAUGHT),
    "rlvr, one example, format": Arm(None, {**ONE, "method.reward": "format"}, earlier=TAUGHT),
    "rlag": Arm("rlag, any texts", RLAG),
    "rlag, any texts": Arm(None, {**RLAG, "method.retrieval": "random"}),
    "rlag_grpo": Arm(("rlag_grpo, accuracy alone", AGAIN), RLAG_GRPO, earlier=TAUGHT),
    "rlag_grpo, no literature": Arm(None, {**RLAG_GRPO, "method.literature": "never"}, earlier=TAUGHT),
    "rlag_grpo, accuracy alone": Arm(None, {**RLAG_GRPO, "method.rationality_weight": 0.0}, earlier=TAUGHT),
    "rlsf": Arm(("rlsf, coin", AGAIN), RLSF, BRANCHED, TAUGHT),
    "rlsf, coin": Arm(None, {**RLSF, "method.preferences": "random"}, BRANCHED, TAUGHT),
}
ON_CURRICULUM: dict[str, Arm] = {
    CURRICULUM: Arm("curriculum, answers", {**GRAPH, **RATIONALE}),
    "curriculum, answers": Arm(None, GRAPH),
    "curriculum, critique": Arm("curriculum, critique, shuffled", {**GRAPH, **CRITIQUE, "method.problems": "domain"}),
    "curriculum, critique, shuffled": Arm(None, {**GRAPH, **CRITIQUE, "method.problems": "domain", "method.shuffled": True}),
    "curriculum, rlvr": Arm("curriculum, rlvr, coin", {**GRAPH, **RLVR}),
    "curriculum, rlvr, coin": Arm(None, {**GRAPH, **RLVR, "method.reward": "random"}),
}
# The domain is learnt after the curriculum: by going on from its adapter, or by a second adapter that is added to the first.
CONTINUED: dict[str, Arm] = {
    "continued": Arm(SFT, RATIONALE, earlier={"adapter.warm_start": CURRICULUM}),
    "continued, on the graph": read("continued", on=GRAPH, against=(CURRICULUM,)),
    APART: Arm(SFT, RATIONALE, earlier={"adapter.orthogonal_to": CURRICULUM}),
    "added, O-LoRA": read(CURRICULUM, APART, how=MergeSpec(), on={}, against=("continued",)),
    "added, O-LoRA, on the graph": read(CURRICULUM, APART, how=MergeSpec(), on=GRAPH, against=("continued, on the graph",)),
    "added, null space": read(CURRICULUM, SPARED, how=MergeSpec(), on={}, against=("continued",)),
    "added, null space, on the graph": read(CURRICULUM, SPARED, how=MergeSpec(), on=GRAPH, against=("continued, on the graph",)),
}
COMBINED: dict[str, Arm] = {
    "curriculum, sft, on ICD-10": read(CURRICULUM, on={}),
    "sft, rationale, on the graph": read(SFT, on=GRAPH),
    **{
        f"merge, {how}": read(SFT, CURRICULUM, how=MergeSpec(combination=how), on={}, against=(SFT, "curriculum, sft, on ICD-10"))
        for how in COMBINATIONS
    },
    **{
        f"merge, {how}, on the graph": read(
            SFT, CURRICULUM, how=MergeSpec(combination=how), on=GRAPH, against=(CURRICULUM, "sft, rationale, on the graph")
        )
        for how in COMBINATIONS
    },
    "sft, intruders reduced": read(SFT, how=IntruderSpec(), on={}, against=(SFT,)),
}
ARMS = {**ONE_DOMAIN, **ON_CURRICULUM, **CONTINUED, **COMBINED}
KEPT = frozenset(name for arm in ARMS.values() for name in arm.first)  # whose adapters are kept
# Every method beside its control, the curriculum, a warm start, a merge and the reduction.
MAIN = (
    *("sft, answer", SFT, "softcot", "softcot, static", "rewrite", "star", "star, any", "critique", "critique, shuffled"),
    *("criteria", "criteria, plain labels", "sdft", "sdft, another's context", "rlvr", "rlvr, coin", "rlag", "rlag, any texts"),
    *("rlag_grpo", "rlag_grpo, accuracy alone", "rlsf", "rlsf, coin", AGAIN, CURRICULUM, "curriculum, answers", "continued"),
    *("curriculum, sft, on ICD-10", "merge, cat", "sft, intruders reduced"),
)
# What soft thoughts give alone and beside LoRA, each with the arm whose thoughts do not read the question.
THOUGHTS = (SFT, "softcot", "softcot, static", "softcot, nothing learnt", "lora+softcot", "lora+softcot, static")
TOKENS_PER_S, MEASURED_S = 400.0, 60.0  # of the default backbone on two cores: written and learnt; an arm's reading


def with_earlier(names: Sequence[str]) -> list[str]:
    """The arms with those that they need, which come first."""
    found: dict[str, None] = {}
    for name in names:
        for one in (*with_earlier(ARMS[name].first), name):
            found[one] = None
    return list(found)


def expected_minutes(names: Sequence[str], budget: int) -> float:
    """On two cores, one seed."""
    arms = [ARMS[name] for name in with_earlier(names)]
    return sum(MEASURED_S + (0.0 if arm.made else budget / TOKENS_PER_S) for arm in arms) / 60
