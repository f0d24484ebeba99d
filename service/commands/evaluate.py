"""`graftline evaluate`: every measure on backbone and adapter, as paired changes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from registry.errors import BackboneMismatch
from registry.home import home_directory
from registry.manifest import MANIFEST, Manifest, verify
from registry.names import resolve
from registry.release import load_release
from registry.tracking import Tracking

if TYPE_CHECKING:
    from evaluation.evaluate import Row


def evaluate(
    subject: str,
    domain: str | None,
    backbone_name: str | None,
    items: int,
    home: Path | None,
    tracking_uri: str | None,
    as_json: bool,
) -> None:
    from adapters.backbone import Backbone
    from engine.profile import Profile
    from engine.torch_engine import TorchEngine
    from evaluation.admission import admissions
    from evaluation.base_cache import BaseCache
    from evaluation.evaluate import evaluate as read_all
    from evaluation.tasks import task_named
    from tuning.gating import check_tasks
    from tuning.plan import report_plan
    from tuning.recipe import REASONING_FAMILIES

    place = home_directory(home)
    directory, manifest = _subject(subject, place, tracking_uri)
    profile, recipe = Profile.load(directory), manifest.recipe if manifest else {}
    backbone = Backbone.load(backbone_name or (manifest.backbone.name if manifest else "smollm2-135m-reasoner"))
    if manifest is not None and manifest.backbone.fingerprint != backbone.fingerprint:
        raise BackboneMismatch(
            f"{subject} was fitted on backbone {manifest.backbone.name} ({manifest.backbone.fingerprint[:12]}), but "
            f"{backbone.name} is {backbone.fingerprint[:12]}. Leave out --backbone, or fit the recipe again on this one."
        )
    engine = TorchEngine(backbone, max_rows=64)
    engine.load("subject", profile)
    if manifest is not None and domain is None:
        check_tasks(manifest, subject)
    task = task_named(domain or str(recipe.get("domain", "icd10")))
    protected = recipe.get("protected")
    named = map(str, protected) if isinstance(protected, list) else REASONING_FAMILIES
    families = [task_named(name) for name in dict.fromkeys((*named, "grammar", "text"))]  # these two are always shown
    admitted = admissions(engine, backbone, families, place / "cache")
    measurable = [family for family in families if admitted[family.name].admitted]
    console = Console(stderr=True)
    with console.status(f"measuring {subject} against {backbone.name}") as shown:
        found = read_all(
            engine,
            backbone,
            "subject",
            report_plan(task, measurable, items),
            BaseCache(place / "cache" / "base", str(backbone.dtype)),
            lambda share: shown.update(f"measuring {subject} against {backbone.name}: {share:.0%}"),
        )
    left_out = {family.name: "; ".join(admitted[family.name].reasons) for family in families if family not in measurable}
    if as_json:
        print(json.dumps({"subject": subject, "backbone": backbone.name, **found.as_dict(), "not_measurable": left_out}))
        return
    Console().print(table(found.rows, f"{subject} against {backbone.name}, {items} items a task of the select split"))
    for name, reason in left_out.items():
        print(f"{name}: not measurable on this backbone: {reason}")


def table(rows: Sequence[Row], title: str) -> Table:
    """One row a measure and task."""
    made = Table(title=title, title_justify="left")
    for heading in ("task", "measure", "backbone", "adapted", "change", "95 % interval", "unit", "n", "also"):
        made.add_column(heading)
    for row in rows:
        change = row.change
        made.add_row(
            row.planned.task.name,
            row.planned.measure.name,
            f"{row.base.mean:.3f}",
            f"{row.adapted.mean:.3f}",
            f"{change.mean:+.3f}",
            f"[{change.low:+.3f}, {change.high:+.3f}]",
            row.unit,
            str(change.n),
            _also(row.summary),
        )
    return made


def _also(summary: Mapping[str, float | None]) -> str:
    """One number a line, a dash where it is undefined."""
    return "\n".join(f"{name.replace('_', ' ')} {'-' if value is None else f'{value:.3f}'}" for name, value in summary.items())


def _subject(subject: str, home: Path, tracking_uri: str | None) -> tuple[Path, Manifest | None]:
    """A directory as its manifest says it is (plain PEFT directories have none), or a published release."""
    directory = Path(subject)
    if directory.is_dir():
        return directory, verify(directory) if (directory / MANIFEST).is_file() else None
    tracking = Tracking.at(home, tracking_uri).existing()
    named = resolve(tracking, subject)
    release = load_release(tracking, named.name, named.version)
    return release.directory, release.manifest
