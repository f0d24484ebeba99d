"""The sections of a report, in the order of the page. A section is a function from the material; a line here adds one."""

from __future__ import annotations

from collections.abc import Callable

from service.report.material import Material
from service.report.section import Section
from service.report.sections.budget import budget
from service.report.sections.calibration import calibration
from service.report.sections.dependence import dependence
from service.report.sections.forgetting import forgetting
from service.report.sections.influence import influence
from service.report.sections.pareto import pareto
from service.report.sections.provenance import provenance
from service.report.sections.retention import retention
from service.report.sections.staircase import staircase

SECTIONS: tuple[Callable[[Material], Section], ...] = (
    retention,
    pareto,
    staircase,
    dependence,
    budget,
    calibration,
    forgetting,
    influence,
    provenance,
)
