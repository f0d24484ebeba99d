"""How a search of a policy is shown: a table of its trials, and in a sentence what came of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.table import Table

if TYPE_CHECKING:
    from registry.release import Release
    from tuning.decoding.choice import Change, PolicyScore
    from tuning.decoding.study import Found, PolicyStudy
    from tuning.space import Value


def table(study: PolicyStudy, found: Found) -> Table:
    """One row a trial; the last is the chosen one on the items that chose nothing."""
    num_items = len(study.bench.items.choosing[0].examples)
    made = Table(title=f"{study.subject}: {num_items} items of the select split choose, others confirm", title_justify="left")
    compared = list(study.references)
    against = [f"{what}, less {name}" for name in compared for what in ("right", "tokens")]
    for heading in ("trial", "policy", "right", "tokens", *against, "families kept"):
        made.add_column(heading, overflow="fold")
    for trial in found.trials:
        made.add_row(str(trial.number), shown(trial.values), *_cells(trial.score, compared, trial.failure))
    if (last := found.confirmed) is not None:
        made.add_section()
        made.add_row(f"{last.trial.number} again", "on other items", *_cells(last.score, compared))
    return made


def verdict(study: PolicyStudy, found: Found, made: Release | None, where: str) -> str:
    if found.confirmed is None:
        beaten = " and ".join(study.references)
        tolerance = study.settings.tolerance
        said = f"nothing is shown to be better than {beaten} at a tolerance of {tolerance:g}: no version is written"
        scored = next((trial.score for trial in found.trials if trial.score is not None), None)
        faint = [name for name in study.references if scored is not None and not scored.measurable(name, tolerance)]
        if faint:
            said += f" ({' and '.join(faint)}: right no more often than the tolerance, so that fewer tokens show nothing)"
        return said
    chosen = found.confirmed
    number, claimed = chosen.trial.number, ", ".join(f"{claim} than {name}" for name, claim in chosen.claims.items())
    if made is None:
        why = "a protected family lost too much" if not chosen.score.feasible else "that is not shown"
        return f"trial {number} was chosen for {claimed}, but on items that did not choose it {why}: no version is written"
    promote = f"graftline promote {made.full_name}{where}"
    return f"trial {number} is better ({claimed}), on other items too: {made.full_name}; next: {promote}"


def shown(values: Mapping[str, Value]) -> str:
    """The policy in a few words."""
    named = {name: value for name, value in values.items() if "." in name}
    told = ", ".join(f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in named.items())
    return told or str(values.get("policy", ""))


def _cells(score: PolicyScore | None, compared: Sequence[str], failure: str = "") -> list[str]:
    if score is None:
        return ["-", "-", *["-"] * 2 * len(compared), failure]
    changes = [cell for name in compared for cell in _change(score.changes[name])]
    worst = max(score.constraints.items(), key=lambda one: one[1], default=("", -1.0))
    kept = "yes" if score.feasible else f"no: {worst[0]}"
    return [f"{score.accuracy:.3f}", f"{score.tokens:.1f}", *changes, kept]


def _change(change: Change) -> tuple[str, str]:
    (right, *right_ends), (tokens, *token_ends) = change.right, change.tokens
    return (
        f"{right:+.3f} [{right_ends[0]:+.3f}, {right_ends[1]:+.3f}]",
        f"{tokens:+.1f} [{token_ends[0]:+.1f}, {token_ends[1]:+.1f}]",
    )
