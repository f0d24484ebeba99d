"""`graftline audit`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from registry.home import home_directory
from service.audit import Entry, read_audit


def audit(last: int | None, act: str, home: Path | None, as_json: bool) -> None:
    entries, damaged = read_audit(home_directory(home))
    chosen = [entry for entry in entries if entry.act.startswith(act)]
    shown = chosen if last is None else chosen[-last:]
    if as_json:
        print(json.dumps([entry.model_dump(exclude_none=True) for entry in shown]))
    elif not shown:
        print("No administrative act is recorded." if not entries else f"No recorded act begins with {act!r}.")
    for entry in [] if as_json else shown:
        print(_line(entry))
    if damaged:
        print(
            f"graftline: {damaged} lines of the audit log cannot be read: a full disk or a kill cut them short.", file=sys.stderr
        )


def _line(entry: Entry) -> str:
    who = entry.who if entry.key is None else f"{entry.who} ({entry.key})"
    detail = f" {json.dumps(entry.detail)}" if entry.detail else ""
    reason = f": {entry.reason}" if entry.reason else ""
    request = f" [{entry.request_id}]" if entry.request_id else ""
    # A target or a reason may hold what a client typed: nothing of it reaches the terminal as it is.
    return f"{entry.at}  {who}  {entry.act} {entry.target!r}  {entry.outcome}{detail}{ascii(reason)[1:-1]}{request}"
