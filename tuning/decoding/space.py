"""From a release to what of its policy can be searched, and from drawn values to a profile."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from itertools import combinations

import numpy as np
import optuna

from adapters.backbone import Backbone
from adapters.spec import Range
from adapters.steering import Steering
from engine.decoding.branches import Branches
from engine.decoding.budget import Budget
from engine.decoding.row_policy import refuse_unable
from engine.decoding.tip import SwitchPenalty
from engine.engine import Engine
from engine.errors import CannotRun
from engine.profile import DecodingPolicy, Profile
from evaluation.task import Example
from tuning.decoding.settings import EPS, FIELDS, FRACTIONAL, KINDS, LAYER, USUAL, DecodingSearch
from tuning.decoding.strengths import Steered
from tuning.errors import NotSearchable
from tuning.space import Value

POLICY, OFF = "policy", "off"  # the field that says which kinds are on, and its value where none is
CAP, K = "budget.max_trace_tokens", "branches.num_branches"
PENALTIES = frozenset({"tip", "cyclic"})  # two schedules of one penalty
USUAL_RAMP = 5.0  # logits: an end that was likely at the line's start is then taken before the cap cuts
QUANTILES = (0.25, 0.5, 0.75, 1.0)  # of the replies' lengths under no policy: caps that are tried first
_PROBED = "a part of the policy"


@dataclass(frozen=True)
class DecodingSpace:
    """`kinds` are searched; `left_out` says of a kind or field why it is not. Kinds that are not searched stay as released."""

    released: Profile
    kinds: tuple[str, ...]
    ranges: Mapping[str, Range]
    budget: Budget  # what a searched budget keeps of the answer's tokens
    branches: Branches  # what searched branches keep beside their number
    left_out: Mapping[str, str] = field(default_factory=dict)
    steered: Steered | None = None  # None: no adapter is a steering vector

    @property
    def off(self) -> Profile:
        """The release's adapters under no intervention at all."""
        return replace(self.released, policy=self.released.policy.off)

    @property
    def fields(self) -> list[str]:
        """Those that are drawn; a layer only where there are several."""
        alone = self.steered is None or len(self.steered.layers) < 2
        return [name for kind in self.kinds for name in FIELDS[kind] if name != LAYER or not alone]

    @property
    def choices(self) -> list[str]:
        """Off, and every combination of kinds that can act together."""
        sizes = range(1, len(self.kinds) + 1)
        together = (chosen for size in sizes for chosen in combinations(self.kinds, size) if _act_together(chosen))
        return [OFF, *map("+".join, together)]

    def suggest(self, trial: optuna.Trial) -> dict[str, Value]:
        """Only the fields of the kinds that are on are drawn."""
        chosen = trial.suggest_categorical(POLICY, self.choices)
        values: dict[str, Value] = {POLICY: chosen}
        for name in (name for kind in chosen.split("+") if kind != OFF for name in FIELDS[kind]):
            if name == LAYER:
                values[name] = trial.suggest_categorical(name, list(self.steered.layers if self.steered else ()))
            else:
                mark = self.ranges[name]
                values[name] = (
                    trial.suggest_float(name, mark.low, mark.high, log=mark.log)
                    if name in FRACTIONAL
                    else trial.suggest_int(name, int(mark.low), int(mark.high), log=mark.log)
                )
        return values

    def profile(self, values: Mapping[str, Value]) -> Profile:
        """What is served under these values. DataError where no strength of a vector keeps its bound."""
        on = set(str(values[POLICY]).split("+")) - {OFF}
        if not on:
            return self.off
        policy, given = self.released.policy, _by_part(values)
        searched = {"budget", "minimum"} & set(self.kinds)
        budget = self._budget(on, given.get("budget", {})) if searched else policy.budget
        tip = policy.tip
        if PENALTIES & set(self.kinds):
            tip = SwitchPenalty.model_validate({**self._tip(on), **given["tip"]}) if PENALTIES & on else None
        branches = policy.branches
        if "branches" in self.kinds:
            branches = self.branches.model_copy(update=given["branches"]) if "branches" in on else None
        adapters = self.released.adapters
        if "steering" in on:
            steering = self.steering(values)
            adapters = tuple(steering if isinstance(adapter, Steering) else adapter for adapter in adapters)
        return Profile(adapters, policy.model_copy(update={"tip": tip, "budget": budget, "branches": branches}))

    def steering(self, values: Mapping[str, Value]) -> Steering:
        assert self.steered is not None
        return self.steered.strengths.at(int(values[LAYER]), float(values[EPS]))[0]

    def starts(self, lengths: Sequence[float]) -> list[dict[str, Value]]:
        """Points that are tried before any is drawn: `lengths` are of the replies under no policy."""
        found: list[dict[str, Value]] = []
        if "budget" in self.kinds:
            caps = (int(cap) for cap in np.quantile(lengths, QUANTILES, method="higher"))
            found += [{POLICY: "budget", CAP: cap} for cap in dict.fromkeys(self._within(CAP, cap) for cap in caps)]
        if "tip" in self.kinds:
            usual = {"tip.alpha": SwitchPenalty().alpha, "tip.beta": SwitchPenalty().beta}
            found.append({POLICY: "tip", **{name: self._within(name, value) for name, value in usual.items()}})
        if "cyclic" in self.kinds:
            wave = {"tip.amplitude": SwitchPenalty().amplitude, "tip.period": SwitchPenalty().period}
            found.append({POLICY: "cyclic", **{name: self._within(name, value) for name, value in wave.items()}})
        if "branches" in self.kinds:
            mark = self.ranges[K]
            found += [{POLICY: "branches", K: count} for count in dict.fromkeys((int(mark.low), int(mark.high)))]
        if "ramp" in self.kinds:
            cap = self._within(CAP, int(np.median(lengths)))
            found.append({POLICY: "budget+ramp", CAP: cap, "budget.ramp": self._within("budget.ramp", USUAL_RAMP)})
        if "minimum" in self.kinds:
            least = self._within("budget.min_trace_tokens", int(np.median(lengths)))
            found.append({POLICY: "minimum", "budget.min_trace_tokens": least, "budget.num_ignored_ends": 0})
        if "steering" in self.kinds and self.steered is not None:
            record, mark = self.steered.strengths.released.record, self.ranges[EPS]
            eps = record.eps if record is not None else (mark.low * mark.high) ** 0.5
            near = dict.fromkeys(self._within(EPS, factor * eps) for factor in (0.5, 2.0))
            found += [{POLICY: "steering", EPS: one, LAYER: self.steered.layers[0]} for one in near]
        return found

    def _within(self, name: str, value: Value) -> Value:
        mark = self.ranges[name]
        return type(value)(min(max(float(value), mark.low), mark.high))

    def _tip(self, on: Set[str]) -> dict[str, object]:
        """A searched penalty has the release's words, under the schedule that is on."""
        return {"schedule": "cyclic" if "cyclic" in on else "window", "words": _words(self.released.policy)}

    def _budget(self, on: Set[str], given: Mapping[str, Value]) -> Budget | None:
        """Of the released budget what is not searched stays; a minimum gives way to a cap."""
        found = self.budget.model_dump()
        for kind, fields in ((kind, FIELDS[kind]) for kind in ("budget", "ramp", "minimum")):
            if kind in self.kinds:
                names = [name.partition(".")[2] for name in fields]
                plain = Budget().model_dump() if kind not in on else given
                found |= {name: plain[name] for name in names}
        cap = found["max_trace_tokens"]
        if cap is None:
            found["ramp"] = 0.0
        else:
            found["min_trace_tokens"] = min(found["min_trace_tokens"], cap)
        acts = cap is not None or found["min_trace_tokens"] or found["num_ignored_ends"]
        return Budget.model_validate(found) if acts else None


def searchable(
    settings: DecodingSearch,
    released: Profile,
    engine: Engine,
    backbone: Backbone,
    examples: Sequence[Example],
    subject: str,
    steered: Steered | None = None,
) -> DecodingSpace:
    """Every kind that was asked for and can be run here. NotSearchable where one named in the settings cannot, or none can."""
    budget, left_out = _template(released.policy, backbone, examples), dict[str, str]()
    room = settings.max_new_tokens - budget.max_answer_tokens - len(backbone.encode(f"\n{released.policy.trace_end}"))
    ranges = {name: settings.range_of(name) for kind in KINDS for name in FIELDS[kind] if name != LAYER}
    for name in (CAP, "budget.min_trace_tokens", "tip.beta", "tip.period"):
        ranges[name] = replace(ranges[name], high=max(ranges[name].low, min(ranges[name].high, room)))
    probes = {
        "budget": DecodingPolicy(budget=Budget(max_trace_tokens=1)),
        "ramp": DecodingPolicy(budget=Budget(max_trace_tokens=1, ramp=1.0)),
        "minimum": DecodingPolicy(budget=Budget(min_trace_tokens=1, num_ignored_ends=1)),
        "tip": DecodingPolicy(tip=SwitchPenalty(words=_words(released.policy))),
        "branches": DecodingPolicy(branches=Branches()),
        "cyclic": DecodingPolicy(tip=SwitchPenalty(schedule="cyclic", words=_words(released.policy))),
    }
    for kind, policy in probes.items():
        policy = policy.model_copy(update={"trace_end": released.policy.trace_end})
        if reason := _refusal(engine, Profile(released.adapters, policy)):
            left_out[kind] = reason
    left = f"{settings.max_new_tokens} tokens leave {max(room, 0)} for a trace beside the answer's, and its range begins at"
    for kind, name in (("budget", CAP), ("minimum", "budget.min_trace_tokens")):
        if ranges[name].low > room:
            left_out.setdefault(kind, f"{left} {ranges[name].low:g}")
    if "budget" in left_out:
        left_out.setdefault("ramp", f"it rises towards a searched cap, and of that {left_out['budget']}")
    if ranges[CAP].low > room or not budget.answer_is_line:
        left_out["branches"] = "a branch is a trace and an answer of one line, for which the replies have no room or form"
    if steered is None:
        left_out["steering"] = "the release has no steering vector"
    asked = settings.kinds or USUAL
    kinds = tuple(kind for kind in asked if kind not in left_out)
    refused = [kind for kind in asked if kind in left_out]
    if not kinds or (settings.kinds and refused):
        told = "; ".join(f"{kind}: {left_out[kind].rstrip('.')}" for kind in refused)
        able = ", ".join(kind for kind in KINDS if kind not in left_out) or "nothing"
        raise NotSearchable(f"Of the policy of {subject} can be searched: {able}. That leaves out {told}. Ask for what can be.")
    drawn = {name for kind in kinds for name in FIELDS[kind]}
    if idle := sorted(set(settings.ranges) - drawn):
        raise NotSearchable(
            f"A range is of what is searched ({', '.join(kinds)}), but got one of {', '.join(idle)}. Leave it out."
        )
    named = {kind: reason for kind, reason in left_out.items() if kind in asked}
    if "steering" in kinds and steered is not None and steered.why:
        named[LAYER] = steered.why
    branches = released.policy.branches or Branches(max_trace_tokens=max(room, 1), max_answer_tokens=budget.max_answer_tokens)
    return DecodingSpace(released, kinds, ranges, budget, branches, named, steered)


def steering_of(profile: Profile) -> Steering | None:
    """The vector whose strength can be searched: what a held feature adds depends on the state."""
    return next((adapter for adapter in profile.adapters if isinstance(adapter, Steering) and adapter.hold is None), None)


def _template(policy: DecodingPolicy, backbone: Backbone, examples: Sequence[Example]) -> Budget:
    """The released budget; without one, the default with room for the longest gold answer."""
    if policy.budget is not None:
        return policy.budget
    longest = max(len(backbone.encode(f" {example.answer}")) for example in examples)
    lines = any("\n" in example.answer for example in examples)
    return Budget(max_answer_tokens=max(Budget().max_answer_tokens, longest + 2), answer_is_line=not lines)


def _refusal(engine: Engine, profile: Profile) -> str:
    """Why the engine cannot run the policy on this backbone; empty where it can."""
    try:
        refuse_unable(profile.policy, engine.capabilities, "the engine")
        engine.load(_PROBED, profile)
    except CannotRun as error:
        return str(error)
    engine.unload(_PROBED)
    return ""


def _words(policy: DecodingPolicy) -> tuple[str, ...]:
    return policy.tip.words if policy.tip else SwitchPenalty().words


def _by_part(values: Mapping[str, Value]) -> dict[str, dict[str, Value]]:
    found: dict[str, dict[str, Value]] = {}
    for name, value in values.items():
        part, _, leaf = name.partition(".")
        if leaf:
            found.setdefault(part, {})[leaf] = value
    return found


def _act_together(kinds: Collection[str]) -> bool:
    """A ramp needs the cap that it rises to, and one penalty has one schedule."""
    return not ("ramp" in kinds and "budget" not in kinds) and not set(kinds) >= PENALTIES
