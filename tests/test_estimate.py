"""A dry run: its parts add up, its band holds its point, it counts steps as a sweep makes them, and the home stays as it is."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path

import pytest
from small_studies import knowing_home, small

from adapters.backbone import Backbone
from tuning.errors import SweepRefused
from tuning.estimate import DRAWS, Band, Estimate, Timing, corner_of, drawn, estimated
from tuning.recipe import Recipe
from tuning.timing import timed, timed_apart

OWN = Timing(
    steps=20,
    most_steps=None,
    before_s=5.0,
    first_step_s=1.5,
    step_s=(1.0, 1.0),
    read_every=5,
    measure_s=(10.0, 14.0),
    once_s=30.0,
    peak_memory_mib=1000.0,
    gpu_memory_mib=0.0,
    adapter_bytes=2_000_000,
    checkpoint_bytes=6_000_000,
)
CORNER = replace(OWN, steps=60, step_s=(3.0, 3.0), first_step_s=4.0, peak_memory_mib=1500.0, adapter_bytes=8_000_000)


@pytest.fixture
def plain() -> Recipe:
    """Nothing that is searched costs more than anything else."""
    return small(Path("backbone"), **{"study.trials": 10}).with_values({"search": ("method.learning_rate",), "method.steps": 20})


@pytest.fixture
def wide() -> Recipe:
    search = (
        "adapter.kind",
        "adapter.lora.rank",
        "method.batch_size",
        "method.kl_weight",
        "method.learning_rate",
        "method.steps",
    )
    return small(Path("backbone"), **{"study.trials": 10}).with_values({"search": search, "method.steps": 20})


def bands(found: Estimate) -> list[Band]:
    several = [found.trial_s, found.sweep_s, found.memory_mib, found.gpu_memory_mib, found.disk_bytes]
    return several if found.cost is None else [*several, found.cost]


def test_a_trial_is_its_load_its_steps_and_its_measures() -> None:
    # 20 steps of 1 s, and 0.5 s more at each of the four readings of the distance
    assert OWN.fit_s(20) == 22.0
    assert OWN.trial_s == 5.0 + 22.0 + 12.0


def test_a_sweep_is_its_first_trial_and_the_drawn_ones(plain: Recipe) -> None:
    found = estimated(plain, OWN, OWN)
    assert found.trial_s.point == pytest.approx(OWN.trial_s)
    assert found.sweep_s.point == pytest.approx(30.0 + 10 * OWN.trial_s)


def test_every_band_holds_its_point(wide: Recipe, plain: Recipe) -> None:
    for recipe, corner in ((wide, CORNER), (plain, OWN)):
        for trials in (1, 40):
            asked = recipe.with_values({"study.trials": trials, "study.price_per_hour": 2.0})
            for band in bands(estimated(asked, OWN, corner)):
                assert 0 <= band.low <= band.point <= band.high
    assert estimated(wide, OWN, CORNER).trial_s.high > CORNER.trial_s


def test_a_wider_search_and_shakier_timings_widen_the_band(wide: Recipe, plain: Recipe) -> None:
    def width(found: Estimate) -> float:
        return (found.sweep_s.high - found.sweep_s.low) / found.sweep_s.point

    shaky = replace(OWN, step_s=(0.5, 1.5))
    assert width(estimated(wide, OWN, CORNER)) > width(estimated(plain, OWN, OWN))
    assert width(estimated(plain, shaky, shaky)) > width(estimated(plain, OWN, OWN))


def test_workers_share_the_time_and_not_the_cost(plain: Recipe) -> None:
    priced = plain.with_values({"study.price_per_hour": 3.6, "study.currency": "EUR"})
    one, two = estimated(priced, OWN, OWN), estimated(priced, OWN, OWN, workers=2)
    assert two.sweep_s.point == pytest.approx(one.sweep_s.point / 2)
    assert one.cost is not None and two.cost is not None
    assert one.cost.point == pytest.approx(one.sweep_s.point * 3.6 / 3600) == pytest.approx(two.cost.point)
    assert estimated(plain, OWN, OWN).cost is None


@pytest.mark.parametrize(("limit", "by"), [({"study.time_budget_s": 100.0}, "time"), ({"study.max_cost": 0.1}, "cost"), ({}, "")])
def test_a_budget_caps_what_is_told(plain: Recipe, limit: dict[str, float], by: str) -> None:
    found = estimated(plain.with_values({"study.price_per_hour": 3.6, **limit}), OWN, OWN)
    assert found.limited_by == by
    assert found.sweep_s.high <= 100.0 + 1e-9 if by else found.sweep_s.point > 400


def test_disk_holds_the_adapters_that_are_kept(plain: Recipe) -> None:
    def taken(keep: int) -> float:
        return estimated(plain.with_values({"study.keep_adapters": keep}), OWN, OWN).disk_bytes.point

    assert taken(8) - taken(5) == 3 * OWN.adapter_bytes
    assert taken(50) == taken(9)  # no more than there are trials


def test_the_costliest_corner_is_the_upper_end_of_every_size(wide: Recipe) -> None:
    corner = corner_of(wide)
    assert corner == {
        "adapter.kind": "lora+softcot",
        "adapter.lora.rank": 64,
        "method.batch_size": 32,
        "method.kl_weight": 1.0,
        "method.steps": 60,
    }
    assert wide.with_values(dict(corner)).method.steps == 60
    narrow = wide.with_values({"ranges": {"method.steps": (10, 30)}})
    assert corner_of(narrow)["method.steps"] == 30


def test_drawn_points_lie_between_the_two_that_are_timed(wide: Recipe) -> None:
    points = drawn(wide)
    assert len(points) == DRAWS and points == drawn(wide)
    assert all(10 <= point["method.steps"] <= 60 for point in points)
    assert all(0 <= share <= 1 for point in points for field, share in point.items() if field != "method.steps")


def test_a_token_budget_ends_the_drawn_fits_too(wide: Recipe) -> None:
    short = replace(OWN, most_steps=10, steps=10)
    assert estimated(wide, short, short).trial_s.point <= short.before_s + short.fit_s(10) + 12.0 + 1e-9


@pytest.mark.slow
def test_a_timing_counts_the_steps_that_a_fit_makes(backbone_directory: Path, session_backbone: Backbone, tmp_path: Path) -> None:
    home = knowing_home(session_backbone, tmp_path)
    before = sorted(home.rglob("*"))
    recipe = small(backbone_directory, **{"adapter.kind": "lora", "method.steps": 7})
    found = timed(recipe, home / "cache", 1)
    assert found.steps == 7 and len(found.step_s) == 2 and len(found.measure_s) == 2
    assert found.adapter_bytes > 1000 and found.checkpoint_bytes > 0 and found.peak_memory_mib > 10
    assert min(found.before_s, found.first_step_s, *found.step_s, *found.measure_s) > 0
    assert sorted(home.rglob("*")) == before
    limited = timed(recipe.with_values({"method.token_budget": 60}), home / "cache", 1, with_base=False)
    assert found.once_s > 0 and limited.once_s == 0
    assert limited.most_steps is not None and limited.steps <= limited.most_steps < 7


@pytest.mark.slow
def test_a_process_that_the_system_ends_is_told_with_the_way_out(
    backbone_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SweepRefused, match="2 steps of batches of 2 was ended by the system.*micro_batch_tokens"):
        monkeypatch.setattr("tuning.timing.timed", _killed)
        timed_apart(small(backbone_directory), tmp_path, 1)


def _killed(recipe: Recipe, cache: Path, threads: int, with_base: bool) -> Timing:
    import os
    import signal

    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


@pytest.mark.slow
def test_a_dry_run_leaves_the_home_as_it_was(backbone_directory: Path, tmp_path: Path) -> None:
    from service.commands.dry_run import dry_run
    from service.commands.tune import Overrides

    file = tmp_path / "recipe.toml"
    file.write_text(
        f'name = "small"\nbackbone = "{backbone_directory}"\ndomain = "icd10-chapter"\nprotected = ["arithmetic"]\n'
        'search = ["adapter.lora.rank", "method.steps"]\n[method]\nsteps = 3\nbatch_size = 2\nnum_examples = 20\n'
        "[evaluation]\ndomain_items = 8\nchain_items = 4\ngenerated_items = 1\n[study]\nscales = [1.0]\n"
    )
    home, out = tmp_path / "home", io.StringIO()
    with redirect_stdout(out), redirect_stderr(io.StringIO()):
        assert dry_run(file, Overrides(4, max_cost=1.0, price_per_hour="2.50 EUR"), 1, home, None, True) == 0
    told = json.loads(out.getvalue())
    assert told["costliest"] == {"adapter.lora.rank": 64, "method.steps": 60}
    assert (told["trials"], told["own"]["steps"], told["corner"]["steps"], told["currency"]) == (4, 3, 60, "EUR")
    assert told["sweep_s"]["low"] <= told["sweep_s"]["point"] <= told["sweep_s"]["high"]
    assert not home.exists()
