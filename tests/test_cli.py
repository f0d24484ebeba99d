"""The command line: what goes wrong is one sentence, exit code 2, and nothing half-written."""

from __future__ import annotations

import io
import json
import shutil
import socket
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from small_releases import random_lora, write_release

from adapters.backbone import Backbone
from service.cli import main
from tuning.recipe import Recipe

ROOT = Path(__file__).parent.parent


def graftline(*arguments: str, home: Path) -> subprocess.CompletedProcess[str]:
    """The command, run in this process: a new one would take seconds to import what is here already."""
    out, error = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(error):
        code = ended((*arguments, "--home", str(home)), ROOT, patch)
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), error.getvalue())


def test_status_of_an_empty_home_says_where_to_begin(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "service.cli", "status", "--home", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "graftline tune RECIPE.toml" in done.stdout.replace("\n", " ")


@pytest.mark.parametrize(
    "arguments",
    [
        ("status",),
        ("publish", "nowhere"),
        ("promote", "icd10@1"),
        ("rollback", "icd10", "--reason", "worse"),
        ("evaluate", "icd10@1"),
    ],
    ids=" ".join,
)
def test_a_mistyped_home_stays_empty(
    broken: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    ended((*arguments, "--home", "mistyped"), broken, monkeypatch)
    said = capsys.readouterr()
    assert "there is no registry in" in said.out or "is neither" in said.err or "there is none in" in said.err
    assert not (broken / "mistyped").exists()


def test_the_recipe_of_the_quickstart_is_found_from_any_folder(
    broken: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import service.commands.quickstart as command

    seen: list[Recipe] = []
    monkeypatch.setattr(command, "quickstart", lambda home, recipe, serving: seen.append(Recipe.load(recipe)) or 0)
    assert ended(("quickstart",), broken, monkeypatch) == 0
    assert seen[0].domain == "icd10"


def test_status_as_json_is_one_object(tmp_path: Path) -> None:
    done = graftline("status", "--json", home=tmp_path)
    assert json.loads(done.stdout)["names"] == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("tune", "missing.toml"), "cannot be read"),
        (("publish", "nowhere"), "is neither"),
        (("promote", "nobody@1"), "there is none in"),
        (("promote", "nobody@1", "--time-budget-s", "inf"), "a number of seconds"),
        (("status", "--tracking-uri", "http://127.0.0.1:9"), "must answer"),
        (("status", "--tracking-uri", "ftp://x"), "must be sqlite"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_bad_input_is_one_sentence_and_exit_code_2(tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    done = graftline(*arguments, home=tmp_path)
    assert done.returncode == 2, (done.stdout, done.stderr)
    assert done.stderr.startswith("graftline: ") and said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"), [(("promote", "nobody@1"), "nobody@1"), (("rollback", "nobody", "--reason", "x"), "nobody")]
)
def test_a_release_that_a_registry_does_not_have_is_named(
    tmp_path: Path, prepared_store: Path, arguments: tuple[str, ...], said: str
) -> None:
    shutil.copy(prepared_store, tmp_path / "mlflow.db")
    done = graftline(*arguments, home=tmp_path)
    assert done.returncode == 2 and said in done.stderr and "there is none in" not in done.stderr


@pytest.mark.parametrize("command", ["evaluate", "elicited", "knockout"])
def test_an_adapter_that_does_not_exist_is_told_with_what_does_and_how_one_is_made(
    tmp_path: Path,
    prepared_store: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
) -> None:
    shutil.copy(prepared_store, tmp_path / "mlflow.db")
    assert ended((command, "nosuch", "--home", str(tmp_path)), tmp_path, monkeypatch) == 2
    said = one_sentence(capsys)
    assert "(models: medicine)" in said and "graftline publish" in said and "A directory of adapter files would do too" in said
    assert "promote" not in said


def test_an_error_is_json_where_json_was_asked_for(tmp_path: Path) -> None:
    done = graftline("promote", "nobody@1", "--json", home=tmp_path)
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["type"] == "NoRegistry"


def test_a_bad_recipe_leaves_no_study_behind(tmp_path: Path) -> None:
    recipe = tmp_path / "bad.toml"
    recipe.write_text('name = "bad"\ndomain = "icd10"\nlearning_rate = 1\n')
    done = graftline("tune", str(recipe), home=tmp_path / "home")
    assert done.returncode == 2 and "'learning_rate' is not a key of a recipe" in done.stderr
    assert not (tmp_path / "home").exists()


def test_an_unknown_domain_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    recipe = tmp_path / "bad.toml"
    recipe.write_text('name = "bad"\ndomain = "astrology"\n')
    done = graftline("tune", str(recipe), home=tmp_path / "home")
    assert done.returncode == 2 and "'astrology'" in done.stderr
    assert not (tmp_path / "home").exists()


def test_a_registry_that_is_away_leaves_no_study_behind(
    broken: Path, backbone_directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (broken / "recipe.toml").write_text(f'name = "x"\ndomain = "icd10-chapter"\nbackbone = "{backbone_directory}"\n')
    away = ("tune", "recipe.toml", "--home", "home", "--tracking-uri", "http://127.0.0.1:9")
    assert ended(away, broken, monkeypatch) == 2
    assert "registry must answer" in one_sentence(capsys)
    assert not (broken / "home").exists()


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """A folder of things that are not what a command wants."""
    (tmp_path / "file").touch()
    (tmp_path / "recipe.toml").write_text('name = "x"\ndomain = "icd10"\nbackbone = "nowhere"\n')
    for name, config in (("empty", None), ("list", "[]"), ("cut", '{"peft_type": "LORA"')):
        (tmp_path / name).mkdir()
        if config is not None:
            (tmp_path / name / "adapter_config.json").write_text(config)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("status", "--home", "file"), "file"),
        (("build", "--home", "file"), "Not a directory"),
        (("build", "--backbone", "nowhere"), "a built-in name"),
        (("tune", "recipe.toml", "--mode", "poem"), "'pareto' or 'constrained'"),
        (("tune", "recipe.toml", "--trials", "0"), "study.trials"),
        (("tune", "recipe.toml"), "a built-in name"),
        (("tune", "."), "cannot be read"),
        (("attribute", "recipe.toml"), "a built-in name"),
        (("attribute", "recipe.toml", "--checkpoints", "1"), "'checkpoints': Input should be greater than or equal to 2"),
        (("attribute", "recipe.toml", "--share", "nan"), "'share'"),
        (("trace-reliance", "recipe.toml"), "a built-in name"),
        (("trace-reliance", "."), "cannot be read"),
        (("evaluate", "empty"), "holds no adapter_config.json"),
        (("evaluate", "list"), "not a JSON object"),
        (("evaluate", "cut"), "not a JSON object"),
        (("evaluate", "./nowhere"), "is neither. Correct the path"),
        (("publish", "empty"), "neither"),
        (("serve", "--backbone", "nowhere"), "a built-in name"),
        (("serve", "--host", "localhost"), "IP address"),
        (("serve", "--host", "192.0.2.1"), "Correct --host"),
    ],
    ids=" ".join,
)
def test_what_is_not_what_a_command_wants_is_refused_in_one_sentence(
    broken: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], said: str
) -> None:
    assert ended(arguments, broken, monkeypatch) == 2
    assert said in one_sentence(capsys)


@pytest.mark.parametrize("seconds", ["nan", "inf", "-3"])
@pytest.mark.parametrize(
    "arguments",
    [
        ("tune", "recipe.toml", "--time-budget-s"),
        ("attribute", "recipe.toml", "--time-budget-s"),
        ("trace-reliance", "recipe.toml", "--time-budget-s"),
        ("promote", "icd10@1", "--time-budget-s"),
        ("evaluate", "empty", "--judge-url", "http://127.0.0.1:9/v1", "--judge-timeout-s"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_seconds_that_never_come_are_refused_by_the_option(
    broken: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    seconds: str,
) -> None:
    assert ended((*arguments, seconds), broken, monkeypatch) == 2
    assert f"{arguments[-1]} is a number of seconds above 0, but got {seconds}" in one_sentence(capsys)


def test_a_value_of_the_wrong_kind_is_refused_before_the_command_runs(
    broken: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    refused = [("serve", "--port", "70000"), ("serve", "--port", "x"), ("promote", "x@1", "--time-budget-s", "x")]
    refused += [(command, "x@1", "--picture", ".") for command in ("evaluate", "knockout")]
    for arguments in refused:
        assert ended(arguments, broken, monkeypatch) == 2
        assert "Invalid value for" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("also", "said"),
    [
        (("--limit", "4"), "--harness"),
        (("--harness", "piqa", "--measures", "all"), "--harness"),
        (("--harness", "piqa", "--items", "8"), "--limit"),
        (("--harness", ","), "--harness takes"),
        (("--judge-model", "x"), "--judge-url"),
        (("--judge-timeout-s", "9"), "--judge-url"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_an_option_that_would_be_ignored_is_refused(
    broken: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], also: tuple[str, ...], said: str
) -> None:
    assert ended(("evaluate", "empty", *also), broken, monkeypatch) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("command", ["evaluate", "knockout"])
def test_a_picture_in_a_folder_that_is_not_there_is_refused_before_anything_is_read(
    broken: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    assert ended((command, "empty", "--picture", "nowhere/x.png"), broken, monkeypatch) == 2
    assert "nowhere cannot be read or written" in one_sentence(capsys)


def test_a_command_that_is_stopped_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import service.commands.evaluate as command

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "evaluate", stopped)
    assert ended(("evaluate", "icd10@1"), tmp_path, monkeypatch) == 130
    assert "stopped by Ctrl-C" in one_sentence(capsys)


def test_a_variable_that_breaks_its_rule_is_named(
    broken: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GRAFTLINE_POLL_S", "99")
    assert ended(("serve",), broken, monkeypatch) == 2
    assert "GRAFTLINE_POLL_S must fit its rule" in one_sentence(capsys)


def test_a_port_in_use_is_refused_before_anything_starts(
    broken: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], backbone_directory: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert ended(("serve", "--port", port, "--backbone", str(backbone_directory)), broken, monkeypatch) == 2
    assert "pass another --port" in one_sentence(capsys)


def test_a_manifest_with_a_foreign_recipe_is_refused_where_the_recipe_is_needed(
    broken: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], backbone: Backbone
) -> None:
    write_release(broken / "foreign", backbone, random_lora(backbone, 1))  # its recipe is a name alone
    assert ended(("publish", "foreign", "--home", "home"), broken, monkeypatch) == 0
    capsys.readouterr()
    assert ended(("promote", "small@1", "--home", "home"), broken, monkeypatch) == 2
    assert "'domain' is missing" in one_sentence(capsys)


def test_a_directory_that_its_manifest_no_longer_describes_is_not_evaluated(
    broken: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], backbone: Backbone
) -> None:
    write_release(broken / "changed", backbone, random_lora(backbone, 1))
    random_lora(backbone, 2).save(broken / "changed")
    assert ended(("evaluate", "changed", "--home", "home"), broken, monkeypatch) == 2
    assert "must match its SHA-256, but adapter_" in one_sentence(capsys)


@pytest.mark.parametrize("command", ["tune", "publish"])
def test_a_damaged_study_is_one_sentence(
    broken: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], backbone_directory: Path, command: str
) -> None:
    (broken / "x.toml").write_text(f'name = "x"\ndomain = "icd10-chapter"\nbackbone = "{backbone_directory}"\n')
    study = broken / "home" / "studies" / "x" / "optuna.db"
    study.parent.mkdir(parents=True)
    study.write_text("garbage\n")
    arguments = ("tune", "x.toml", "--resume") if command == "tune" else ("publish", "x")
    assert ended((*arguments, "--home", "home"), broken, monkeypatch) == 2
    assert f"{study} cannot be read as one (file is not a database)" in one_sentence(capsys)


@pytest.mark.parametrize(
    ("text", "said"), [("{}", "its 'backbone' breaks a rule: Field required (and 7 more)"), ('{"a', "Invalid JSON")]
)
@pytest.mark.parametrize("command", ["publish", "evaluate"])
def test_a_damaged_manifest_is_one_sentence(
    broken: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str, text: str, said: str
) -> None:
    (broken / "empty" / "manifest.json").write_text(text)
    assert ended((command, "empty", "--home", "home"), broken, monkeypatch) == 2
    sentence = one_sentence(capsys)
    assert said in sentence and sentence.count("\n") == 1


def ended(arguments: tuple[str, ...], folder: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """The exit code of the command, run in this process with the folder as its working directory."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["graftline", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


def one_sentence(capsys: pytest.CaptureFixture[str]) -> str:
    said = capsys.readouterr().err
    assert said.startswith("graftline: ") and "Traceback" not in said
    return said
