"""`graftline evaluate --harness`: tasks of lm-evaluation-harness on backbone and adapter, paired item by item."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path

from service.commands.evaluate import show
from service.commands.subject import LOADED, load_subject


def harness(
    named: str,
    names: Sequence[str],
    limit: int | None,
    include_path: Path | None,
    backbone_name: str | None,
    home: Path | None,
    tracking_uri: str | None,
    as_json: bool,
) -> None:
    from evaluation.harness import evaluate_harness

    subject = load_subject(named, None, backbone_name, home, tracking_uri)
    doing = f"running {', '.join(names)} on {named} and {subject.backbone.name}"
    count = "all" if limit is None else str(limit)
    print(f"{doing}, {count} items a task; it is begun anew if it is stopped", file=sys.stderr)
    # What the harness and the libraries below it print is no part of the report.
    with redirect_stdout(sys.stderr):
        rows = evaluate_harness(
            subject.engine,
            subject.backbone,
            LOADED,
            names,
            limit,
            include_path,
            lambda share: print(f"{doing}: {share:.0%}", file=sys.stderr),
        )
    if as_json:
        print(json.dumps({"subject": named, "backbone": subject.backbone.name, "rows": [row.as_dict() for row in rows]}))
        return
    show(rows, f"{named} against {subject.backbone.name}, in lm-evaluation-harness")
