"""`graftline continue`: new rows of a domain, from their check to a candidate that passed the gate, and never further."""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from adapters.backbone import Backbone
from engine.inspect import NOT_HERE, inspector
from engine.profile import Profile
from engine.torch_engine import TorchEngine
from evaluation.errors import DataError
from evaluation.task import Example, split_of
from evaluation.tasks import task_named
from registry.earlier import earlier_domains
from registry.errors import ChampionMoved, GateIsRunning, NoRoom, RegistryUnreachable, lacks_room
from registry.home import home_directory
from registry.ledger import Ledger
from registry.manifest import MANIFEST, TrainingHashes, file_digest
from registry.names import resolve
from registry.release import Release, load_release, mark_candidate, published
from registry.tracking import Tracking
from registry.verdicts import recorded_report
from service.commands.releases import gate_policy, gate_release, gate_table, publish_directory
from service.commands.subject import served_backbone
from service.elsewhere import elsewhere
from service.options import TRIALS
from service.pace import checked_seconds
from service.preempted import START_AGAIN, ends_orderly
from service.sweep_view import LinesView
from tuning.candidates import Candidate, in_order
from tuning.errors import Preempted, RoundIsRunning, StorageAway, StorageRefused, StudyIsRunning, SweepStopped
from tuning.gating import Subject, gate_settings, recipe_policy
from tuning.manifest import fingerprints_of
from tuning.new_data.beside import beside_champion
from tuning.new_data.carried import carried
from tuning.new_data.drift import LEAST_ROWS, drift, drift_picture, read_side
from tuning.new_data.kept import RoundFolder, alone
from tuning.new_data.learnable import learnable
from tuning.new_data.rows import KNOWN, file_sha256, sifted
from tuning.new_data.studies import RoundArm, round_arms
from tuning.new_data.tasks import Known, RoundTasks, write_tasks
from tuning.recipe import Recipe
from tuning.study import Sweep

Status = Literal["published", "nothing", "refused"]
REFUSED, LATER = 3, START_AGAIN
EXIT_CODES: dict[str, int] = {"published": 0, "nothing": 0, "refused": REFUSED}
PASSING = (
    RegistryUnreachable,
    GateIsRunning,
    ChampionMoved,
    NoRoom,
    RoundIsRunning,
    StudyIsRunning,
    SweepStopped,
    StorageAway,
    StorageRefused,  # the rows are not to blame
    Preempted,
)
CHAMPION = "champion"  # the name under which the engine holds it
CANDIDATE = "candidate"  # the folder of what was chosen under the champion's policy, where that is not plain decoding


@dataclass(frozen=True)
class Asked:
    data: Path
    trials: int
    always: bool
    least_rows: int
    time_budget_s: float | None  # of the gate; None: the policy's

    @property
    def thresholds(self) -> dict[str, object]:
        """What decides whether there is anything to do."""
        return {"always": self.always, "least_rows": self.least_rows}


@dataclass(frozen=True)
class Round:
    """What one run of the command works with."""

    asked: Asked
    name: str
    recipe: Recipe  # what the arms take their values from: the champion's, or the one that was given
    champion: Release
    known: Known
    folder: RoundFolder
    home: Path
    tracking: Tracking
    console: Console

    def ended(self, status: Status, reason: str, more: dict[str, Any], is_final: bool = True) -> dict[str, Any]:
        told = {"status": status, "reason": reason, "name": self.name, "champion": str(self.champion.full_name), **more}
        about = {"asked": self.asked.thresholds, "is_final": is_final, "folder": str(self.folder.directory)}
        return self.folder.write("outcome", {**told, **about})


def continued(domain: str, asked: Asked, home: Path | None, tracking_uri: str | None, as_json: bool) -> int:
    """0: published, or nothing to do; 3: refused; 75: try again later. What is wrong with the rows raises."""
    place = home_directory(home)
    console = Console(stderr=as_json, markup=False, width=None if sys.stdout.isatty() else 140)
    checked_seconds(asked.time_budget_s)
    try:
        tracking = Tracking.at(place, tracking_uri).existing()
        given = Recipe.load(Path(domain)) if domain.endswith(".toml") else None
        name = given.name if given else domain
        champion = load_release(tracking, name, resolve(tracking, name).version)
        with alone(place, name):
            outcome = _taken_in(asked, name, given, champion, place, tracking, console)
    except (*PASSING, OSError) as error:
        if isinstance(error, OSError) and not lacks_room(error):
            raise
        told = {"status": "later", "error": {"type": type(error).__name__, "message": str(error)}}
        print(json.dumps(told)) if as_json else print(f"graftline: {error}", file=sys.stderr)
        return LATER
    if as_json:
        print(json.dumps(outcome))
    else:
        console.print(f"{outcome['status']}: {outcome['reason']}", highlight=False)
        if outcome["status"] == "published":
            more = elsewhere(place, tracking.uri)
            console.print(f"next: graftline promote {outcome['release']}{more}", highlight=False, soft_wrap=True)
    return EXIT_CODES[outcome["status"]]


def _taken_in(
    asked: Asked, name: str, given: Recipe | None, champion: Release, home: Path, tracking: Tracking, console: Console
) -> dict[str, Any]:
    fitted = Subject(str(champion.full_name), champion.directory, champion.manifest).recipe
    known = Known.of(fitted.domain)
    if not asked.data.is_file():
        raise DataError(f"New rows are a file in the columns of {known.task.name!r}, but {str(asked.data)!r} is none. Name one.")
    recipe = fitted if given is None else _from_given(given, fitted)
    unusual = "" if given is None and asked.trials == TRIALS else _asked_sha256(recipe, asked.trials)
    folder = RoundFolder.of(home, name, file_sha256(asked.data), file_digest(champion.directory / MANIFEST), unusual)
    before = folder.read("outcome")
    if before is not None and before["is_final"] and (before["status"] != "nothing" or before["asked"] == asked.thresholds):
        console.print(f"these rows were taken in before; see {folder.directory}", highlight=False)
        return before
    found = Round(asked, name, recipe, champion, known, folder, home, tracking, console)
    fingerprint = champion.manifest.backbone.fingerprint
    earlier = earlier_domains(tracking, name, fingerprint, fitted.domain, known.task.name)
    guarded = [task_named(task) for task in dict.fromkeys((*recipe.protected, *earlier))]
    hashes = fingerprints_of(TrainingHashes.read(champion.directory))
    rows = sifted(known, asked.data, hashes, guarded)
    checks = folder.write("checks", rows.as_dict())
    left_out = ", ".join(f"{count} {why}" for why, count in rows.as_dict()["left_out"].items())  # type: ignore[attr-defined]
    console.print(f"{len(rows.rows)} of {rows.num_read} rows are used" + (f" ({left_out})" if left_out else ""), highlight=False)
    unread = [row for row in rows.rows if split_of(row.group) != "gate"]
    trains = [row for row in unread if split_of(row.group) == "train"]
    if len(rows.rows) < asked.least_rows or not trains or len(unread) == len(rows.rows):
        why = (
            "all of them are known"
            if rows.count(*KNOWN) == rows.num_read
            else f"{asked.least_rows} are needed, some of each split"
        )
        return found.ended("nothing", f"{len(rows.rows)} of {rows.num_read} rows are new: {why}", {"checks": checks})
    return _learnt(found, rows.rows, rows.lines, checks, [str(one) for one in earlier.values()])


def _asked_sha256(recipe: Recipe, trials: int) -> str:
    """Of what the arms fit beside the usual: the same rows under another recipe, or with more trials, are another round."""
    return hashlib.sha256(json.dumps([recipe.model_dump(mode="json"), trials], sort_keys=True).encode()).hexdigest()


def _from_given(given: Recipe, fitted: Recipe) -> Recipe:
    """What of a recipe beside the champion's: protected families, method, study, evaluation and gate; never adapter or domain."""
    kept = ("protected", "method", "study", "evaluation", "gate", "engine")
    return given.model_copy(update={name: getattr(fitted, name) for name in Recipe.model_fields if name not in kept})


def _learnt(
    found: Round, new: tuple[Example, ...], lines: dict[str, int], checks: dict[str, Any], earlier: list[str]
) -> dict[str, Any]:
    backbone = served_backbone(found.champion, partial(found.console.print, highlight=False))
    engine = TorchEngine(backbone, max_rows=64, precision=found.recipe.evaluation.precision)
    drifted = found.folder.step("drift", partial(_drift, found, engine, backbone, new))
    if "likelihood_p" in drifted:
        shown = f"likelihood p = {drifted['likelihood_p']:.3g}, distance p = {drifted['mmd_p']:.3g}"
        found.console.print(f"drift: {shown}; {found.folder.directory / 'drift.png'}", highlight=False)
    worth = found.folder.step("learnable", partial(_learnable, found, engine, backbone, new, lines))
    found.console.print(worth["said"], highlight=False)
    if worth["hints"]:
        shares = f"{worth['hinted']:.0%} of the new rows, {worth['old_hinted']:.0%} of the old ones"
        found.console.print(f"{len(worth['hints'])} answers may be wrong ({shares}): see learnable.json", highlight=False)
    told: dict[str, Any] = {"checks": checks, "drift": drifted, "learnable": worth}
    if not worth["is_lost"] and not found.asked.always:
        return found.ended("nothing", f"nothing is lost on the new rows: {worth['said']}", told)
    chosen = found.folder.step("chosen", partial(_swept, found, new, earlier))
    told |= {"chosen": chosen}
    if chosen["directory"] is None:
        return found.ended("refused", "no trial kept every protected family within its margin with a gain", told)
    policy = Profile.load(found.champion.directory).policy
    candidate = carried(Path(chosen["directory"]), policy, found.folder.directory / CANDIDATE)
    beside = found.folder.step("beside", lambda: _beside(found, engine, backbone, new, candidate))
    found.console.print(beside["said"], highlight=False)
    told |= {"beside": beside}
    if not beside["passed"]:
        return found.ended("refused", beside["said"], told)
    return _gated(found, engine, backbone, candidate, chosen["run_id"], told)


def _drift(found: Round, engine: TorchEngine, backbone: Backbone, new: tuple[Example, ...]) -> dict[str, Any]:
    old = [row for row in found.known.task.rows if split_of(row.group) == "train"]
    unread, inside = [row for row in new if split_of(row.group) != "gate"], inspector(engine)
    if inside is None or min(len({row.group for row in side}) for side in (old, unread)) < LEAST_ROWS:
        return {"not_measurable": NOT_HERE if inside is None else f"rows of {LEAST_ROWS} groups are needed on both sides"}
    before, after = read_side(inside, backbone, old), read_side(inside, backbone, unread)
    told = drift(before, after)
    drift_picture(before, after, told, found.folder.directory / "drift.png")
    return asdict(told)


def _learnable(
    found: Round, engine: TorchEngine, backbone: Backbone, new: tuple[Example, ...], lines: dict[str, int]
) -> dict[str, Any]:
    engine.load(CHAMPION, Profile.load(found.champion.directory))
    try:
        told = learnable(engine, backbone, CHAMPION, found.known.task, found.known.task.rows, new)
    finally:
        engine.unload(CHAMPION)
    hints = [{"line": lines[hint.id], **asdict(hint)} for hint in told.hints]
    return {**asdict(told), "hints": hints, "is_lost": told.is_lost, "said": str(told)}


def _swept(found: Round, new: tuple[Example, ...], earlier: list[str]) -> dict[str, Any]:
    """The arms one after the other; each goes on where it was stopped."""
    folder = found.folder.directory / "data"
    tasks = RoundTasks(folder) if folder.is_dir() else write_tasks(folder, found.known, new)
    start, key = found.champion.directory, found.folder.key
    others = [f"models:/{named.replace('@', '/')}" for named in _loras(found, earlier)]
    arms = round_arms(found.recipe, start, tasks, others, key, found.asked.trials, found.tracking)
    by_arm = {arm.name: _arm(found, arm) for arm in arms}
    every = in_order([candidate for candidates in by_arm.values() for candidate in candidates])
    usable = [candidate for candidate in every if candidate.feasible and candidate.domain_gain > 0]
    table = {
        arm: [{"gain": one.domain_gain, "retention": one.retention, "feasible": one.feasible} for one in candidates]
        for arm, candidates in by_arm.items()
    }
    if not usable:
        return {"directory": None, "run_id": None, "arm": None, "arms": table}
    best = usable[0]
    arm = next(name for name, candidates in by_arm.items() if best in candidates)
    return {"directory": str(best.directory), "run_id": best.run_id, "arm": arm, "params": best.params, "arms": table}


def _loras(found: Round, earlier: list[str]) -> list[str]:
    """The earlier releases that hold a LoRA."""
    kept = []
    for named in earlier:
        name, _, version = named.rpartition("@")
        if "lora" in load_release(found.tracking, name, int(version)).manifest.profile.adapters:
            kept.append(named)
    return kept


def _arm(found: Round, arm: RoundArm) -> list[Candidate]:
    sweep = Sweep(arm.recipe, found.home, found.tracking)
    found.console.print(f"arm {arm.name}", highlight=False)
    study = sweep.create(resume=True)
    with ends_orderly() as ended:
        sweep.run(study, LinesView(arm.recipe, sys.stderr).on_event, ended)
    return sweep.candidates(study)


def _beside(found: Round, engine: TorchEngine, backbone: Backbone, new: tuple[Example, ...], directory: Path) -> dict[str, Any]:
    old_items, new_items = ([row for row in rows if split_of(row.group) == "gate"] for rows in (found.known.task.rows, new))
    champion, candidate = Profile.load(found.champion.directory), Profile.load(directory)
    told = beside_champion(engine, backbone, champion, candidate, found.known.task, old_items, new_items)
    return {**told.as_dict(), "said": str(told)}


def _gated(
    found: Round, engine: TorchEngine, backbone: Backbone, directory: Path, run_id: str | None, told: dict[str, Any]
) -> dict[str, Any]:
    """Publishes what was chosen, gates it, and marks it as the candidate where it passed."""
    tracking = found.tracking
    _same_champion(found)
    release = published(tracking, found.name, directory) or publish_directory(tracking, directory, found.name, run_id)
    report = recorded_report(tracking, release.full_name)
    if report is None or report.verdict == "inconclusive":
        recipe = Subject(str(release.full_name), release.directory, release.manifest).recipe
        policy = gate_policy(tracking, found.name, recipe_policy(recipe), None, "")
        settings = gate_settings(policy, time_budget_s=found.asked.time_budget_s)
        report = gate_release(tracking, release, engine, backbone, settings, policy, found.home, found.console)
        found.console.print(gate_table(report))
    told |= {"release": str(release.full_name), "verdict": report.verdict, "gate": report.sentence}
    if not report.passed:
        return found.ended("refused", report.sentence, told, is_final=report.verdict == "fail")
    mark_candidate(tracking, release.full_name)
    return found.ended("published", f"{release.full_name} passed its gate and is the candidate of {found.name}", told)


def _same_champion(found: Round) -> None:
    now = Ledger(found.tracking, found.name).champion_version()
    if now != found.champion.version:
        raise ChampionMoved(
            f"A round begins from the champion, but that of {found.name} went from version {found.champion.version} to {now} in "
            "the meantime. Run it again: it begins from the new one."
        )
