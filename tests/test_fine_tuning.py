"""Files and fine-tuning jobs over HTTP, driven by the OpenAI client."""

from __future__ import annotations

import io
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
from live_service import Live, live, small
from running_service import client_of, write
from small_studies import PROTECTED, knowing_home
from stores import store_at

from adapters.backbone import Backbone
from registry.errors import NoChampion
from registry.ledger import Ledger
from registry.names import resolve
from registry.tracking import Tracking
from service.errors import ApiError
from service.jobs import preparing
from service.jobs.preparing import prepared
from service.jobs.uploads import Uploads
from service.startup import start

RECIPE = f"""
protected = {json.dumps(PROTECTED)}
search = ["method.learning_rate"]
[adapter.lora]
rank = 4
[method]
steps = 2
batch_size = 2
num_examples = 20
[study]
trials = 1
scales = [1.0]
[evaluation]
domain_items = 8
chain_items = 4
generated_items = 1
"""
WAIT_S = 1200
ROWS = [{"question": f"What is {n} modulo 3?", "answer": str(n % 3)} for n in range(200)]
MESSAGES = [
    {
        "messages": [
            {"role": "system", "content": "Add."},
            {"role": "user", "content": r["question"]},
            {"role": "assistant", "content": r["answer"]},
        ]
    }
    for r in ROWS
]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, session_backbone: Backbone) -> Path:
    home = knowing_home(session_backbone, tmp_path_factory.mktemp("home"))
    store_at(home)
    (home / "job.toml").write_text(RECIPE)
    return home


@pytest.fixture(scope="module")
def server(home: Path, backbone_directory: Path) -> Iterator[Live]:
    with live(small(backbone_directory, home, job_recipe=home / "job.toml", max_file_bytes=2**20)) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Live) -> openai.OpenAI:
    return client_of(server)


def jsonl(rows: list[dict[str, object]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def upload(client: openai.OpenAI, content: bytes, name: str = "rows.jsonl") -> openai.types.FileObject:
    return client.files.create(file=(name, io.BytesIO(content)), purpose="fine-tune")


def test_a_file_is_listed_described_read_back_and_deleted(client: openai.OpenAI) -> None:
    content = jsonl(ROWS[:3])
    kept = upload(client, content)
    assert (kept.bytes, kept.filename, kept.purpose, kept.status) == (len(content), "rows.jsonl", "fine-tune", "processed")
    assert client.files.retrieve(kept.id) == kept
    assert kept.id in [file.id for file in client.files.list()]
    assert client.files.content(kept.id).read() == content
    assert client.files.delete(kept.id).to_dict() == {"id": kept.id, "object": "file", "deleted": True}
    for gone in (client.files.retrieve, client.files.delete):
        with pytest.raises(openai.NotFoundError):
            gone(kept.id)


def test_files_of_one_second_keep_their_order(client: openai.OpenAI) -> None:
    kept = [upload(client, jsonl(ROWS[:2])).id for _ in range(5)]
    assert [file.id for file in client.files.list()][:5] == list(reversed(kept))


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("rows.jsonl", b'{"question": "a", "answer": "b"}\n\n{"question": \n', "Line 3: a line is one JSON object"),
        (
            "rows.jsonl",
            b'{"question": "a", "answer": "b"}\n[1]\n',
            "Line 2: a line is one JSON object, but this one holds a list",
        ),
        ("rows.jsonl", b'{"question": "a", "answer": "\xff"}\n', "Line 1: a line is UTF-8"),
        ("rows.jsonl", b"[" * 100_000 + b"\n", "Line 1:"),
        ("rows.jsonl", b'{"question": ' + b"9" * 5000 + b', "answer": "b"}\n', "thousands of digits"),
        ("rows.jsonl", b'{"question": "a", "answer": "b"}\n{"question": "\\ud800", "answer": "b"}\n', "Line 2: a text"),
        ("rows.jsonl", b'{"question": "' + b"a" * 2**19 * 3 + b'"}\n', "may have 1048576 bytes"),
        ("rows.jsonl", b"\n\n", "has none"),
        ("rows.jsonl", b"", "has none"),
        ("rows.jsonl", b'{"messages": [{"role": "user", "content": "a"}]}\n', "Line 1: messages is a list"),
        (
            "rows.jsonl",
            jsonl([{"messages": [{"role": "user", "content": "a"}] * 2}]),
            "Line 1: the last message is the assistant's",
        ),
        ("rows.jsonl", jsonl([*ROWS[:2], *MESSAGES[:1]]), "Line 3: all rows are of one kind"),
        ("rows.csv", b"question,answer\na,b\nc\n", "Line 3: a row has the 2 cells of the header"),
        ("rows.csv", b'question,answer\na,"b\n', "a row is CSV"),
        ("rows.txt", b"a\n", "NAME.jsonl or NAME.csv"),
        ("../../etc/rows.parquet", b"a\n", "NAME.jsonl or NAME.csv"),
    ],
)
def test_a_file_with_a_wrong_line_is_refused_with_its_number_and_not_kept(
    client: openai.OpenAI, name: str, content: bytes, told: str
) -> None:
    before = len(client.files.list().data)
    with pytest.raises(openai.APIStatusError) as refused:
        upload(client, content, name)
    assert refused.value.status_code in (400, 413) and told in str(refused.value)
    assert len(client.files.list().data) == before


def test_files_that_come_at_one_time_all_count(tmp_path: Path) -> None:
    uploads = Uploads(tmp_path, max_bytes=1000, max_total_bytes=100)
    content = b'{"question": "a", "answer": "b"}\n' * 2
    with uploads._room_for("file-a", 60), pytest.raises(ApiError, match="All files together"):
        uploads.keep("rows.jsonl", "fine-tune", io.BytesIO(content))
    assert uploads.keep("rows.jsonl", "fine-tune", io.BytesIO(content)).rows == 2


def half_written(files: Path, file_id: str, size: int, hours_ago: float) -> Path:
    """As a process leaves it that was killed so long ago."""
    part = files / f".{file_id}.part"
    part.mkdir()
    (part / "content.jsonl").write_bytes(b"a" * size)
    at = time.time() - 3600 * hours_ago
    for path in (part / "content.jsonl", part):
        os.utime(path, (at, at))
    return part


def test_what_a_killed_process_left_of_a_file_is_swept_away_once_it_is_old(tmp_path: Path) -> None:
    old, young = half_written(tmp_path, "file-a", 50, hours_ago=2), half_written(tmp_path, "file-b", 50, hours_ago=0.5)
    (other := tmp_path / ".notes.part").mkdir()
    os.utime(other, (0, 0))
    Uploads(tmp_path, max_bytes=1000, max_total_bytes=100).sweep()
    assert (old.exists(), young.exists(), other.exists()) == (False, True, True)


def test_what_stays_half_written_counts_among_all_files(tmp_path: Path) -> None:
    half_written(tmp_path, "file-a", 50, hours_ago=0.5)
    uploads = Uploads(tmp_path, max_bytes=1000, max_total_bytes=100)
    content = b'{"question": "a", "answer": "b"}\n' * 2
    with pytest.raises(ApiError, match="All files together"):
        uploads.keep("rows.jsonl", "fine-tune", io.BytesIO(content))


def test_the_service_sweeps_when_it_starts(home: Path, backbone_directory: Path) -> None:
    (home / "files").mkdir(exist_ok=True)
    old = half_written(home / "files", "file-a", 50, hours_ago=2)
    start(small(backbone_directory, home), 1).engine.close()
    assert not old.exists()


def test_large_data_is_checked_in_a_process_of_its_own_with_the_same_outcome(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "content.jsonl"
    file.write_text("".join(json.dumps({"question": f"How much is {i}?", "answer": "ab"[i % 2]}) + "\n" for i in range(200)))
    here = prepared(file, "rows.jsonl", tmp_path / "here", "data-rows", None, "|")
    monkeypatch.setattr(preparing, "IN_THIS_PROCESS_BYTES", 0)
    there = prepared(file, "rows.jsonl", tmp_path / "there", "data-rows", None, "|")
    assert there.relative_to(tmp_path / "there") == here.relative_to(tmp_path / "here")
    assert there.read_text() == here.read_text()


def test_what_is_wrong_with_large_data_is_told_as_of_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "content.jsonl"
    file.write_text('{"question": "a", "answer": "b"}\n')
    asked = {"file": str(file), "filename": "rows.jsonl", "directory": str(tmp_path), "name": "data-rows", "separator": "|"}
    monkeypatch.setattr(preparing, "IN_THIS_PROCESS_BYTES", 0)
    monkeypatch.setattr(
        sys, "stdin", io.StringIO(json.dumps({**asked, "columns": {"question": "question", "nothing": "answer"}}))
    )
    monkeypatch.setattr(os, "nice", lambda _: 0)
    preparing.main()
    told = capsys.readouterr().out.strip()
    monkeypatch.setattr(preparing, "COMMAND", (sys.executable, "-S", "-c", f"print({told!r})"))
    with pytest.raises(ApiError, match="A row is") as refused:
        prepared(file, "rows.jsonl", tmp_path, "data-rows", None, "|")
    assert (refused.value.status, refused.value.code, refused.value.param) == (400, "invalid_training_data", "columns")


def test_where_large_data_cannot_be_checked_nothing_is_left_and_the_server_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "content.jsonl"
    file.write_text('{"question": "a", "answer": "b"}\n')
    monkeypatch.setattr(preparing, "IN_THIS_PROCESS_BYTES", 0)
    monkeypatch.setattr(preparing, "COMMAND", (sys.executable, "-S", "-c", "import os; os.kill(os.getpid(), 9)"))
    with pytest.raises(ApiError, match="Send fewer rows") as refused:
        prepared(file, "rows.jsonl", tmp_path / "there", "data-rows", None, "|")
    assert refused.value.status == 500 and not (tmp_path / "there").exists()


def test_a_server_that_goes_away_waits_for_no_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, closed = tmp_path / "content.jsonl", threading.Event()
    file.write_text('{"question": "a", "answer": "b"}\n')
    monkeypatch.setattr(preparing, "IN_THIS_PROCESS_BYTES", 0)
    monkeypatch.setattr(preparing, "_LOOK_S", 0.05)
    monkeypatch.setattr(preparing, "COMMAND", (sys.executable, "-S", "-c", "import time; time.sleep(60)"))
    began = time.monotonic()
    threading.Timer(0.2, closed.set).start()
    with pytest.raises(ApiError) as refused:
        prepared(file, "rows.jsonl", tmp_path / "there", "data-rows", None, "|", closed)
    assert (refused.value.status, refused.value.code) == (503, "going_away") and time.monotonic() - began < 30


def test_an_upload_that_says_it_is_too_large_is_refused_unread(server: Live) -> None:
    head = b"POST /v1/files HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: multipart/form-data; boundary=x\r\n"
    with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2]))) as connection:
        connection.sendall(head + b"Content-Length: %d\r\n\r\n" % 2**40)
        assert b"413" in connection.recv(100)


def test_what_is_no_form_is_refused(server: Live) -> None:
    for content, kind in (
        (b"{}", "application/json"),
        (b"garbage", "multipart/form-data; boundary=x"),
        (b"", "multipart/form-data"),
    ):
        answer = httpx.post(f"{server.openai_url}/files", content=content, headers={"content-type": kind})
        assert answer.status_code == 400, answer.text


@pytest.fixture(scope="module")
def rows(client: openai.OpenAI) -> str:
    return upload(client, jsonl(ROWS)).id


@pytest.mark.parametrize(
    ("changes", "status", "told"),
    [
        ({"model": "gpt-4o"}, 404, "fits adapters around"),
        ({"training_file": "file-never"}, 404, "There is no file"),
        ({"training_file": "x" * 100_000}, 404, "xxx.... Upload it first"),
        ({"suffix": "a/b"}, 400, "suffix"),
        ({"validation_file": "file-x"}, 400, "validation_file"),
        ({"method": {"type": "dpo"}}, 400, "method"),
        ({"hyperparameters": {"n_epochs": -1}}, 400, "above 0"),
        ({"extra_body": {"recipe": {"gate": {"margin": 0.9}}}}, 400, "'gate'"),
        ({"extra_body": {"recipe": {"protected": ["boxes"]}}}, 400, "'protected'"),
        ({"extra_body": {"recipe": {"adapter": {"warm_start": "secret"}}}}, 400, "names no files"),
        ({"extra_body": {"recipe": {"adapter": {"orthogonal_to": ["/etc"]}}}}, 400, "names no files"),
        ({"extra_body": {"recipe": {"study": {"trials": 0}}}}, 400, "study.trials"),
        ({"extra_body": {"recipe": {"method": {"name": "magic"}}}}, 400, "magic"),
        ({"extra_body": {"columns": {"question": "q", "answer": "answer"}}}, 400, "'q'"),
        ({"extra_body": {"columns": {"question": "answer", "answer": "question"}}}, 400, "has 200 and no such column"),
    ],
)
def test_a_job_that_cannot_be_run_is_refused_before_there_is_one(
    server: Live, client: openai.OpenAI, base: str, rows: str, changes: dict[str, object], status: int, told: str
) -> None:
    with pytest.raises(openai.APIStatusError) as refused:
        client.fine_tuning.jobs.create(**{"model": base, "training_file": rows, **changes})  # type: ignore[arg-type]
    assert refused.value.status_code == status and told in str(refused.value)
    assert str(server.parts.settings.home) not in str(refused.value)
    assert not client.fine_tuning.jobs.list().data


def test_a_job_and_a_promotion_leave_the_backbones_name_to_the_backbone(
    server: Live, client: openai.OpenAI, base: str, rows: str
) -> None:
    with pytest.raises(openai.BadRequestError, match="the name of its own backbone") as refused:
        client.fine_tuning.jobs.create(model=base, training_file=rows, suffix=base)
    assert refused.value.param == "suffix"
    answer = httpx.post(f"{server.url}/v1/releases/{base}/promote", json={"version": 1})
    assert answer.status_code == 400 and "the name of its own backbone" in answer.text


def test_rows_that_make_no_task_are_refused_by_their_line(client: openai.OpenAI, base: str) -> None:
    file = upload(client, b"\n" + jsonl([*ROWS[:100], {"question": "", "answer": "1"}]))
    with pytest.raises(openai.BadRequestError, match="line 102 of 'rows.jsonl'"):
        client.fine_tuning.jobs.create(model=base, training_file=file.id)


@pytest.mark.parametrize(
    ("row", "columns"),
    [({"text": "a", "label": "b"}, None), ({"question": "a", "answer": "b"}, {"nope": "question"})],
    ids=["other columns", "a column of nothing"],
)
def test_rows_without_the_columns_of_a_task_are_refused_with_those_that_they_have(
    client: openai.OpenAI, base: str, row: dict[str, str], columns: dict[str, str] | None
) -> None:
    file = upload(client, jsonl([row]))
    with pytest.raises(openai.BadRequestError, match="has the columns question and answer") as refused:
        client.fine_tuning.jobs.create(model=base, training_file=file.id, extra_body={"columns": columns} if columns else {})
    assert list(row)[0] in str(refused.value)


def ended(client: openai.OpenAI, job_id: str) -> openai.types.fine_tuning.FineTuningJob:
    ends = time.monotonic() + WAIT_S
    while (job := client.fine_tuning.jobs.retrieve(job_id)).finished_at is None:
        assert time.monotonic() < ends
        time.sleep(0.2)
    return job


def test_jobs_queue_in_their_order_tell_events_and_are_cancelled(client: openai.OpenAI, base: str, rows: str) -> None:
    jobs = [client.fine_tuning.jobs.create(model=base, training_file=rows, suffix=f"sums-{n}", seed=n) for n in range(3)]
    assert [job.status for job in jobs] == ["running", "queued", "queued"]
    assert [job.id for job in client.fine_tuning.jobs.list(limit=2)] == [job.id for job in reversed(jobs)], "page by page"
    assert (jobs[1].seed, jobs[1].object, jobs[1].training_file) == (1, "fine_tuning.job", rows)
    for job in reversed(jobs):
        assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled"
    told = [event.message for event in client.fine_tuning.jobs.list_events(jobs[0].id)]
    assert told[-2:] == ["The job has begun.", "The job is queued."], "the newest first"
    assert not client.fine_tuning.jobs.checkpoints.list(jobs[0].id).data
    with pytest.raises(openai.NotFoundError):
        client.fine_tuning.jobs.retrieve("ftjob-never")


@pytest.mark.slow
@pytest.mark.parametrize("content", [jsonl(ROWS), jsonl(MESSAGES)], ids=["columns", "messages"])
def test_a_sweep_over_uploaded_rows_publishes_a_candidate_and_promotes_nothing(
    home: Path, client: openai.OpenAI, base: str, content: bytes
) -> None:
    file = upload(client, content)
    name = f"sums-{len(content)}"
    fixed = {"n_epochs": 1, "batch_size": 64, "learning_rate_multiplier": 0.5}
    recipe = {"method": {"learning_rate": 4e-4}, "evaluation": {"margins": dict.fromkeys(PROTECTED, 1e6)}}
    made = client.fine_tuning.jobs.create(
        model=base,
        training_file=file.id,
        suffix=name,
        hyperparameters=fixed,  # type: ignore[arg-type]
        extra_body={"recipe": recipe},
    )
    client.files.delete(file.id)  # the job has its rows
    job = ended(client, made.id)
    assert (job.status, job.error) == ("succeeded", None)
    assert job.fine_tuned_model == f"{name}@1"
    assert [str(resolve(Tracking.at(home), f"{name}@candidate"))] == [f"{name}@1"]
    with pytest.raises(NoChampion):
        Ledger(Tracking.at(home), name).champion_version()
    assert write(client, f"{name}@1") != ""
    assert [point.fine_tuned_model_checkpoint for point in client.fine_tuning.jobs.checkpoints.list(made.id)] == [f"{name}@1"]
    numbers = [event.data for event in client.fine_tuning.jobs.list_events(made.id) if event.type == "metrics"]
    assert numbers and numbers[0] is not None and {"trial", "domain_gain", "retention", "feasible"} <= set(numbers[0])  # type: ignore[call-overload]
    assert str(home) not in str([event.message for event in client.fine_tuning.jobs.list_events(made.id)])
