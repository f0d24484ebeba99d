"""How a dry run is shown: what one trial and the whole sweep will take."""

from __future__ import annotations

from rich.console import Group
from rich.table import Table
from rich.text import Text

from service.clock import clock
from service.sweep_view import settings_text
from tuning.budget import money
from tuning.estimate import Band, Estimate, Timing


def estimate_view(found: Estimate, name: str, corner: dict[str, object]) -> Group:
    table = Table(title=f"{name}: {found.trials} trials on {found.workers} worker(s)", title_justify="left")
    for heading in ("", "expected", "from", "to"):
        table.add_column(heading)
    _row(table, "one trial", found.trial_s, clock)
    _row(table, "the sweep", found.sweep_s, clock)
    _row(table, "memory of a trial, MiB", found.memory_mib, _whole)
    if found.gpu_memory_mib.high:
        _row(table, "GPU memory of a trial, MiB", found.gpu_memory_mib, _whole)
    _row(table, "disk, MiB", found.disk_bytes, lambda size: f"{size / 2**20:.1f}")
    if found.cost is not None:
        _row(table, f"cost {found.currency}".rstrip(), found.cost, money)
    said = [
        f"timed: the recipe's own values ({_timing(found.own)}) and the costliest corner ({_timing(found.corner)})",
        f"the corner: {settings_text(corner) or 'nothing that is searched costs more'}",
        "from and to: the spread of drawn trials and of the repeats that were timed",
    ]
    if found.cost is None:
        said.append("cost: no price is known; give --price-per-hour or $GRAFTLINE_PRICE_PER_HOUR")
    if found.limited_by:
        said.append(f"the {found.limited_by} budget ends the sweep before its {found.trials} trials")
    return Group(table, *map(Text, said))


def _timing(timing: Timing) -> str:
    step = sum(timing.step_s) / len(timing.step_s)
    measure = sum(timing.measure_s) / len(timing.measure_s)
    return f"load {timing.before_s:.1f} s, {timing.steps} steps at {step:.2f} s, measuring {measure:.1f} s"


def _row(table: Table, what: str, band: Band, shown: object) -> None:
    assert callable(shown)
    table.add_row(what, *(str(shown(value)) for value in (band.point, band.low, band.high)))


def _whole(value: float) -> str:
    return f"{value:.0f}"
