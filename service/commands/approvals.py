"""`graftline approve` and `graftline policy`: the second person's word, and what a name asks of every release."""

from __future__ import annotations

import json
from pathlib import Path

from registry.errors import PolicyRefused
from registry.home import home_directory
from registry.ledger import Ledger
from registry.names import checked_name, current_actor, resolve
from registry.policy import PolicyChange, policies, set_policy
from registry.printable import printable
from registry.tracking import Tracking
from service.audit import AuditLog


def approve(reference: str, reason: str, home: Path | None, tracking_uri: str | None, as_json: bool) -> None:
    place = home_directory(home)
    tracking = Tracking.at(place, tracking_uri).existing()
    named = resolve(tracking, reference)
    with AuditLog(place).by_user("release.approve", str(named), current_actor()) as act:
        recorded = Ledger(tracking, named.name).approve(named.version, reason=reason)
        assert recorded.entry is not None
        act.detail |= {"entry": recorded.number, "proposed_by": recorded.entry.proposed_by, "reason": reason}
    if as_json:
        print(json.dumps({"entry": recorded.number, "release": str(named), "proposed_by": recorded.entry.proposed_by}))
    else:
        by = printable(recorded.entry.proposed_by or "")
        print(f"{named} is the champion of {named.name} (entry {recorded.number}), as {by} proposed")


def policy(name: str, gate_file: Path | None, reason: str, home: Path | None, tracking_uri: str | None, as_json: bool) -> None:
    """Shows the policy of a name, or changes it by a file of some of its keys."""
    place = home_directory(home)
    tracking = Tracking.at(place, tracking_uri).existing()
    history = policies(tracking, checked_name(name))
    if not history:
        raise PolicyRefused(
            f"A name has a policy from its first release that says what it protects, but {name} has none. Publish one, or gate "
            f"one: `graftline promote {name}@VERSION`."
        )
    if gate_file is not None:
        if not reason.strip():
            raise PolicyRefused(f"A change of a policy needs a reason, but none was given for {name}. Pass --reason.")
        asked = history[-1].policy.with_file(gate_file)
        with AuditLog(place).by_user("policy.set", name, current_actor()) as act:
            act.detail |= {"reason": reason, "laxer": asked.laxer_than(history[-1].policy)}
            set_policy(tracking, name, asked, actor=current_actor(), reason=reason.strip())
        history = policies(tracking, name)
    print(history[-1].model_dump_json() if as_json else _described(name, history[-1]))


def _described(name: str, change: PolicyChange) -> str:
    lines = [printable(f"policy of {name}, by {change.actor}, {change.created}: {change.reason}")]
    lines += [f"  {key} = {json.dumps(value)}" for key, value in change.policy.model_dump(mode="json").items()]
    return "\n".join(lines)
