"""What a canary's bounds catch, and within how many requests: the service's own monitor on simulated traffic.

    python -m benchmarks.canary --results [--full]

A request fails, or takes its time a token, at random; the times spread by 0.5 in their log. `users` says how many keys send
them: each has a failure rate and a pace of its own, and half of the requests come from a tenth of them. Without it every request
is drawn on its own. Default: 100 runs of each release, 600 of the champion once more; --full: four times as many.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from benchmarks.results import provenance, run_kind, table, write_section
from registry.canary_chain import Bounds, Canary
from registry.names import ReleaseName
from service.canary import position, position_digest
from service.canary_counts import Ending, Monitor

RELEASE, CHAMPION = ReleaseName("law", 2), ReleaseName("law", 1)
# At the very edge: a canary like its champion is rolled back with probability alpha at most.
STRICT = Bounds(max_error_rate_rise=0, max_latency_ratio=1, min_requests=1, alpha=0.1)
SHARES = (0.05, 0.1, 0.2, 0.5)
RUNS, FULL_RUNS = 100, 400
NULL_RUNS, FULL_NULL_RUNS = 600, 2400
MOST = 3000


@dataclass(frozen=True)
class Traffic:
    """`fails` is the champion's and the canary's rate of failures, `slower` the canary's time over the champion's."""

    fails: tuple[float, float] = (0.01, 0.01)
    slower: float = 1.0
    users: int | None = None

    def requests(self, seed: int, share: float) -> Iterator[tuple[bytes, bool, Ending]]:
        rng = np.random.default_rng(seed)
        often_fails = rng.random(self.users or 1) < 0.15
        pace = np.exp(rng.normal(0, 1, self.users or 1))
        for number in itertools.count():
            user = number
            if self.users is not None:
                user = int(rng.integers(max(1, self.users // 10) if rng.random() < 0.5 else self.users))
            digest = position_digest(RELEASE, f"{seed}/{user}")
            on_canary = position(digest) < share
            own = 0 if self.users is None else user
            failed = bool(rng.random() < self.fails[on_canary] + (0.3 * bool(often_fails[own]) if self.users is not None else 0))
            token_s = float(0.02 * rng.lognormal(0, 0.5) * (pace[own] if self.users is not None else 1))
            token_s *= self.slower if on_canary else 1
            yield digest, on_canary, Ending(failed, False, 20, None if failed else 0.1, None if failed else token_s)


def rolled_back_after(traffic: Traffic, seed: int, share: float, bounds: Bounds, most: int) -> int | None:
    """After how many requests of both sides; None when not within `most`."""
    monitor = Monitor(Canary(RELEASE, CHAMPION, 1, share, False, bounds, False, ""))
    for number, (key, on_canary, ending) in enumerate(itertools.islice(traffic.requests(seed, share), most), start=1):
        monitor.note(key, on_canary, ending)
        if monitor.is_due and monitor.look() is not None:
            return number
    return None


def row(name: str, traffic: Traffic, runs: int, most: int) -> list[str]:
    cells = []
    for share in SHARES:
        found = [rolled_back_after(traffic, seed, share, Bounds(), most) or most + 1 for seed in range(runs)]
        median, late = (float(np.quantile(found, part, method="higher")) for part in (0.5, 0.95))
        cells.append(f"{median:.0f} ({late:.0f})".replace(f"{most + 1:.0f}", f"over {most}"))
    return [name, *cells]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help=f"{FULL_RUNS} runs, {FULL_NULL_RUNS} of the champion once more")
    parser.add_argument("--runs", type=int, help=f"[default: {RUNS}]")
    parser.add_argument("--null-runs", type=int, help=f"of the champion once more [default: {NULL_RUNS}]")
    parser.add_argument("--most", type=int, help=f"requests of a run, at most [default: {MOST}]")
    parser.add_argument("--results", action="store_true", help="write the tables into docs/results.md too")
    args = parser.parse_args()
    runs = args.runs or (FULL_RUNS if args.full else RUNS)
    null_runs = args.null_runs or (FULL_NULL_RUNS if args.full else NULL_RUNS)
    kinds = {
        "fails everything": Traffic((0.01, 1.0)),
        "fails 17 % instead of 2 %": Traffic((0.02, 0.17)),
        "takes three times the time a token": Traffic(slower=3),
        "takes twice the time a token": Traffic(slower=2),
        "takes 1.5 times the time a token": Traffic(slower=1.5),
        "fails everything, 60 users": Traffic((0.01, 1.0), users=60),
    }
    caught = table(
        ["the release", *(f"share {share:g}" for share in SHARES)],
        [row(name, traffic, runs, args.most or MOST) for name, traffic in kinds.items()],
    )
    null = []
    for users in (None, 60, 12):
        traffic = Traffic((0.02, 0.02), users=users)
        alarms = sum(rolled_back_after(traffic, seed, 0.2, STRICT, 1200) is not None for seed in range(null_runs))
        null.append(["a key a request" if users is None else f"{users} users", f"{alarms / null_runs:.3f}", f"{STRICT.alpha:g}"])
    level = table(["the champion once more", "rolled back", "alpha"], null)
    body = (
        f"Requests of both sides until the rollback under the default bounds: median (95 % of {runs} runs).\n\n"
        f"{caught}\n\nWith no rise and no ratio tolerated, share 0.2, 1200 requests, {null_runs} runs:\n\n{level}"
    )
    print(body)
    if args.results:
        kind = run_kind(args.runs, args.null_runs, args.most, full=args.full)
        write_section("canary", f"Rollback of canaries ({kind})", f"{body}\n\n{provenance('canary')}")


if __name__ == "__main__":
    main()
