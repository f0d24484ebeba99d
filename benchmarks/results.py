"""Writes one section of docs/results.md, between markers, with commit, machine and date; the rest is left alone."""

from __future__ import annotations

import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping
from datetime import date
from pathlib import Path

from adapters.whole_file import write_whole

COMPILED = ("systems", "proof")  # out of the other sections, in this order
RESULTS = Path(__file__).parent.parent / "docs" / "results.md"


def provenance(module: str, seed: str = "0") -> str:
    """The command as it was given, but for folders of this machine alone, and on what it ran."""
    given = [Path(word).name if Path(word).is_absolute() else word for word in sys.argv[1:]]
    command = shlex.join(["python", "-m", f"benchmarks.{module}", *given])
    return f"`{command}` · commit {commit()} · {os.cpu_count()} cores ({processor()}) · seed {seed} · {date.today()}"


def run_kind(*own: object, full: bool) -> str:
    """For a heading. `own` are the sizes that may be given by hand, None where they were not."""
    return "sizes of its own" if any(one is not None for one in own) else "full run" if full else "default run"


def commit() -> str:
    """With `-dirty` where something else than the results has changed since."""
    head = _git("rev-parse", "--short", "HEAD")
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ":/", f":(exclude,top)docs/{RESULTS.name}")
    return f"{head}-dirty" if head and changed else head or "unknown"


def commits(rows: Iterable[Mapping[str, object]]) -> str:
    """The commits that kept rows were measured at, each once; a row that tells none counts as `unknown`."""
    return ", ".join(dict.fromkeys(str(row.get("commit", "unknown")) for row in rows))


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, cwd=RESULTS.parent).stdout.strip()


def processor() -> str:
    info = Path("/proc/cpuinfo")
    flags = info.read_text() if info.exists() else ""
    found = re.search(r"model name\s*:\s*(.*)", flags)
    return f"{found[1] if found else platform.processor()}{', AMX' if 'amx_bf16' in flags else ''}"


def write_section(name: str, title: str, body: str) -> None:
    """Replaces the section `name`, or appends it, and tells the index at the top what the sections say then."""
    text = RESULTS.read_text() if RESULTS.exists() else "# Results\n"
    section = f"<!-- {name} -->\n## {title}\n\n{body.strip()}\n<!-- /{name} -->"
    pattern = re.compile(rf"<!-- {re.escape(name)} -->.*?<!-- /{re.escape(name)} -->", re.S)
    text = pattern.sub(lambda _: section, text) if pattern.search(text) else f"{text.rstrip()}\n\n{section}\n"
    write_whole(RESULTS, text)
    if name not in COMPILED and f"<!-- {COMPILED[0]} -->" in text:
        from benchmarks.proof import compiled

        for one, heading, made in compiled(RESULTS.read_text):
            write_section(one, heading, made)


def table(headings: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(headings) + " |", "|" + " --- |" * len(headings)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])
