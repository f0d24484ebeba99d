"""What to do about a gate's verdict that is no pass."""

from __future__ import annotations

import math
from collections.abc import Sequence

from registry.gate_report import FamilyVerdict, GateReport

GATE_SHARE = 0.15  # of a task's groups; see evaluation.task


def way_out(report: GateReport) -> str | None:
    """One sentence or two for whoever fitted the adapter; None after a pass."""
    if report.verdict == "pass":
        return None
    if report.verdict == "fail":
        failed = [test for test in report.tests if test.verdict == "fail"]
        anew = _fit_anew(failed) or "Fit what passes under every training seed."
        return f"These files stay failed, under any name. {anew} Then publish the new fit."
    if not report.families:
        return "Protect a task that the backbone can do (docs/extending.md says how to ask which), fit again and publish that."
    open_tests = [test for test in report.tests if test.verdict == "inconclusive"]
    if any(test.items_needed is None for test in open_tests):
        return f"More items would not decide it. {_fit_anew(open_tests)} Then publish the new fit."
    again = f"graftline promote {report.subject}"
    if report.stopped != "out of items":
        return f"Nothing is lost: `{again}` goes on from these items (--time-budget-s gives it longer)."
    needed = max(test.items_needed or 0 for test in open_tests)
    return (
        f"There is no fresh item left for {', '.join(test.name for test in open_tests)}. Add rows, some {_rows(needed)} of them, "
        "as 15 % come to the gate; fit again and publish that."
    )


def _rows(items: int) -> int:
    """Of which so many come to the gate split, in tens."""
    return 10 * math.ceil(items / GATE_SHARE / 10)


def _fit_anew(tests: Sequence[FamilyVerdict]) -> str:
    """Of these tests, none of which passed."""
    roles, found = {test.role for test in tests}, []
    if "domain" in roles:
        found.append("Gain more: more rows or steps, a larger scale, another target or method.")
    if roles & {"protected", "pooled"}:
        found.append(
            'Lose less: a lower learning rate, fewer steps, smaller study.scales, method.prompt = "matching", rationales or '
            "kl_weight (docs/methods.md); `graftline tune` searches them."
        )
    if "written" in roles:
        found.append("Loosen the decoding policy (docs/decoding.md).")
    return " ".join(found)
