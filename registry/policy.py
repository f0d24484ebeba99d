"""The policy of a name: what its gate asks of every release, whatever the release's own recipe says.

It is set when the name's first release is published and kept at the registered model with all its changes. A promotion may
ask for more; asking for less is a change of the policy, which needs a reason.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, field_validator

from registry.added_tags import add, added
from registry.errors import PolicyRefused
from registry.names import checked_name, unknown_release
from registry.tracking import Tracking

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from registry.gate_report import GateReport
    from registry.manifest import Manifest

POLICY_TAG = "graftline.gate.policy"  # of each change with a number; alone, the list that earlier versions kept
# Families that the gate reads in nats: what evaluation.retention says, without its imports.
IN_NATS = frozenset({"text", "belief"})


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Policy(_Value):
    """Domain, margins, alpha and protected families bind; how items are drawn and for how long is a default.

    `domain` is the task's own name, not its file; None in a policy from before it was kept, which binds to none.
    """

    domain: str | None = None
    protected: tuple[str, ...] = Field(min_length=1)
    margin: float = Field(gt=0, lt=1)
    nats_margin: float = Field(default=0.05, gt=0, lt=1)  # of families in nats per token
    margins: dict[str, float] = Field(default_factory=dict)  # by family, where it differs from these two
    pooled_margin: float | None = Field(default=None, gt=0, lt=1)
    min_domain_gain: float = Field(default=0.0, ge=0, lt=1)
    alpha: float = Field(gt=0, lt=0.5)
    round_items: int = Field(ge=1)
    domain_items: int = Field(ge=1)
    max_rounds: int = Field(ge=1)
    time_budget_s: float = Field(gt=0)
    earlier_domains: bool = True  # what other names serve on the same backbone is protected too
    training_seeds: int = Field(default=1, ge=1)  # fits of the recipe that must pass, the release itself among them
    approvals: int = Field(default=1, ge=1, le=2)  # people that a promotion takes: with 2, another one than who proposed it
    canary_alone: float = Field(default=0.0, ge=0, le=1)  # of the traffic, what one of two people may give a canary that passed

    @field_validator("margins")
    @classmethod
    def _are_losses(cls, value: dict[str, float]) -> dict[str, float]:
        for family, margin in value.items():
            if not 0 < margin < 1:
                raise ValueError(f"a margin lies in (0, 1), but that of {family!r} is {margin}")
        return value

    @classmethod
    def of_manifest(cls, manifest: Manifest) -> Policy | None:
        """From its recipe; None when that says nothing of a gate."""
        gate, protected = manifest.recipe.get("gate"), manifest.recipe.get("protected")
        if not isinstance(gate, dict) or not isinstance(protected, list | tuple):
            return None
        asked = {key: gate[key] for key in gate if key in cls.model_fields}
        return cls.model_validate({"domain": domain_name(manifest.task), "protected": protected, **asked})

    def with_file(self, file: Path) -> Policy:
        """With the values of a TOML file of this class's keys; what it leaves out stays."""
        try:
            return Policy.model_validate({**self.model_dump(), **tomllib.loads(file.read_text())})
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise PolicyRefused(f"A gate's policy is a TOML file, but {file} cannot be read: {error}.") from error
        except ValidationError as error:
            fault = error.errors()[0]
            place = ".".join(map(str, fault["loc"]))
            raise PolicyRefused(
                f"{file} holds keys of a policy ({', '.join(Policy.model_fields)}), but {place!r}: {fault['msg']}. Correct it."
            ) from error

    def margin_of(self, family: str) -> float:
        return self.margins.get(family, self.nats_margin if family in IN_NATS else self.margin)

    def protecting(self, more: Iterable[str]) -> Policy:
        """With these families too: stricter."""
        return self.model_copy(update={"protected": tuple(dict.fromkeys((*self.protected, *more)))})

    def digest(self) -> str:
        return hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()

    def laxer_than(self, other: Policy) -> str | None:
        """Where this asks for less, as "field (its value, the other's value)"; None when it is at least as strict throughout."""
        if other.domain is not None and self.domain != other.domain:
            return f"domain ({self.domain}; the name's is {other.domain})"
        missing = [family for family in other.protected if family not in self.protected]
        if missing:
            return f"protected (without {', '.join(missing)}; the name protects {', '.join(other.protected)})"
        if other.earlier_domains and not self.earlier_domains:
            return "earlier_domains (false; the name's is true)"
        pairs: list[tuple[str, float | None, float | None]] = [
            (f"the margin of {family}", self.margin_of(family), other.margin_of(family)) for family in other.protected
        ]
        pairs += [("pooled_margin", self.pooled_margin, other.pooled_margin), ("alpha", self.alpha, other.alpha)]
        # A least gain is stricter the higher it is, and so is a number of fits.
        pairs.append(("min_domain_gain", -self.min_domain_gain, -other.min_domain_gain))
        pairs.append(("training_seeds", -self.training_seeds, -other.training_seeds))
        pairs.append(("approvals", -self.approvals, -other.approvals))
        pairs.append(("canary_alone", self.canary_alone, other.canary_alone if other.approvals > 1 else None))
        for field, own, bound in pairs:
            if bound is not None and (own is None or own > bound):
                return f"{field} ({'none' if own is None else f'{abs(own):g}'}; the name's is {abs(bound):g})"
        return None


class PolicyChange(_Value):
    """One entry of a name's policies, oldest first; the last one holds."""

    policy: Policy
    actor: str
    reason: str
    created: str  # UTC, ISO 8601


def policies(tracking: Tracking, name: str) -> tuple[PolicyChange, ...]:
    """Every policy that the name ever had; empty before the first."""
    with tracking.client() as client:
        return _stored(client, tracking, name)


def set_policy(tracking: Tracking, name: str, policy: Policy, *, actor: str, reason: str) -> None:
    """Adds the policy after those before it, none of which goes away, whoever adds another one at the same time."""
    with tracking.client() as client:
        _stored(client, tracking, name)  # what cannot be read is said before anything is added to it
        change = PolicyChange(policy=policy, actor=actor, reason=reason, created=datetime.now(UTC).isoformat(timespec="seconds"))
        add(client, name, POLICY_TAG, change.model_dump_json())


def approvals_asked(history: Iterable[PolicyChange], actor: str) -> int:
    """How many people a promotion takes that this one would make: nobody profits from having lowered the number himself.

    Somebody else's change of another value lowers nothing.
    """
    asked = before = 1
    for change in history:
        now = change.policy.approvals
        if now > asked or (now < before and change.actor != actor):
            asked = now
        before = now
    return asked


def canary_alone(history: Iterable[PolicyChange], actor: str) -> float:
    """The share of the traffic that this one may give a canary by himself, by the same rule."""
    alone = 1.0
    for change in history:
        allowed = change.policy.canary_alone if change.policy.approvals > 1 else 1.0
        if allowed < alone or change.actor != actor:
            alone = allowed
    return alone


def refuse_laxer(policy: Policy, bound: Policy, name: str) -> None:
    """PolicyRefused when the policy asks for less than the name's."""
    if (where := policy.laxer_than(bound)) is not None:
        raise PolicyRefused(
            f"A promotion's gate is at least as strict as the policy of {name}, but this one is laxer in {where}. "
            'Keep to the policy, or change it for good with `--gate FILE --reason "..."`, which stays visible.'
        )


def refuse_other_domain(domain: str, bound: Policy, subject: str) -> None:
    """PolicyRefused when a release was fitted to another domain than the one whose gain its name's gate asks for."""
    if bound.domain is not None and domain != bound.domain:
        raise PolicyRefused(
            f"All releases of a name are gated on one domain, but {subject} was fitted to {domain!r} and the name's policy says "
            f"{bound.domain!r}. Publish it under another name: `graftline publish ... --name NAME`."
        )


def policy_of_report(report: GateReport, bound: Policy) -> Policy:
    """The policy that a report was made under; how items were drawn is taken from `bound`."""
    asked = report.settings
    return bound.model_copy(
        update={
            "domain": report.domain.name,
            "protected": (*(test.name for test in report.families), *report.not_measurable),
            "margin": asked.margin,
            "nats_margin": asked.nats_margin,
            "margins": asked.margins,
            "pooled_margin": asked.pooled_margin,
            "min_domain_gain": asked.min_domain_gain,
            "alpha": asked.alpha,
            "training_seeds": 1 + sum(seed.verdict == "pass" for seed in report.seeds),
        }
    )


def domain_name(task: Mapping[str, JsonValue]) -> str | None:
    """The task's own name, where the manifest may name its file."""
    named, definitions = task.get("name"), task.get("definitions")
    defined = definitions.get(str(named)) if isinstance(definitions, dict) else None
    found = defined.get("name", named) if isinstance(defined, dict) else named
    return found if isinstance(found, str) else None


def _stored(client: MlflowClient, tracking: Tracking, name: str) -> tuple[PolicyChange, ...]:
    from mlflow.exceptions import MlflowException

    try:
        tags = client.get_registered_model(checked_name(name)).tags
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise unknown_release(tracking, name) from error
    found = list[PolicyChange]()
    for tag, text in [(POLICY_TAG, tags.get(POLICY_TAG, "[]")), *added(tags, POLICY_TAG)]:
        try:
            told = json.loads(text)
            found.extend(PolicyChange.model_validate(one) for one in (told if tag == POLICY_TAG else [told]))
        except (ValueError, TypeError) as error:
            raise PolicyRefused(
                f"The policies of {name} are JSON in tags of its registered model, but what stands in {tag} cannot be read "
                f"({str(error).splitlines()[0]}). Set the tag back to what it was, or delete it: without any, the next gate "
                "takes the policy of its release's recipe."
            ) from error
    return tuple(found)
