"""The section of benchmarks.public_sets: what could be measured, what each arm gained, and what it lost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.public_sets import ARMS, FAMILY_ITEMS, JOINT, NATS_MARGIN, PLAIN, RATES, SHARE_MARGIN, Place, best_rate
from benchmarks.public_tasks import DOMAINS, RETENTION, licence
from benchmarks.results import table
from evaluation.statistics import paired_change
from evaluation.tasks import FAMILIES

KINDS = {
    "generation": "what is written",
    "choice_accuracy": "the likeliest option",
    "chain_likelihood": "likelihood of the gold chain and answer",
}
NOTHING = "not read yet"
UNSEEN = "It did not see the loss"
KEPT, LOST, BLIND = "not inferior", "lost", "no evidence"


def body(data: Path, places: Sequence[Place]) -> Iterator[str]:
    fitted = [DOMAINS[place.folder.name] for place in places]
    rows = [
        [one.folder, one.what, "fitted" if one in fitted else "protected", *licence(data, one)]
        for one in dict.fromkeys((*fitted, *RETENTION.values()))
    ]
    yield "Public sets given by `--data`, none of which comes with Graftline; splits are by hash over the rows of both files."
    yield table(["set", "what", "here", "repository", "licence"], rows)
    yield (
        "Which outside sets this backbone can show a loss on. A likelihood has no chance level: there a problem's own chain must "
        "lie above one with another problem's steps by 5 standard errors. What is not admitted protects nothing and is in no "
        "table below."
    )
    yield table(["set", "by", "backbone", "chance", "damaged model", "items", "verdict"], list(_admissions(places[0])))
    for place in places:
        yield from _domain(place)


def _admissions(place: Place) -> Iterator[list[str]]:
    for one in RETENTION.values():
        for by_likelihood in (False, True) if one.written else (False,):
            row = place.row(f"admission-{one.named(by_likelihood)}")
            if row is None:
                yield [one.folder, NOTHING, "", "", "", "", ""]
                continue
            verdict = "admitted" if row["admitted"] else f"not measurable: {'; '.join(row['reasons'])}"
            chance = "-" if row["chance"] is None else f"{row['chance']:.2f}"
            base = f"{row['base']:.2f} ± {row['stderr']:.2f}"
            yield [one.folder, KINDS[row["measure"]], base, chance, f"{row['damaged_change']:+.2f}", str(row["n"]), verdict]


def _domain(place: Place) -> Iterator[str]:
    yield f"**{place.recipe.name}** on {place.recipe.backbone}."
    fits = [row for rate in RATES if (row := place.row(f"fit-{rate:g}"))]
    if not fits:
        yield f"Fits: {NOTHING}."
        return
    gains = ", ".join(f"{row['rate']:g} {row['gain']:+.3f}" for row in fits)
    yield f"Plain fine-tuning on answers by learning rate, gain on the search split: {gains}." + (
        f" Best: {best_rate(place):g}." if len(fits) == len(RATES) else ""
    )
    if sweep := place.row(place.sweep):
        shown = {name: f"{value:.3g}" if isinstance(value, float) else value for name, value in sweep["params"].items()}
        params = ", ".join(f"{name.rsplit('.', 1)[-1]} {value}" for name, value in shown.items())
        chose = f"chose {params} at scale {sweep['scale']:g}" if sweep["directory"] else "found none with a gain that kept all"
        scales = ", ".join(f"{scale:g}" for scale in sweep["scales"])
        kept = f"{sweep['feasible']} of which kept every family"
        yield f"The sweep ended {sweep['trials']} trials, each read at scales {scales}; {kept}, and it {chose}."
    arms = {arm: row for arm in ARMS if (row := place.row(place.arm(arm)))}
    if not arms:
        yield f"What the arms gained and lost: {NOTHING}."
        return
    yield (
        f"On the select split, which neither rates nor trials were chosen by, each minus the backbone on the same items (95 %); "
        f"{FAMILY_ITEMS} written problems a family. Not inferior: the interval lies above -{SHARE_MARGIN:g} (of gold chains "
        f"-{NATS_MARGIN:g} nats per token). No evidence: so it does, and it did under an arm that lost what it writes, too."
    )
    headings = ["what", "by", "backbone", *(name for arm in arms for name in (ARMS[arm], "retention"))]
    yield table(headings, list(_changes(arms)))
    yield from (unseen for arm, row in arms.items() if (unseen := _unseen(ARMS[arm], row)))
    if {PLAIN, JOINT} <= arms.keys():
        yield _between(arms[PLAIN]["domain"], arms[JOINT]["domain"])


def _unseen(arm: str, row: dict[str, Any]) -> str:
    """Where the likelihood of outside chains was kept or rose although what is written was lost."""
    unseen = [row["outside"][place]["task"] for place in _blind(row)]
    if not unseen:
        return ""
    return (
        f"The likelihood of gold chains did not fall under {arm} while the families' written traces were lost: "
        f"{', '.join(unseen)}. {UNSEEN}, and is no evidence here that reasoning was kept."
    )


def _changes(arms: dict[str, dict[str, Any]]) -> Iterator[list[str]]:
    first = next(iter(arms.values()))
    yield _line("domain", [row["domain"] for row in arms.values()], judged=False)
    yield _line(f"all {len(FAMILIES)} families", [row["pooled"] for row in arms.values()])
    for place, told in enumerate(first["families"]):
        yield _line(told["task"], [row["families"][place] for row in arms.values()], judged=False)
    blind = {row["outside"][place]["task"] for row in arms.values() for place in _blind(row)}
    for place, told in enumerate(first["outside"]):
        yield _line(told["task"], [row["outside"][place] for row in arms.values()], blind=told["task"] in blind)


def _blind(row: dict[str, Any]) -> list[int]:
    """The outside sets whose gold chains stayed as likely, or rose, although what is written was lost."""
    if _verdict(row["pooled"]) != LOST:
        return []
    return [
        place for place, told in enumerate(row["outside"]) if told["measure"] == "chain_likelihood" and _verdict(told) == KEPT
    ]


def _line(what: str, found: Sequence[dict[str, Any]], judged: bool = True, blind: bool = False) -> list[str]:
    """`blind`: under one of the arms it did not see a loss that there was, so that it is no evidence under any."""
    verdicts = [BLIND if blind and _verdict(told) == KEPT else _verdict(told) if judged else "" for told in found]
    cells = [cell for told, verdict in zip(found, verdicts, strict=True) for cell in (_interval(told), verdict)]
    return [what, KINDS[found[0]["measure"]], f"{found[0]['base']:.2f}", *cells]


def _verdict(told: dict[str, Any]) -> str:
    margin = SHARE_MARGIN if told["unit"].startswith("share") else NATS_MARGIN
    if told["low"] > -margin:
        return KEPT
    return LOST if told["high"] < 0 else "not shown"


def _interval(told: dict[str, Any]) -> str:
    return f"{told['change']:+.3f} [{told['low']:+.3f}, {told['high']:+.3f}]"


def _between(plain: dict[str, Any], joint: dict[str, Any]) -> str:
    change = paired_change(plain["values"], joint["values"], [str(place) for place in range(len(plain["values"]))])
    return (
        f"Domain accuracy of what the sweep chose less plain fine-tuning's best, on the same {change.n} items: "
        f"{change.mean:+.3f} [{change.low:+.3f}, {change.high:+.3f}]."
    )
