"""What the stop rules cost and save: made-up trials and recorded ones, replayed under the rules.

    python -m benchmarks.stop_rules

The recorded ones are those of benchmarks.sweep_trials. The replay needs no model: a trial is stopped by the rules of
tuning.stop_rules with the trials before it as rivals. What is lost is told by the trial that would have been first in line for
the gate.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from scipy import stats
from scipy.stats import norm

from benchmarks.results import commits, provenance, table, write_section
from benchmarks.stop_curves import made_up
from benchmarks.sweep_trials import RECIPE, recorded
from tuning.candidates import Candidate, in_order
from tuning.stop_curve import FitReading
from tuning.stop_items import SLICE
from tuning.stop_pruners import P_VALUE
from tuning.stop_rules import stopped
from tuning.stop_settings import Rule, StopRecipe
from tuning.stop_worth import Past

ORDERS, STUDIES, MADE_UP = 100, 100, 30
SIMULATED, NUM_ITEMS = 500, 150


@dataclass(frozen=True)
class Replay:
    """One order of trials under the rules, as shares."""

    lost_best: bool
    regret: float  # of the domain's gain: the best trial's less that of the best which was not stopped
    stopped: float  # of the trials
    saved: float  # of the time of the same trials without any reading
    read: float  # of the checkpoints of all trials


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    rows = recorded()
    studies = [made_up(seed, MADE_UP) for seed in range(STUDIES)]
    text = (
        f"{provenance('stop_rules')}\n\nMade-up trials (benchmarks/stop_curves.py): {STUDIES} studies of {MADE_UP}, "
        f"{share_feasible([row for made in studies for row in made]):.0%} of them feasible.\n\n"
        f"{ruled([(made, range(MADE_UP)) for made in studies])}"
    )
    if rows:
        drawn = random.Random(0)
        orders = [(rows, drawn.sample(range(len(rows)), len(rows))) for _ in range(ORDERS)]
        text += (
            f"\n\n{len(rows)} trials of random settings on the built-in reasoner (benchmarks/{RECIPE.name}), recorded at commit "
            f"{commits(rows)}, {share_feasible(rows):.0%} of them feasible, in {ORDERS} random orders.\n\n{ruled(orders)}"
        )
    text += (
        f"\n\nWilcoxon over items, simulated: {NUM_ITEMS} items of which the best trial gets half, a look after every {SLICE} at "
        f"p < {P_VALUE}, {SIMULATED} trials a row.\n\n{table(['the new trial gets', 'ended', 'items read'], wilcoxon())}"
    )
    write_section("stop-rules", "Stop rules", text)
    print(text)


def wilcoxon() -> list[list[str]]:
    """How often a trial is ended that is as good as the best, or so much better or worse; items are as hard for both."""
    drawn, lines = np.random.default_rng(0), list[list[str]]()
    for share in (0.3, 0.4, 0.5, 0.55, 0.6):
        ended, read = 0, 0
        for _ in range(SIMULATED):
            hardness = drawn.normal(size=NUM_ITEMS)
            best, own = (
                (hardness + drawn.normal(size=NUM_ITEMS) < 2**0.5 * norm.ppf(right)).astype(float) for right in (0.5, share)
            )
            at = next((seen for seen in range(SLICE, NUM_ITEMS, SLICE) if is_worse(own[:seen], best)), NUM_ITEMS)
            ended, read = ended + (at < NUM_ITEMS), read + at
        lines.append([f"{share:.0%}", f"{ended / SIMULATED:.1%}", f"{read / SIMULATED / NUM_ITEMS:.0%}"])
    return lines


def is_worse(own: np.ndarray[Any, Any], best: np.ndarray[Any, Any]) -> bool:
    """As Optuna's pruner decides: the test, and the mean so far below the best trial's."""
    changes = own - best[: len(own)]
    p_value = stats.wilcoxon(changes, alternative="less", zero_method="zsplit").pvalue if changes.any() else 1.0
    return bool(p_value < P_VALUE and own.mean() < best.mean())


def ruled(studies: Sequence[tuple[Sequence[Mapping[str, Any]], Sequence[int]]]) -> str:
    """A table, one line a set of rules; what is saved is after the time that reading took."""
    both: tuple[Rule, ...] = ("floor", "dominated")
    lines, settings = [], [StopRecipe(rules=rules, reading="always") for rules in (both[:1], both[1:], both)]
    for stop in (*settings, StopRecipe(rules=both)):
        found = [replay(rows, order, stop) for rows, order in studies]
        shares = (fmean(getattr(one, name) for one in found) for name in ("read", "stopped", "saved", "regret"))
        read, stopped_share, saved, regret = shares
        lost = f"{sum(one.lost_best for one in found)} of {len(found)}"
        shown = [f"{read:.0%}", f"{stopped_share:.1%}", f"{saved:+.1%}", lost, f"{regret:.4f}"]
        lines.append([" and ".join(stop.rules), stop.reading, *shown])
    headings = ["rules", "reading", "checkpoints read", "trials stopped", "time saved", "studies whose best trial was stopped"]
    return table([*headings, "gain lost by that, mean"], lines)


def share_feasible(rows: Sequence[Mapping[str, Any]]) -> float:
    return sum(bool(row["score"]["feasible"]) for row in rows) / len(rows)


def replay(rows: Sequence[Mapping[str, Any]], order: Sequence[int], stop: StopRecipe) -> Replay:
    """One trial after the other. The first is the recipe's own, which nothing stops."""
    ended, spent, rivals = list[int](), 0.0, list[FitReading]()
    seen: dict[float, list[Read]] = {}
    for place, index in enumerate(order):
        row = rows[index]
        took, curve, last = seconds_of(row), list[FitReading](), None
        for reading in map(FitReading.of, row["curve"]):
            past = _past(seen.get(reading.checkpoint, ()))
            if not stop.reads_all and past is not None and not past.is_worth:
                continue
            curve.append(reading)
            ends = bool(place) and stopped(reading, rivals, stop) is not None
            rest = None if ends else took["fit"] * (1 - reading.checkpoint) + took["measure"]
            seen.setdefault(reading.checkpoint, []).append(Read(reading.seconds, bool(place), ends, rest))
            if ends:
                ended.append(index)
                last = reading.checkpoint
                break
        if last is None and row["score"]["feasible"]:
            rivals.extend(curve)
        spent += took["load"] + took["fit"] * (last or 1.0) + (took["measure"] if last is None else 0.0)
        spent += sum(reading.seconds for reading in curve)
    unread = sum(sum(seconds_of(rows[index]).values()) for index in order)
    first, kept = best(rows, order), best(rows, [index for index in order if index not in ended])
    regret = max(0.0, gain(rows[first]) - gain(rows[kept])) if rows[first]["score"]["feasible"] else 0.0
    num_read, num_due = sum(map(len, seen.values())), sum(len(rows[index]["curve"]) for index in order)
    return Replay(first in ended, regret, len(ended) / len(order), 1 - spent / unread, num_read / num_due)


@dataclass(frozen=True)
class Read:
    """One reading of the replay; `rest_s` of a trial that went on."""

    seconds: float
    is_judged: bool
    ended: bool
    rest_s: float | None


def _past(reads: Sequence[Read]) -> Past | None:
    rests = [one.rest_s for one in reads if one.rest_s is not None]
    judged, ended = sum(one.is_judged for one in reads), sum(one.ended for one in reads)
    return Past(judged, ended, fmean(one.seconds for one in reads), fmean(rests)) if rests else None


def gain(row: Mapping[str, Any]) -> float:
    return float(row["score"]["chosen"]["domain_gain"])


def best(rows: Sequence[Mapping[str, Any]], numbers: Sequence[int]) -> int:
    """The trial that a study of these would bring before the gate first."""
    found = [Candidate(number, Path(), {}, rows[number]["score"], None) for number in numbers]
    return in_order(found)[0].trial


def seconds_of(row: Mapping[str, Any]) -> dict[str, float]:
    """By phase, without the readings."""
    return {name: float(row["seconds"][name]) for name in ("load", "fit", "measure")}


if __name__ == "__main__":
    main()
