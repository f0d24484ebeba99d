"""`graftline sweep`: looks at a study from outside, and tells its workers what to do, wherever they run."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.live import Live

from registry.home import home_directory
from registry.tracking import Tracking
from service.clock import clock
from service.elsewhere import found_by
from service.overview_view import lines, overview_view
from tuning.asked import Wish
from tuning.budget import money
from tuning.overview import Overview
from tuning.standing import Standing

WATCH_S = 2.0
_SAID = {
    "pause": "No worker begins another trial; those that run end orderly, and the workers wait. `graftline sweep resume {0}`",
    "run": "Workers that wait go on; start others with `graftline worker --study {0}` or `graftline tune RECIPE --resume`",
    "stop": "No worker begins another trial; those that run end orderly, and the workers end. `graftline tune RECIPE --resume`",
}


def _named(name: str, home: Path | None, storage: str | None) -> Standing:
    place = home_directory(home)
    return Standing.named(name, place, Tracking.at(place), storage)


def status(name: str, watch: bool, pictures: Path | None, home: Path | None, storage: str | None, as_json: bool) -> int:
    """0 while trials are to come or one is feasible, 1 when the study is over without a feasible one."""
    found = _named(name, home, storage)
    seen = _watched(found.overview, as_json) if watch else found.overview()
    written = [] if pictures is None else found.draw(seen, pictures)
    standing = found.picture
    if as_json:
        told = seen.as_dict() | {"pareto": str(standing) if standing else None, "pictures": list(map(str, written))}
        print(json.dumps(told))
    else:
        console = Console(markup=False, highlight=False, width=None if Console().is_terminal else 140)
        console.print(overview_view(seen))
        shown = written or ([standing] if standing else [])
        console.print(f"pictures: {', '.join(map(str, shown)) or 'none yet; --pictures DIRECTORY draws them'}")
    return 1 if seen.over and seen.best is None else 0


def tell(name: str, what: Wish, home: Path | None, storage: str | None, as_json: bool) -> None:
    found = _named(name, home, storage)
    found.ask(what)
    seen = found.overview()
    if as_json:
        print(json.dumps({"study": name, "asked": what, "running": len(seen.running)}))
    else:
        print(f"{lines(seen)[0]}\n{_SAID[what].format(name + found_by(found.sweep))}")


def adopt(name: str, home: Path | None, storage: str | None, as_json: bool) -> None:
    """What ran when the other machine's workers ended is tried again by the next one here."""
    found = _named(name, home, storage)
    found.adopt()
    if as_json:
        print(json.dumps({"study": name, "host": socket.gethostname()}))
    else:
        print(f"study {name} is on this machine, {socket.gethostname()}; `graftline tune RECIPE --resume` goes on")


def lengthen(
    name: str,
    trials: int | None,
    time_budget_s: float | None,
    max_cost: float | None,
    home: Path | None,
    storage: str | None,
    as_json: bool,
) -> None:
    found = _named(name, home, storage)
    holds = found.extend(trials, time_budget_s, max_cost)
    if as_json:
        kept = {"trials": holds.trials, "time_budget_s": holds.time_budget_s, "max_cost": holds.max_cost}
        print(json.dumps({"study": name, **kept}))
        return
    budget = "" if holds.time_budget_s is None else f", {clock(holds.time_budget_s)}"
    cost = "" if holds.max_cost is None else f", {money(holds.max_cost, holds.currency)}"
    print(f"study {name} goes on to {holds.trials} finished trials{budget}{cost} in all; workers that run see it at once")


def refit(name: str, trial: int, home: Path | None, storage: str | None, as_json: bool) -> int:
    """0 when the weights are back with the scores that the study has, 1 when they come out differently."""
    found = _named(name, home, storage)
    done = found.refitted(trial)
    if as_json:
        print(json.dumps({"study": name, "trial": trial, "directory": str(done.directory), "same_scores": done.same_scores}))
    else:
        same = "the same scores" if done.same_scores else "OTHER scores (another machine or other packages); the gate decides"
        print(f"trial {trial} is fitted again, with {same}: {done.directory}")
    return 0 if done.same_scores else 1


def _watched(read: Callable[[], Overview], quiet: bool) -> Overview:
    """Until the study is over or Ctrl-C: a table that is redrawn on a terminal, a line where something changed elsewhere."""
    console = Console(stderr=quiet, markup=False, highlight=False)
    seen = read()
    try:
        if console.is_terminal:
            with Live(overview_view(seen), console=console, auto_refresh=False) as live:
                while not seen.over:
                    time.sleep(WATCH_S)
                    seen = read()
                    live.update(overview_view(seen), refresh=True)
            return seen
        said = ""
        while True:
            if (now := lines(seen)[0]) != said:
                console.print(said := now)
            if seen.over:
                return seen
            time.sleep(WATCH_S)
            seen = read()
    except KeyboardInterrupt:
        return seen
