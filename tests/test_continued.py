"""`graftline continue`: what ends with which exit code, what is kept, and the whole of it on a domain that is really learnt."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import shelves
import torch
from rich.console import Console
from safetensors.torch import load_file
from shelves import NAME, champion, letters, parcels, recipe_of, write_jsonl, write_task
from small_releases import promote, random_lora
from small_studies import knowing_home
from stores import store_at
from test_quickstart import passing

from adapters.backbone import Backbone
from engine.profile import DecodingPolicy, Profile
from evaluation.errors import WrongRow
from evaluation.tasks import task_named
from registry.claim import held
from registry.errors import NoChampion, UnknownRelease
from registry.ledger import Ledger
from registry.names import resolve
from registry.release import load_release, publish
from registry.tracking import Tracking
from service.commands import continued as command
from service.commands.continued import LATER, REFUSED, Asked, continued
from service.commands.releases import gate_and_promote
from tuning.manifest import complete
from tuning.new_data.rows import checked_rows
from tuning.new_data.studies import round_arms
from tuning.new_data.tasks import Known, write_tasks
from tuning.recipe import Recipe


@pytest.fixture(scope="module")
def prepared(session_backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home whose champion of `shelves` is an adapter of random weights, made once and copied for each test."""
    folder = tmp_path_factory.mktemp("prepared")
    home, toml = folder / "home", write_task(folder / "task")
    tracking = store_at(home)
    examples = task_named(str(toml)).examples("train", 20)
    profile = Profile((random_lora(session_backbone, 1),))
    complete(folder / "a", recipe_of(session_backbone, toml), session_backbone, profile, 1.0, examples)
    publish(tracking, NAME, folder / "a")
    promote(tracking, NAME, 1)
    return home


@pytest.fixture
def released(prepared: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(prepared, tmp_path / "home"))


def rows(tmp_path: Path, numbers: range = range(1000, 1120), colours: tuple[str, ...] = ("green",)) -> Path:
    return write_jsonl(tmp_path / "new.jsonl", parcels(numbers, colours))


def run(home: Path, data: Path, capsys: pytest.CaptureFixture[str], **asked: Any) -> tuple[int, dict[str, Any]]:
    options: dict[str, Any] = {"trials": 1, "always": False, "least_rows": 40, "time_budget_s": None} | asked
    code = continued(NAME, Asked(data, **options), home, None, as_json=True)
    return code, json.loads(capsys.readouterr().out)


def test_rows_that_are_all_known_are_nothing_to_do(released: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, told = run(released, rows(tmp_path, range(60), ("red", "blue")), capsys)
    assert (code, told["status"]) == (0, "nothing") and "all of them are known" in told["reason"]
    assert told["checks"]["left_out"] == {"there already": 60}


def test_too_few_rows_are_nothing_to_do(released: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, told = run(released, rows(tmp_path, range(1000, 1020)), capsys)
    assert (code, told["status"]) == (0, "nothing") and "20 of 20 rows are new: 40 are needed" in told["reason"]
    code, told = run(released, tmp_path / "new.jsonl", capsys, least_rows=21)
    assert "21 are needed" in told["reason"]  # what was asked for is another thing now


def test_where_nothing_is_lost_nothing_is_fitted_and_the_same_rows_again_are_not_read(
    released: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = rows(tmp_path, range(1000, 1120), ("red", "blue"))
    code, told = run(released, data, capsys)
    assert (code, told["status"]) == (0, "nothing") and "nothing is lost" in told["reason"]
    folder = Path(told["folder"])
    assert (folder / "drift.png").is_file() and told["drift"]["mmd_p"] > 0 and not (released / "studies").exists()
    monkeypatch.setattr(command, "sifted", None)  # is called by no second run
    assert run(released, data, capsys) == (code, told)


def test_bad_rows_leave_nothing_behind(released: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_jsonl(tmp_path / "bad.jsonl", [{"text": "parcel", "shelf": "nowhere", "shelves": ["north", "south"]}])
    with pytest.raises(WrongRow, match="line 1"):
        run(released, data, capsys)
    assert not list((released / "continued" / NAME).glob("*/*"))


def test_what_may_pass_ends_with_75_and_says_so(released: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = rows(tmp_path)
    with held(released / "continued" / NAME / "lock"):
        code, told = run(released, data, capsys)
    assert (code, told["status"], told["error"]["type"]) == (LATER, "later", "RoundIsRunning")
    asked = Asked(data, 1, False, 40, None)
    assert continued(NAME, asked, released, "http://127.0.0.1:9", as_json=True) == LATER
    assert json.loads(capsys.readouterr().out)["error"]["type"] == "RegistryUnreachable"


def test_a_full_disk_passes_and_an_error_that_does_not_pass_is_raised(
    released: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = rows(tmp_path)
    for number, passes in ((errno.ENOSPC, True), (errno.EACCES, False)):

        def fails(*_: object, number: int = number) -> dict[str, Any]:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(command, "_drift", fails)
        if passes:
            code, told = run(released, data, capsys)
            assert (code, told["status"], told["error"]["type"]) == (LATER, "later", "OSError")
        else:
            with pytest.raises(PermissionError):
                run(released, data, capsys)


def test_a_name_that_is_not_there_or_has_no_champion_is_refused(
    released: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = Asked(rows(tmp_path), 1, False, 40, None)
    with pytest.raises(UnknownRelease):
        continued("nobody", asked, released, None, as_json=True)
    with Tracking.at(released).client() as client:
        client.create_registered_model("waiting")
    with pytest.raises(NoChampion):
        continued("waiting", asked, released, None, as_json=True)


def test_what_was_refused_is_tried_anew_with_other_trials_or_another_recipe(
    released: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[int] = []

    def swept(found: command.Round, *_: object) -> dict[str, Any]:
        tried.append(found.asked.trials)
        return chosen(None)

    monkeypatch.setattr(command, "_swept", swept)
    data, folders = rows(tmp_path), set()
    for trials in (2, 2, 5, 5):
        code, told = run(released, data, capsys, always=True, trials=trials)
        assert (code, told["status"]) == (REFUSED, "refused")
        folders.add(told["folder"])
    assert tried == [2, 5] and len(folders) == 2
    recipe = released / "given.toml"
    directory = load_release(Tracking.at(released), NAME, 1).directory
    given = json.loads((directory / "manifest.json").read_text())["recipe"]
    recipe.write_text(f'name = "{NAME}"\nbackbone = "{given["backbone"]}"\ndomain = "{given["domain"]}"\nprotected = ["boxes"]\n')
    assert continued(str(recipe), Asked(data, 2, True, 40, None), released, None, as_json=True) == REFUSED
    assert tried == [2, 5, 2] and json.loads(capsys.readouterr().out)["folder"] not in folders


def chosen(directory: Path | None) -> dict[str, Any]:
    return {"directory": None if directory is None else str(directory), "run_id": None, "arm": "new", "arms": {}}


def test_where_no_trial_may_be_used_it_is_refused(
    released: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "_swept", lambda *_: chosen(None))
    code, told = run(released, rows(tmp_path), capsys, always=True)
    assert (code, told["status"]) == (REFUSED, "refused") and "no trial kept" in told["reason"]


def test_what_is_no_better_than_the_champion_on_new_rows_is_refused_and_not_published(
    released: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tracking = Tracking.at(released)
    monkeypatch.setattr(command, "_swept", lambda *_: chosen(load_release(tracking, NAME, 1).directory))
    code, told = run(released, rows(tmp_path), capsys, always=True)
    assert (code, told["beside"]["passed"], told["beside"]["new"]) == (REFUSED, False, 0.0)
    with tracking.client() as client:
        assert len(client.search_model_versions(f"name='{NAME}'")) == 1


def failing(*given: Any) -> Any:
    """The verdict of `passing`, turned round."""
    return passing(*given).model_copy(update={"verdict": "fail"})


def other_files(backbone: Backbone, home: Path) -> Path:
    manifest = load_release(Tracking.at(home), NAME, 1).manifest
    recipe, directory = Recipe.model_validate(manifest.recipe), home / "other"
    if not directory.is_dir():
        complete(directory, recipe, backbone, Profile((random_lora(backbone, 2),)), 1.0, [])
    return directory


@pytest.mark.parametrize("passes", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_candidate_is_published_where_its_gate_passes_and_never_promoted(
    released: Path,
    backbone: Backbone,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    passes: bool,
) -> None:
    tracking, data = Tracking.at(released), rows(tmp_path)
    monkeypatch.setattr(command, "_swept", lambda *_: chosen(other_files(backbone, released)))
    monkeypatch.setattr(command, "_beside", lambda *_: {"passed": True, "said": "better"})
    monkeypatch.setattr(command, "gate_release", passing if passes else failing)
    code, told = run(released, data, capsys, always=True)
    assert (code, told["status"], told["release"]) == (
        0 if passes else REFUSED,
        "published" if passes else "refused",
        f"{NAME}@2",
    )
    assert Ledger(tracking, NAME).champion_version() == 1
    if passes:
        assert resolve(tracking, f"{NAME}@candidate").version == 2
    else:
        with pytest.raises(UnknownRelease):
            resolve(tracking, f"{NAME}@candidate")
    assert run(released, data, capsys, always=True) == (code, told)
    with tracking.client() as client:
        assert len(client.search_model_versions(f"name='{NAME}'")) == 2


@pytest.mark.slow
def test_a_champion_that_moves_in_the_meantime_is_not_passed_over(
    released: Path, backbone: Backbone, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tracking = Tracking.at(released)

    def moved(*_: object) -> dict[str, Any]:
        publish(tracking, NAME, other_files(backbone, released))
        promote(tracking, NAME, 2)
        return {"passed": True, "said": "better"}

    monkeypatch.setattr(command, "_swept", lambda *_: chosen(other_files(backbone, released)))
    monkeypatch.setattr(command, "_beside", moved)
    code, told = run(released, rows(tmp_path), capsys, always=True)
    assert (code, told["error"]["type"]) == (LATER, "ChampionMoved")


def test_the_arms_begin_from_the_champion_and_keep_out_of_other_loras(released: Path, backbone: Backbone, tmp_path: Path) -> None:
    tracking = Tracking.at(released)
    start = load_release(tracking, NAME, 1)
    recipe = Recipe.model_validate(start.manifest.recipe)
    known = Known.of(recipe.domain)
    _, new = checked_rows(known.schema, rows(tmp_path))
    tasks = write_tasks(tmp_path / "data", known, new)
    plain = round_arms(recipe, start.directory, tasks, [], "k", 2, tracking)
    assert [arm.name for arm in plain] == ["replay", "new"]
    every = round_arms(recipe, start.directory, tasks, [f"models:/{NAME}/1"], "k", 2, tracking)
    assert [arm.name for arm in every] == ["replay", "new", "replay-apart", "new-apart"]
    assert [bool(arm.recipe.adapter.orthogonal_to) for arm in every] == [False, False, True, True]
    assert {arm.recipe.adapter.warm_start for arm in every} == {str(start.directory)}
    assert {Path(arm.recipe.domain).stem for arm in every} == {"with_old", "new_alone"}
    assert len({arm.recipe.name for arm in every}) == 4 and every[0].recipe.start == ({"method.learning_rate": 3e-4},)


def learnt_home(backbone: Backbone, home: Path, policy: DecodingPolicy | None = None) -> Path:
    """A champion that was really fitted to red and blue parcels."""
    tracking = store_at(home)
    knowing_home(backbone, home)
    champion(backbone, home, tracking, recipe_of(backbone, write_task(home / "task", 1200)), policy)
    return home


@pytest.mark.slow
def test_a_round_that_learns_the_new_rows_and_keeps_the_old_ones_is_published_once(
    backbone: Backbone, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRAFTLINE_THREADS", "1")
    home, policy = learnt_home(backbone, tmp_path / "home", DecodingPolicy(temperature=0.3)), DecodingPolicy(temperature=0.3)
    tracking, data = Tracking.at(home), rows(tmp_path, range(1200, 1600))
    code, told = run(home, data, capsys, trials=2)
    assert (code, told["status"], told.get("release")) == (0, "published", f"{NAME}@2"), told
    assert told["learnable"]["is_lost"] and told["learnable"]["new"] < 0.1 < 0.9 < told["learnable"]["old"]
    assert told["beside"]["passed"] and told["beside"]["new"] > 0.5 and told["verdict"] == "pass"
    released = load_release(tracking, NAME, 2)
    assert Profile.load(released.directory).policy == policy and released.manifest.profile.decoding["temperature"] == 0.3
    assert released.manifest.recipe["adapter"]["warm_start"] == str(load_release(tracking, NAME, 1).directory)  # type: ignore[index, call-overload]
    assert resolve(tracking, f"{NAME}@candidate").version == 2 and Ledger(tracking, NAME).champion_version() == 1

    def state() -> dict[str, int]:
        return {str(file): file.stat().st_mtime_ns for file in (home / "studies").rglob("*") if file.is_file()}

    before = state()
    assert run(home, data, capsys, trials=2) == (code, told) and state() == before
    (Path(told["folder"]) / "outcome.json").unlink()  # killed before it told: every step is there, and the gate's word
    assert run(home, data, capsys, trials=2) == (code, told) and state() == before
    with tracking.client() as client:
        assert len(client.search_model_versions(f"name='{NAME}'")) == 2
    done = gate_and_promote(f"{NAME}@2", "", False, None, None, home, None, Console(quiet=True))
    assert done.promoted and done.report.passed
    assert Ledger(tracking, NAME).champion_version() == 2
    code, told = run(home, data, capsys, trials=2)  # of the new champion, these rows are old ones
    assert (code, told["status"]) == (0, "nothing") and "all of them are known" in told["reason"]


def main(home: str, data: str) -> None:
    """Dies by SIGKILL before the second arm."""
    torch.set_num_threads(1)
    arms, whole = list[str](), command._arm

    def mortal(found: Any, arm: Any) -> Any:
        arms.append(arm.name)
        if len(arms) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return whole(found, arm)

    command._arm = mortal
    continued(shelves.NAME, Asked(Path(data), 1, False, 40, None), Path(home), None, as_json=True)


@pytest.mark.slow
def test_what_learnt_the_new_rows_and_forgot_the_old_ones_is_refused_and_a_kill_changes_nothing(
    backbone: Backbone, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRAFTLINE_THREADS", "1")
    straight, killed = (learnt_home(backbone, tmp_path / name) for name in ("straight", "killed"))
    data = write_jsonl(tmp_path / "letters.jsonl", letters(range(300)))
    code, told = run(straight, data, capsys)
    assert (code, told["status"]) == (REFUSED, "refused"), told
    assert told["learnable"]["is_lost"] and told["learnable"]["new"] < 0.1 < 0.9 < told["learnable"]["old"]
    assert told["drift"]["mmd_p"] <= 0.01 and set(told["chosen"]["arms"]) == {"replay", "new"}
    assert (told["beside"]["new_verdict"], told["beside"]["old_verdict"]) == ("pass", "fail")

    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(here.parent), str(here)])}
    asked = [sys.executable, "-c", f"from test_continued import main; main({str(killed)!r}, {str(data)!r})"]
    dead = subprocess.run(asked, env=environment, capture_output=True, text=True)
    assert dead.returncode == -signal.SIGKILL, dead.stderr
    assert len(list((killed / "studies").iterdir())) == 1
    code, again = run(killed, data, capsys)
    assert (code, again["status"], again["chosen"]["arm"]) == (REFUSED, "refused", told["chosen"]["arm"])
    assert again["beside"] == told["beside"]
    ends = [load_file(Path(one["chosen"]["directory"]) / "adapter_model.safetensors") for one in (told, again)]
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])
    with Tracking.at(killed).client() as client:
        assert len(client.search_model_versions(f"name='{NAME}'")) == 1
