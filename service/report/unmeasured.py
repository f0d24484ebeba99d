"""What is said in place of what was not measured: why, and the command that measures it, ready for a shell."""

from __future__ import annotations

from shlex import quote

from service.report.material import Material
from service.report.section import Missing


def unmeasured(material: Material, told: str, measures: str = "") -> Missing:
    """`measures` of `graftline evaluate`, none for the cheap ones."""
    if material.measured_as is not None:
        return Missing(
            told, f"graftline evaluate {quote(material.measured_as)}" + (f" --measures {measures}" if measures else "")
        )
    if material.release is not None:
        return Missing(f"{told} A router writes no traces: report on the releases that it sends prompts to.")
    named = material.study.name if material.study else material.subject
    return Missing(f"{told} No adapter of it is here to be measured.", f"graftline sweep status {quote(named)}")


def gate_command(material: Material) -> str:
    """What brings the release before its gate."""
    assert material.release is not None
    word = "router promote" if material.release.is_router else "promote"
    return f"graftline {word} {quote(material.release.full_name)}"
