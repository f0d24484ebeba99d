"""`graftline watch`: which files are whole, what is marked, what is tried again, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from registry.claim import held
from service.arrivals import Arrivals, Look, Waiting
from service.commands.watch import LATER, MAX_CRASHES, Watch

# Ends with the code that stands in the file, as the command would; it writes down what it was given.
FAKE = """
import json, pathlib, sys, time
file = pathlib.Path(sys.argv[sys.argv.index("--data") + 1])
text = file.read_text().split()
with (file.parent / "log").open("a") as log: log.write(file.name + "\\n")
if "slow" in text:
    (file.parent / "begun").touch()
    try: time.sleep(60)
    except KeyboardInterrupt:
        (file.parent / "stopped in order").touch()
        sys.exit(130)
print(json.dumps({"status": "published", "reason": "so it is", "release": "x@2"}))
sys.exit(int(text[0]))
"""


def watching(folder: Path, stop: threading.Event | None = None) -> Watch:
    return Watch(Arrivals(folder), [sys.executable, "-c", FAKE], 0.01, True, stop or threading.Event())


def log(folder: Path) -> list[str]:
    file = folder / "log"
    return file.read_text().split() if file.is_file() else []


def test_a_file_is_whole_when_two_looks_agree_and_parts_and_hidden_ones_are_none(tmp_path: Path) -> None:
    arrivals = Arrivals(tmp_path)
    for name in ("a.jsonl", "b.csv.part", ".c.csv", "d.txt", "a.jsonl.processed.json"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "empty.csv").touch()
    first = arrivals.look()
    assert [file.name for file in first] == ["a.jsonl"] and arrivals.ready({}, first) == []
    (tmp_path / "a.jsonl").write_text("{}{}")
    second = arrivals.look()
    assert arrivals.ready(first, second) == []
    assert arrivals.ready(second, arrivals.look()) == [tmp_path / "a.jsonl"]


def test_files_come_oldest_first(tmp_path: Path) -> None:
    for age, name in enumerate(("b.csv", "a.csv", "c.csv")):
        (tmp_path / name).write_text("x")
        os.utime(tmp_path / name, (1000 - age, 1000 - age))
    assert [file.name for file in Arrivals(tmp_path).look()] == ["c.csv", "a.csv", "b.csv"]


def test_a_mark_holds_for_the_contents_and_not_for_the_name(tmp_path: Path) -> None:
    arrivals, file = Arrivals(tmp_path), tmp_path / "a.csv"
    file.write_text("one")
    arrivals.mark(file, arrivals.look()[file], "rejected", {"reason": "bad"})
    assert arrivals.marked(file, arrivals.look()[file]) == "rejected"
    os.utime(file, (5, 5))
    assert arrivals.marked(file, arrivals.look()[file]) == "rejected"
    file.write_text("two")
    assert arrivals.marked(file, arrivals.look()[file]) is None
    arrivals.mark(file, arrivals.look()[file], "processed", {})
    assert sorted(one.name for one in tmp_path.iterdir()) == ["a.csv", "a.csv.processed.json"]


def test_a_link_that_leads_nowhere_or_in_a_circle_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "gone.csv").symlink_to(tmp_path / "nothing")
    (tmp_path / "circle.csv").symlink_to(tmp_path / "circle.csv")
    assert Arrivals(tmp_path).look() == {}


def test_what_must_wait_waits_longer_each_time_and_never_too_long() -> None:
    now, file = [0.0], Path("a.csv")
    waiting = Waiting(10.0, lambda: now[0])
    assert waiting.is_due(file) and not waiting
    assert waiting.again(file) == 1 and not waiting.is_due(file)
    now[0] = 10.0
    assert waiting.is_due(file) and waiting.again(file) == 2
    now[0] = 29.0
    assert not waiting.is_due(file)
    for _ in range(12):
        waiting.again(file)
    now[0] += 600.0
    assert waiting.is_due(file)
    waiting.done(file)
    assert not waiting


def test_each_file_is_taken_in_once_and_its_mark_says_how_it_ended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, code in (("good.csv", 0), ("refused.csv", 3), ("bad.csv", 2)):
        (tmp_path / name).write_text(str(code))
    assert watching(tmp_path).run(once=True) == 0
    assert sorted(log(tmp_path)) == ["bad.csv", "good.csv", "refused.csv"]
    assert watching(tmp_path).run(once=True) == 0  # after a restart
    assert len(log(tmp_path)) == 3
    marks = {file.name: json.loads(file.read_text()) for file in tmp_path.glob("*.json")}
    assert sorted(marks) == ["bad.csv.rejected.json", "good.csv.processed.json", "refused.csv.processed.json"]
    assert marks["refused.csv.processed.json"]["exit_code"] == 3 and marks["good.csv.processed.json"]["release"] == "x@2"
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {one["file"]: one["exit_code"] for one in said} == {"good.csv": 0, "refused.csv": 3, "bad.csv": 2}


def test_what_is_to_be_tried_later_has_no_mark_and_does_not_stop_the_others(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(str(LATER))
    (tmp_path / "b.csv").write_text("0")
    assert watching(tmp_path).run(once=True) == LATER
    assert "b.csv" in log(tmp_path) and not list(tmp_path.glob("a.csv.*"))
    (tmp_path / "a.csv").write_text("0")
    assert watching(tmp_path).run(once=True) == 0
    assert (tmp_path / "a.csv.processed.json").is_file()


def test_a_directory_that_is_away_for_a_while_does_not_end_the_watch(tmp_path: Path) -> None:
    folder, stop, ended = tmp_path / "incoming", threading.Event(), list[int]()
    assert watching(folder).run(once=True) == LATER
    running = threading.Thread(target=lambda: ended.append(watching(folder, stop).run(once=False)))
    running.start()
    time.sleep(0.1)
    (tmp_path / "ready").mkdir()
    (tmp_path / "ready" / "a.csv").write_text("0")
    (tmp_path / "ready").rename(folder)
    for _ in range(600):
        if (folder / "a.csv.processed.json").is_file():
            break
        time.sleep(0.05)
    stop.set()
    running.join(30)
    assert ended == [0] and log(folder) == ["a.csv"]


def test_a_file_whose_mark_cannot_be_read_or_written_waits_and_stops_no_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_text("0")
    (tmp_path / "a.csv.processed.json").mkdir()
    assert watching(tmp_path).run(once=True) == LATER
    assert log(tmp_path) == ["b.csv"] and "a.csv" in capsys.readouterr().out
    (tmp_path / "a.csv.processed.json").rmdir()
    assert watching(tmp_path).run(once=True) == 0 and log(tmp_path) == ["b.csv", "a.csv"]


def test_what_waited_and_was_taken_away_is_waited_for_no_longer(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    waiting = Waiting(10.0, lambda: 0.0)
    waiting.again(file)
    waiting.keep([tmp_path / "a.csv", tmp_path / "b.csv"])
    assert waiting
    waiting.keep([tmp_path / "b.csv"])
    assert not waiting


def test_a_file_on_which_the_command_crashes_again_and_again_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("1")
    stop = threading.Event()
    running = threading.Thread(target=watching(tmp_path, stop).run, args=(False,))
    running.start()
    for _ in range(600):
        if (tmp_path / "a.csv.rejected.json").is_file():
            break
        time.sleep(0.05)
    stop.set()
    running.join()
    assert log(tmp_path) == ["a.csv"] * MAX_CRASHES
    assert json.loads((tmp_path / "a.csv.rejected.json").read_text())["exit_code"] == 1


@pytest.fixture
def interruptible() -> Iterator[None]:
    """As `graftline watch` has it: in a background process of a shell Ctrl-C is ignored, also by the processes that it starts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_a_stop_ends_the_file_that_is_being_read_in_order_and_leaves_it_for_the_next_time(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("0 slow")
    (tmp_path / "b.csv").write_text("0")
    os.utime(tmp_path / "a.csv", (5, 5))
    stop, ended = threading.Event(), list[int]()
    running = threading.Thread(target=lambda: ended.append(watching(tmp_path, stop).run(once=False)))
    running.start()
    for _ in range(600):
        if (tmp_path / "begun").is_file():
            break
        time.sleep(0.05)
    stop.set()
    running.join(30)
    assert ended == [0] and (tmp_path / "stopped in order").is_file()
    assert log(tmp_path) == ["a.csv"] and not list(tmp_path.glob("*.json"))
    (tmp_path / "a.csv").write_text("0")
    assert watching(tmp_path).run(once=True) == 0 and len(log(tmp_path)) == 3


def test_a_file_that_changes_while_it_is_read_is_not_marked(tmp_path: Path) -> None:
    grows = FAKE.replace("print(", "file.write_text('0 more'); print(")
    (tmp_path / "a.csv").write_text("0")
    watch = Watch(Arrivals(tmp_path), [sys.executable, "-c", grows], 0.01, True, threading.Event())
    look = Arrivals(tmp_path).look()
    watch._take(tmp_path / "a.csv", look[tmp_path / "a.csv"], Waiting(1.0, time.monotonic), {})
    assert not list(tmp_path.glob("*.json")) and look[tmp_path / "a.csv"] == Look(1, look[tmp_path / "a.csv"].mtime_ns)


@pytest.mark.slow
def test_the_command_ends_in_order_at_sigterm_and_one_process_watches_a_directory(tmp_path: Path) -> None:
    from shelves import NAME
    from small_releases import promote
    from stores import store_at

    tracking, folder = store_at(tmp_path / "home"), tmp_path / "in"
    folder.mkdir()
    with tracking.client() as client:
        client.create_registered_model(NAME)
        client.create_model_version(NAME, source=str(tmp_path))
    promote(tracking, NAME, 1)
    command = [sys.executable, "-m", "service.cli", "watch", str(folder), "--domain", NAME, "--poll-s", "0.1"]
    command += ["--home", str(tmp_path / "home")]
    root = Path(__file__).parent.parent
    with held(folder / ".graftline-watch.lock"):
        done = subprocess.run(command, cwd=root, capture_output=True, text=True)
        assert done.returncode == LATER and "by one process at a time" in done.stderr
    process = subprocess.Popen(command, cwd=root)
    for _ in range(600):
        with held(folder / ".graftline-watch.lock") as holder:
            if holder:
                break
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
