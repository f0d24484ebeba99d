"""A journal that several processes append to: no line of one is lost to another."""

from __future__ import annotations

import fcntl
from pathlib import Path
from threading import Thread

from tuning.journal import Journal


def test_a_line_that_another_process_still_writes_is_waited_for_and_not_dropped(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    journal.append({"number": 1})
    waiting = Thread(target=lambda: journal.append({"number": 3}))
    with journal.file.open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        other.write('{"number": ')
        other.flush()
        waiting.start()
        waiting.join(0.3)
        other.write("2}\n")
    waiting.join()
    assert [entry["number"] for entry in journal.entries()] == [1, 2, 3]


def test_a_line_that_a_kill_left_without_an_end_is_dropped(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    journal.append({"number": 1})
    with journal.file.open("a") as killed:
        killed.write('{"number": ')
    assert journal.entries() == [{"number": 1}]
    journal.append({"number": 2})
    assert journal.entries() == [{"number": 1}, {"number": 2}]
