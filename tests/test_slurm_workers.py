"""Workers as a Slurm array: bash reads the script, and its tasks run under programs that set what Slurm sets."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
from stand_in import StandIn

from tuning.errors import BadCluster, BadStorage, NotSubmitted
from tuning.executors import EXECUTORS
from tuning.executors.executor import Executor, Launch, WorkerCommand

STUDY = 'it\'s a "study" $HOME `id` \n#SBATCH --wrong'
OPEN = "postgresql+psycopg://me@db.example.org/stu dies?application_name=it's"
SECRET = "postgresql+psycopg://me:hu$sh'\"@db.example.org/studies"
TRACKING = "http://mlflow.example.org:5000"

# What sbatch does with an array, one task after the other: %A and %a, --chdir, and no arguments of the script's own.
SBATCH = """\
#!/usr/bin/env bash
printf '%s\\n' "$@" > "$FAKES/sbatch.args"
for word in "$@"; do case "$word" in --chdir=*) cd "${word#--chdir=}" ;; esac; done
script="${!#}"
last=$(sed -n 's/^#SBATCH --array=0-//p' "$script")
cpus=$(sed -n 's/^#SBATCH --cpus-per-task=//p' "$script")
for index in $(seq 0 "$last"); do
    SLURM_ARRAY_JOB_ID=42 SLURM_ARRAY_TASK_ID=$index SLURM_CPUS_PER_TASK=$cpus bash "$script" > "slurm-42_$index.log" 2>&1
done
echo '42;cluster'
"""
SRUN = """\
#!/usr/bin/env bash
while [[ "$1" == --* ]]; do echo "$1" >> "$FAKES/srun.args"; shift; done
exec "$@"
"""
SQUEUE = """\
#!/usr/bin/env bash
cat "$FAKES/state"
"""
SCONTROL = """\
#!/usr/bin/env bash
echo "$@" >> "$FAKES/scontrol.args"
"""


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of Slurm's programs, the first on PATH."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    for name, text in {"sbatch": SBATCH, "srun": SRUN, "squeue": SQUEUE, "scontrol": SCONTROL}.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    (folder / "state").write_text("RUNNING\n")
    monkeypatch.setenv("FAKES", str(folder))
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("GRAFTLINE_STORAGE", raising=False)
    return folder


def slurm(tmp_path: Path, stand_in: StandIn, storage: str = OPEN, *, submit: bool = True, **values: object) -> Executor:
    command = WorkerCommand(STUDY, storage, tmp_path / "home $dir'", TRACKING, (str(stand_in.program),))
    return EXECUTORS["slurm"](Launch(command, tmp_path / "study 'dir", submit), values)


def script_of(tmp_path: Path) -> Path:
    return tmp_path / "study 'dir" / "workers.sbatch"


def requeued(fakes: Path) -> list[str]:
    file = fakes / "scontrol.args"
    return file.read_text().splitlines() if file.exists() else []


def words_of(start: dict[str, Any]) -> dict[str, str]:
    words = start["words"]
    assert words[0] == "worker"
    return dict(zip(words[1::2], words[2::2], strict=True))


@pytest.mark.parametrize("storage", [OPEN, SECRET])
def test_each_task_runs_the_same_worker_with_every_word_as_it_was_given(tmp_path: Path, fakes: Path, storage: str) -> None:
    stand_in = StandIn(tmp_path)
    slurm(tmp_path, stand_in, storage).start(3)
    given = {"--study": STUDY, "--home": str(tmp_path / "home $dir'"), "--tracking-uri": TRACKING}
    given |= {"--storage": storage} if storage == OPEN else {}  # everybody can read words
    assert [words_of(start) for start in stand_in.starts] == [given] * 3
    assert {start["environment"]["GRAFTLINE_STORAGE"] for start in stand_in.starts} == {storage}
    assert sorted(file.name for file in script_of(tmp_path).parent.glob("*.log")) == [f"slurm-42_{task}.log" for task in range(3)]


def test_bash_reads_the_script(tmp_path: Path, fakes: Path) -> None:
    slurm(tmp_path, StandIn(tmp_path), submit=False, setup=("module load cuda",)).start(2)
    subprocess.run(["bash", "-n", str(script_of(tmp_path))], check=True)
    script_of(tmp_path).write_text(script_of(tmp_path).read_text().replace("\nfi\n", "\n"))
    assert subprocess.run(["bash", "-n", str(script_of(tmp_path))], capture_output=True).returncode


def test_directives_come_first_and_hold_no_word_of_the_study(tmp_path: Path, fakes: Path) -> None:
    values = {"cpus": 2, "gpus": 1, "memory": "32G", "partition": "gpu", "time_limit": "4:00:00", "options": ("--account=team",)}
    slurm(tmp_path, StandIn(tmp_path), submit=False, **values).start(8)
    lines = script_of(tmp_path).read_text().splitlines()
    directives = list(takewhile(lambda line: line.startswith("#"), lines[1:]))  # sbatch reads no further
    assert {line.removeprefix("#SBATCH ") for line in directives} >= {
        "--array=0-7",
        "--requeue",
        "--signal=TERM@120",
        "--cpus-per-task=2",
        "--gpus-per-task=1",
        "--mem=32G",
        "--partition=gpu",
        "--time=4:00:00",
        "--account=team",
    }
    assert all(re.fullmatch(r"#SBATCH --[a-z-]+(=[A-Za-z0-9_.:%@-]+)?", line) for line in directives)


def test_a_worker_has_the_threads_that_slurm_gave_it(tmp_path: Path, fakes: Path) -> None:
    stand_in = StandIn(tmp_path)
    slurm(tmp_path, stand_in, cpus=3).start(1)
    (start,) = stand_in.starts
    assert start["environment"]["GRAFTLINE_THREADS"] == start["environment"]["OMP_NUM_THREADS"] == "3"
    assert "--cpus-per-task=3" in (fakes / "srun.args").read_text().split()


def test_a_password_is_in_no_file(tmp_path: Path, fakes: Path) -> None:
    told = slurm(tmp_path, StandIn(tmp_path), SECRET, submit=False).start(1)
    assert "hu$sh" not in script_of(tmp_path).read_text() and "hu$sh" not in told
    assert "export GRAFTLINE_STORAGE=..." in told


def test_without_its_password_a_task_says_what_to_export(tmp_path: Path, fakes: Path) -> None:
    stand_in = StandIn(tmp_path)
    told = slurm(tmp_path, stand_in, SECRET, submit=False).start(1)
    subprocess.run(shlex.split(told.splitlines()[-1]), check=True, capture_output=True)
    assert "export it before sbatch" in (script_of(tmp_path).parent / "slurm-42_0.log").read_text()
    assert stand_in.starts == []


def test_what_is_told_without_submit_can_be_typed(tmp_path: Path, fakes: Path) -> None:
    stand_in = StandIn(tmp_path)
    told = slurm(tmp_path, stand_in, submit=False).start(2)
    assert stand_in.starts == []
    subprocess.run(["bash", "-c", told.splitlines()[-1]], check=True, capture_output=True)
    assert len(stand_in.starts) == 2


def test_submit_tells_the_job(tmp_path: Path, fakes: Path) -> None:
    told = slurm(tmp_path, StandIn(tmp_path)).start(1)
    assert "Slurm's job 42," in told and "`scancel 42`" in told


@pytest.mark.parametrize("end", [75, -signal.SIGKILL])
def test_a_task_that_was_preempted_or_died_goes_back_into_the_line(tmp_path: Path, fakes: Path, end: int) -> None:
    slurm(tmp_path, StandIn(tmp_path, end)).start(2)
    assert requeued(fakes) == ["requeue 42_0", "requeue 42_1"]


@pytest.mark.parametrize("end", [0, 1, 2])
def test_a_task_that_is_done_or_met_an_error_does_not(tmp_path: Path, fakes: Path, end: int) -> None:
    slurm(tmp_path, StandIn(tmp_path, end)).start(1)
    assert requeued(fakes) == []


def test_a_task_that_was_cancelled_does_not(tmp_path: Path, fakes: Path) -> None:
    (fakes / "state").write_text("COMPLETING\n")
    slurm(tmp_path, StandIn(tmp_path, 75)).start(1)
    assert requeued(fakes) == []


def test_a_task_comes_back_so_often_and_no_more(tmp_path: Path, fakes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    slurm(tmp_path, StandIn(tmp_path, 75), max_restarts=3).start(1)
    assert requeued(fakes) == ["requeue 42_0"]
    monkeypatch.setenv("SLURM_RESTART_COUNT", "3")
    slurm(tmp_path, StandIn(tmp_path / "again", 75), max_restarts=3).start(1)
    assert requeued(fakes) == ["requeue 42_0"]


def test_a_script_that_is_told_to_end_waits_for_its_worker(tmp_path: Path, fakes: Path) -> None:
    stand_in = StandIn(tmp_path, "wait")
    slurm(tmp_path, stand_in, submit=False).start(1)
    variables = {"SLURM_ARRAY_JOB_ID": "42", "SLURM_ARRAY_TASK_ID": "0", "SLURM_CPUS_PER_TASK": "1"}
    with subprocess.Popen(["bash", str(script_of(tmp_path))], env={**os.environ, **variables}) as script:
        stand_in.wait_for(1)
        script.send_signal(signal.SIGTERM)
        os.kill(stand_in.starts[0]["pid"], signal.SIGTERM)  # Slurm tells the step too
        assert script.wait(60) == 75
    assert requeued(fakes) == ["requeue 42_0"]


def test_sqlite_is_refused_before_anything_is_written(tmp_path: Path, fakes: Path) -> None:
    with pytest.raises(BadStorage):
        slurm(tmp_path, StandIn(tmp_path), "sqlite:////shared/optuna.db").start(1)
    assert not script_of(tmp_path).exists()


def test_where_sbatch_is_not_the_script_is_kept_and_the_way_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = StandIn(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NotSubmitted, match="sbatch, which is not on this machine's PATH.*--chdir"):
        slurm(tmp_path, stand_in).start(1)
    assert script_of(tmp_path).exists()


def test_what_sbatch_refuses_is_told(tmp_path: Path, fakes: Path) -> None:
    (fakes / "sbatch").write_text("#!/usr/bin/env bash\necho 'sbatch: error: invalid partition' >&2\nexit 1\n")
    with pytest.raises(NotSubmitted, match="invalid partition"):
        slurm(tmp_path, StandIn(tmp_path)).start(1)


@pytest.mark.parametrize(
    "values", [{"partition": "a b"}, {"time_limit": "1\n#SBATCH"}, {"options": ("rm -rf",)}, {"cpus": 0}, {"nodes": 2}]
)
def test_settings_that_sbatch_could_not_read_are_refused(tmp_path: Path, values: dict[str, object]) -> None:
    with pytest.raises(BadCluster, match=next(iter(values))):
        slurm(tmp_path, StandIn(tmp_path), **values)


def test_the_stand_in_for_sbatch_does_fail_a_script_that_is_wrong(tmp_path: Path, fakes: Path) -> None:
    stand_in = StandIn(tmp_path)
    slurm(tmp_path, stand_in, submit=False).start(1)
    broken = script_of(tmp_path).read_text().replace(shlex.quote(STUDY), STUDY)
    script_of(tmp_path).write_text(broken)
    subprocess.run(["sbatch", f"--chdir={tmp_path}", str(script_of(tmp_path))], capture_output=True)
    assert not stand_in.starts or json.dumps(STUDY) not in json.dumps(stand_in.starts[0]["words"])
