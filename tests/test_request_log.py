"""What the log and the spans say of a request, over real sockets."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from live_service import Live, live, small
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from stores import store_at

from service import request_log, spans
from service.settings import BadSetting, Settings

BODY = {"prompt": "Add 5.", "max_tokens": 4}


class Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def after(self, count: int) -> list[logging.LogRecord]:
        """A line stands a moment after its reply has been read."""
        ends = time.monotonic() + 10
        while len(self.records) < count:
            assert time.monotonic() < ends, f"{len(self.records)} lines and not {count}"
            time.sleep(0.005)
        return self.records


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, backbone_directory: Path) -> Iterator[Live]:
    home = tmp_path_factory.mktemp("home")
    store_at(home)
    with live(small(backbone_directory, home)) as server:
        yield server


@pytest.fixture
def kept(server: Live) -> Iterator[Kept]:
    kept = Kept()
    request_log.log.addHandler(kept)
    yield kept
    request_log.log.removeHandler(kept)


@pytest.fixture
def exported(server: Live) -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    spans.export_to(exporter)
    yield exporter
    spans.close()


def lines(kept: Kept, form: request_log.Format, count: int = 1) -> list[str]:
    request_log.configure(form, "info")
    formatter = logging.getLogger("graftline").handlers[0].formatter
    assert formatter is not None
    return [formatter.format(record) for record in kept.after(count)]


def line(kept: Kept) -> dict[str, Any]:
    (one,) = lines(kept, "json")
    found: dict[str, Any] = json.loads(one)
    return found


def test_a_request_is_one_json_line_with_its_cost_and_its_end(server: Live, kept: Kept, base: str) -> None:
    reply = httpx.post(f"{server.openai_url}/completions", json={**BODY, "model": base}, headers={"x-request-id": "r-7"})
    told = line(kept)
    assert told["level"] == "INFO" and told["time"]
    assert (told["request_id"], told["method"], told["route"], told["status"]) == ("r-7", "POST", "/v1/completions", 200)
    assert (told["model"], told["outcome"], told["choices"]) == (base, "completed", 1)
    usage = reply.json()["usage"]
    assert (told["prompt_tokens"], told["generated_tokens"]) == (usage["prompt_tokens"], usage["completion_tokens"])
    assert 0 <= told["queue_s"] <= told["first_token_s"] <= told["seconds"]


def test_a_streams_line_stands_at_its_end(server: Live, kept: Kept, base: str) -> None:
    with httpx.stream("POST", f"{server.openai_url}/completions", json={**BODY, "model": base, "stream": True}) as reply:
        assert "[DONE]" in reply.read().decode()
    assert (line(kept)["outcome"], line(kept)["generated_tokens"]) == ("completed", 4)


def test_nothing_that_a_client_typed_is_in_the_log(server: Live, kept: Kept) -> None:
    httpx.post(f"{server.openai_url}/completions", json={**BODY, "model": "typed-name", "prompt": "typed-prompt"})
    httpx.get(f"{server.openai_url}/typed-path")
    for form in ("json", "text"):
        assert "typed" not in "".join(lines(kept, form, count=2))  # type: ignore[arg-type]
    assert json.loads(lines(kept, "json")[0])["status"] == 404


def test_the_text_form_has_the_same_facts(server: Live, kept: Kept, base: str) -> None:
    httpx.post(f"{server.openai_url}/completions", json={**BODY, "model": base})
    (one,) = lines(kept, "text")
    assert "route=/v1/completions status=200" in one and "generated_tokens=4" in one


def test_what_machines_ask_all_the_time_is_not_logged(server: Live, kept: Kept) -> None:
    for path in ("/readyz", "/livez", "/metrics"):
        assert httpx.get(f"{server.url}{path}").status_code == 200
    assert not kept.records


def test_a_request_is_a_span_below_the_callers(server: Live, kept: Kept, exported: InMemorySpanExporter, base: str) -> None:
    trace, caller = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    headers = {"traceparent": f"00-{trace}-{caller}-01"}
    reply = httpx.post(f"{server.openai_url}/completions", json={**BODY, "model": base}, headers=headers).json()
    kept.after(1)
    assert spans._provider is not None and spans._provider.force_flush()
    found = {span.name: span for span in exported.get_finished_spans()}
    whole = found["POST /v1/completions"]
    assert whole.parent is not None
    assert (f"{whole.context.trace_id:032x}", f"{whole.parent.span_id:016x}") == (trace, caller)
    assert whole.attributes is not None
    assert whole.attributes["gen_ai.response.model"] == base and whole.attributes["http.response.status_code"] == 200
    assert whole.attributes["gen_ai.usage.output_tokens"] == reply["usage"]["completion_tokens"]
    queue, first, decode = found["queue"], found["first token"], found["decode"]
    ends = [(span.start_time, span.end_time) for span in (queue, first, decode)]
    assert whole.start_time == ends[0][0] and ends[2][1] == whole.end_time
    assert ends[0][1] == ends[1][0] and ends[1][1] == ends[2][0] and all(low <= high for low, high in ends)  # type: ignore[operator]
    assert line(kept)["trace_id"] == trace


def test_a_failure_of_the_server_is_an_error_span_and_a_clients_is_not(exported: InMemorySpanExporter) -> None:
    for status in (500, 404):
        assert spans.record(1, {}, {"method": "POST", "route": "/v1/completions", "status": status, "seconds": 0.1})
    assert spans._provider is not None and spans._provider.force_flush()
    assert [span.status.is_ok for span in exported.get_finished_spans()] == [False, True]


def test_spans_are_off_unless_an_endpoint_is_named() -> None:
    spans.configure({})
    assert spans.record(1, {}, {"seconds": 0.1}) is None


def test_a_bad_log_format_is_refused_by_its_variable() -> None:
    with pytest.raises(BadSetting, match="GRAFTLINE_LOG_FORMAT"):
        Settings.from_environment({"GRAFTLINE_LOG_FORMAT": "xml"})


def test_an_openai_client_reads_the_request_id_of_the_line(server: Live, kept: Kept, base: str) -> None:
    with openai.OpenAI(base_url=server.openai_url, api_key="none", max_retries=0) as client:
        reply = client.completions.with_raw_response.create(model=base, **BODY)  # type: ignore[arg-type]
    assert line(kept)["request_id"] == reply.headers["x-request-id"]
