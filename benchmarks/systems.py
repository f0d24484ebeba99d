"""What each system was found to do, and where nothing was found, from the sections of docs/results.md."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from benchmarks.sections import Section

FOUND, NOTHING, HURT, CONTRARY, UNKNOWN = "found", "nothing", "hurt", "the contrary", "not measurable"
VERDICTS = (FOUND, NOTHING, HURT, CONTRARY, UNKNOWN)
POLICIES = ("easy", "hard", "icd10")
RHO = "Spearman's rho"


@dataclass(frozen=True)
class Finding:
    """`told` holds numbers of its section alone, as they stand there."""

    system: str
    section: Section
    verdict: str
    told: str


def findings(sections: Mapping[str, Section]) -> list[Finding]:
    """In the order of the readers below; a section that is not there tells nothing."""
    return [found for name, read in READERS.items() if name in sections for found in read(sections[name])]


def _methods(section: Section) -> Iterator[Finding]:
    """Each method against its better control, at the seed of the section's first row."""
    failed = {row["arm"]: row["gain"] for row in section.rows("arm", "gain", "scale") if row["gain"].startswith("failed")}
    for row in section.rows("arm", "control", "above the control", "credited"):
        told = f"gain {row['above the control']} above {row['control']} (seed {row['seed']})"
        yield Finding(f"method {row['arm']}", section, _sign(row["above the control"]), told)
    for arm, why in failed.items():
        if "," not in arm:
            found = re.search(r"AUROC (\d\.\d+) on", why)
            yield Finding(f"method {arm}", section, UNKNOWN, f"refused: AUROC {found[1]}" if found else "failed")


def _method_sweeps(section: Section) -> Iterator[Finding]:
    said = re.findall(r"^- Seed \d+: the chosen .*? (does not dominate|dominates) .*; (the area is .*)\.$", section.body, re.M)
    for dominates, told in said:
        yield Finding("a sweep over methods", section, NOTHING if "not" in dominates else FOUND, told)


def _attribution(section: Section) -> Iterator[Finding]:
    for row in section.rows("damaged rows", "fit", "against random rows"):
        if row["fit"] == "without the worst":
            told = f"{row['against random rows']} nats per token kept by leaving the worst rows out"
            yield Finding("attribution of rows", section, _sign(row["against random rows"]), told)


def _stop_rules(section: Section) -> Iterator[Finding]:
    """Of made-up trials, and of recorded ones."""
    tables = [table for table in section.tables if table and "time saved" in table[0]]
    for kind, rows in zip(("made-up", "recorded"), tables, strict=False):
        for row in rows:
            saved = FOUND if float(row["time saved"].rstrip("%")) > 0 else HURT
            yield Finding(f"stop rule {row['rules']}, {kind} trials", section, saved, f"time saved {row['time saved']}")


def _agreement(section: Section) -> Iterator[Finding]:
    for row in section.rows("what is ranked", RHO)[:1]:
        interval = row["95 % (bootstrap over fits)"]
        yield Finding("search by likelihood", section, _sign(interval), f"ranks as writing does: rho {row[RHO]} {interval}")


def _compression(section: Section) -> Iterator[Finding]:
    pattern = r"^- (.*?): .*?, (below|above|not told apart from) the cap curve \(([^)]*)\); right less off (.*)\.$"
    lines = re.findall(pattern, section.body, re.M)
    for name, curve, against, off in lines:
        if name.startswith("random"):  # a null
            continue
        verdict = {"below": HURT, "above": FOUND}.get(curve, NOTHING)
        yield Finding(
            f"compression, {name}", section, verdict, f"right on hard items less the cap curve {against}, less off {off}"
        )


def _hybrid(section: Section) -> Iterator[Finding]:
    arms = {row["arm"]: row["recovered"] for row in section.rows("arm", "recovered")}
    if {"hybrid", "bias only"} <= arms.keys():
        verdict = NOTHING if "does not lie above every control" in section.body else FOUND
        told = f"{arms['hybrid']} of the likelihood gain recovered, one vector alone {arms['bias only']}"
        yield Finding("hybrid routing", section, verdict, told)


def _sae(section: Section) -> Iterator[Finding]:
    for way, hits, of in re.findall(r"^- ([^:\n]*): writes more marks .*? in (\d+) of (\d+) readings\b.*$", section.body, re.M):
        told = f"more marks than off and than random columns in {hits} of {of} readings"
        yield Finding(f"features, {way}", section, FOUND if int(hits) else NOTHING, told)


def _tune_decoding(section: Section) -> Iterator[Finding]:
    for task, said in re.findall(r"^\*\*(\w+)\*\*, \d+ items\. ([^.]*)\.", section.body, re.M):
        yield Finding(f"searched decoding policy, {task}", section, NOTHING if said.startswith("Nothing") else FOUND, said)


def _policies(section: Section) -> Iterator[Finding]:
    """On hard items, where there is room; the tables come in the order of POLICIES."""
    tables = [table for table in section.tables if table and "right, less its null" in table[0]]
    verdicts = {"helped": FOUND, "hurt": HURT, "did nothing": NOTHING, "not shown": NOTHING}
    for row in tables[POLICIES.index("hard")] if len(tables) == len(POLICIES) else ():
        if (said := row.get("", "")) in verdicts:
            off, null = row["right, less off"], row["right, less its null"]
            told = f"right on hard items less off {off}" + (
                f", less {row['its null']} {null}" if row["its null"] != "off" else ""
            )
            yield Finding(f"policy {row['policy']}", section, verdicts[said], told)
    for row in section.rows("way", "right, less plain"):
        if row["right, less plain"]:
            yield Finding(row["way"], section, _sign(row["right, less plain"]), f"{row['right, less plain']} right less plain")


def _claims(section: Section) -> Iterator[Finding]:
    """The measures of reasoning: whether what the papers saw fall falls here. Contrary: it rose in some fits, fell in none."""
    for row in section.rows("claim", "where", "data", "reproduces"):
        contrary = int(row["rose"]) > 0 and int(row["fell"]) == 0
        verdict = {"no": CONTRARY if contrary else NOTHING, "not measurable": UNKNOWN}.get(row["reproduces"], FOUND)
        told = ", ".join(f"{what} in {row[what]}" for what in ("fell", "rose", "neither", "not measurable"))
        yield Finding(f"{row['claim']}, fitted on {row['data']}", section, verdict, told)


def _sign(interval: str) -> str:
    """Of `+0.1 [+0.0, +0.2]` or `+0.1 ± 0.2`: whether it is clear of 0, and on which side."""
    numbers = [float(number) for number in re.findall(r"[+-]?\d+\.\d+", interval)]
    low, high = (numbers[0] - numbers[1], numbers[0] + numbers[1]) if "±" in interval else numbers[-2:]
    return FOUND if low > 0 else HURT if high < 0 else NOTHING


READERS = {
    "methods": _methods,
    "method_sweeps": _method_sweeps,
    "accuracy_trap": _claims,
    "attribution": _attribution,
    "agreement": _agreement,
    "stop-rules": _stop_rules,
    "compression": _compression,
    "hybrid": _hybrid,
    "sae": _sae,
    "tune_decoding": _tune_decoding,
    "policies": _policies,
}
