"""The proof: seven findings in one table at the top of docs/results.md, and what each system was found to do.

    python -m benchmarks.proof

Nothing is measured: every number is copied out of the section that the line names, which has its script, commit, machine and
seed. Every benchmark that writes its section does this too; a test fails where the table does not say what the sections say.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from benchmarks.results import RESULTS, table, write_section
from benchmarks.sections import Section, sections_of
from benchmarks.systems import CONTRARY, FOUND, HURT, NOTHING, UNKNOWN, VERDICTS, Finding, findings

Sections = Mapping[str, Section]
MISSING = "not measured yet"
SHARE, WORST = "share of the plain gain", "worst family at the gate"
BESIDE, TIMES = "speed beside one adapter, processor", "times one worker's"
CHOSEN, PLAIN = "what the sweep chose", "plain fine-tuning's best"  # these four as benchmarks.public_report has them
FOUND_NONE, UNSEEN = "found none with a gain that kept all", "It did not see the loss"
ABOUT = (
    "Compiled by `python -m benchmarks.proof`, which measures nothing: every number stands in the section that the line names, "
    "with script, commit, machine and seed."
)


@dataclass(frozen=True)
class Line:
    """One of the seven. `tell` is given all sections that are there, and returns None where these do not say it."""

    what: str
    sections: tuple[str, ...]
    tell: Callable[[Sections], str | None]

    def cells(self, number: int, found: Sections) -> list[str]:
        there = [found[name] for name in self.sections if name in found]
        scripts = dict.fromkeys(f"`benchmarks/{one.provenance['script']}.py`" for one in there if one.provenance)
        said = self.tell(found) if len(there) == len(self.sections) else None
        links = ", ".join(one.link for one in there)
        return [str(number), self.what, said or MISSING, links or "-", ", ".join(scripts) or "`benchmarks/proof.py`"]


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    for name, title, made in compiled(RESULTS.read_text):
        write_section(name, title, made)


def compiled(read: Callable[[], str]) -> Iterator[tuple[str, str, str]]:
    """Name, title and text of both sections; the second is made of what stands there when the first is written."""
    yield "systems", "What each system found", systems(sections_of(read()))
    yield "proof", "The proof", proof(sections_of(read()))


def proof(found: Sections) -> str:
    """The index, from the sections as they are."""
    rows = [line.cells(number, found) for number, line in enumerate(LINES, 1)]
    return f"{ABOUT}\n\n{table(['', 'what', 'finding (95 % intervals)', 'section', 'script'], rows)}"


def systems(found: Sections) -> str:
    told = findings(found)
    rows = [[one.system, one.verdict, one.told, one.section.link] for one in told]
    return f"{ABOUT}\n\n{_counts(told)}\n\n{table(['system', 'verdict', 'what was read', 'section'], rows)}"


def _counts(told: list[Finding]) -> str:
    counts = {verdict: sum(one.verdict == verdict for one in told) for verdict in VERDICTS}
    return (
        f"Of {len(told)} readings of systems {counts[FOUND]} found an effect, {counts[NOTHING]} found nothing, {counts[HURT]} "
        f"found harm, {counts[CONTRARY]} the contrary of what was claimed, and {counts[UNKNOWN]} could not be measured."
    )


def _trap(found: Sections) -> str | None:
    """Of the first seed, at the highest rate: both kinds of data."""
    rows = found["accuracy_trap"].rows("data", "learning rate", "domain gain (95 %)", "traces right", "commit")
    if not rows:
        return None
    seed, rate = rows[0]["seed"], max((row["learning rate"] for row in rows), key=float)
    told = [
        f"fitted on {row['data']}s the domain's accuracy changes by {row['domain gain (95 %)']} and the traces right by "
        f"{row['traces right']}"
        for row in rows
        if (row["seed"], row["learning rate"]) == (seed, rate)
    ]
    return f"At a learning rate of {rate} (seed {seed}), {'; '.join(told)}" if told else None


def _retained(found: Sections) -> str | None:
    """The seed with the least share of the plain gain, and the worst family of any seed."""
    section = found["sweeps"]
    rows = [row for row in section.rows("seed", SHARE, WORST) if row["end"] == "promoted"]
    ended = re.search(r"^(\d+) of \d+ seeds were run; (\d+) promoted", section.body, re.M)
    if not rows or ended is None:
        return None
    least = min(rows, key=lambda row: int(row[SHARE].partition("%")[0]))
    family, lost = min((row[WORST].rsplit(" ", 1) for row in rows), key=lambda worst: float(worst[1]))
    return (
        f"{ended[2]} of {ended[1]} sweeps promoted an adapter that passed the gate; the least kept {least[SHARE]} of the gain of "
        f"the plain recipe, which lost {least['plain recipe lost']} families, and the worst family at any gate changed by {lost} "
        f"({family})"
    )


_ADAPTERS = {  # the arms of `benchmarks.methods --thoughts`, by what they are
    "LoRA": "sft, rationale",
    "SoftCoT": "softcot",
    "its static arm": "softcot, static",
    "both": "lora+softcot",
    "their static arm": "lora+softcot, static",
}


def _softcot(found: Sections) -> str | None:
    rows = {row["arm"]: row for row in found["thoughts"].rows("arm", "seeds", "gain", "retention", "feasible")}
    told = [
        f"{what} {rows[arm]['gain']} (retention {rows[arm]['retention']}, feasible in {rows[arm]['feasible']})"
        for what, arm in _ADAPTERS.items()
        if arm in rows
    ]
    about = (
        "Gain within one budget of tokens, mean over the seeds ± the spread of the fits alone, with the retention in margins: "
    )
    return f"{about}{', '.join(told)}" if told else None


def _systems(found: Sections) -> str | None:
    counted = re.search(r"^Of \d+ readings of systems .*\.$", found["systems"].body, re.M)
    return counted[0].rstrip(".") if counted else None


_POLICIES = ("own", "continued", "merged", "routed")


def _forgetting(found: Sections) -> str | None:
    """Of the first order and seed, every policy that is whole."""
    rows = found["sequence"].rows("order", "seed", "policy", "forgetting", "reasoning")
    if not rows:
        return None
    first = {row["policy"]: row for row in rows if (row["order"], row["seed"]) == (rows[0]["order"], rows[0]["seed"])}
    told = [f"{policy} {first[policy]['forgetting'] if policy in first else MISSING}" for policy in _POLICIES]
    first_of = f"{rows[0]['order']} (seed {rows[0]['seed']}; own adapters forget nothing by construction)"
    return f"Forgetting after {first_of}: {', '.join(told)}"


def _serving(found: Sections) -> str | None:
    mixed = {row["rows are under"]: row for row in found["serving_mix"].rows("rows are under", "ms a step")}
    workers = found["workers"].rows("workers", "trials an hour", TIMES)
    if "8 adapters" not in mixed or not workers:
        return None
    ours, peft = mixed["8 adapters"][BESIDE], mixed["PEFT, 8 adapters"][BESIDE]
    return (
        f"Eight adapters in one batch run at {ours} of one adapter's speed, PEFT's at {peft}; {workers[-1]['workers']} workers "
        f"end {workers[-1][TIMES]} times the trials of one"
    )


def _public(found: Sections) -> str | None:
    """Which outside sets can show a loss, then what the domains gained and lost."""
    section = found["public_sets"]
    sets = [row for row in section.rows("set", "by", "verdict") if row["verdict"]]
    if not sets:
        return None
    admitted = [f"{row['set']} (by {row['by']})" for row in sets if row["verdict"] == "admitted"]
    guarded = {row["set"] for row in sets if row["verdict"] == "admitted"}
    others = dict.fromkeys(row["set"] for row in sets if row["set"] not in guarded)
    told = f"{', '.join(admitted) or 'None'} can show a loss on this backbone"
    told += f", {' and '.join(others)} cannot" if others else ""
    domains = re.split(r"^(?=\*\*[\w-]+\*\* on)", section.body, flags=re.M)[1:]
    fitted = [said for domain in domains if (said := _public_domain(replace(section, body=domain)))]
    return ". ".join([told, *fitted]) if fitted else f"{told}; the fits are {MISSING}"


def _public_domain(section: Section) -> str | None:
    """What the arms of one domain gained and lost; None where none was read yet."""
    rows = {row["what"].partition(" ")[0]: row for row in section.rows("what", "by", PLAIN)}
    name = re.match(r"\*\*([\w-]+)\*\* on", section.body)
    if name is None or not {"domain", "all"} <= rows.keys():
        return None
    told = (
        f"On {name[1]}, plain fine-tuning's best gains {rows['domain'][PLAIN]} and changes the families' traces by "
        f"{rows['all'][PLAIN]}"
    )
    if UNSEEN in section.body:
        told += ", which the outside chains did not see"
    if FOUND_NONE in section.body:
        return f"{told}; the sweep {FOUND_NONE}"
    between = re.search(r"^Domain accuracy of what the sweep chose less .*?: ([+-].*\])\.$", section.body, re.M)
    if between is None or CHOSEN not in rows["all"]:
        return f"{told}; what the sweep chose is {MISSING}"
    return (
        f"{told}; what the sweep chose gains {rows['domain'][CHOSEN]} ({between[1]} beside it) and changes them by "
        f"{rows['all'][CHOSEN]}"
    )


LINES = (
    Line("The accuracy trap: domain up, reasoning down", ("accuracy_trap",), _trap),
    Line("The same gain, retention not inferior", ("sweeps",), _retained),
    Line("SoftCoT, LoRA, both, and the static arms", ("thoughts",), _softcot),
    Line("What each system found", ("systems",), _systems),
    Line("Three domains in sequence: forgetting", ("sequence",), _forgetting),
    Line("Serving and sweeps", ("serving_mix", "workers"), _serving),
    Line("The same recipe on public sets", ("public_sets",), _public),
)


if __name__ == "__main__":
    main()
