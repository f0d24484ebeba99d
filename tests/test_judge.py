"""A judge behind an endpoint: read strictly, asked once, and believed only when it tells a trace from another item's."""

from __future__ import annotations

import hashlib
import json
import math
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from small_releases import random_lora, write_release
from toy_reader import Reader

from adapters.backbone import Backbone
from evaluation.errors import JudgeUnavailable
from evaluation.evaluate import Planned, Row, evaluate
from evaluation.judge import KEY_VARIABLE, Asked, Judge
from evaluation.measures import judged_rationality
from evaluation.measures.judged_rationality import JudgedRationality
from evaluation.rubric import load_rubric
from evaluation.task import Example
from evaluation.tasks import FAMILIES
from service.commands.evaluate import JudgeAt, judged
from service.commands.subject import LOADED, load_subject

pytest.importorskip("httpx", reason="a judge is asked through httpx")
TASK, RUBRIC = FAMILIES["arithmetic"], load_rubric()
Mind = Callable[[str], str]  # from what is asked to the reply


class Endpoint(ThreadingHTTPServer):
    """A chat-completions endpoint on this machine; what it was sent is kept."""

    def __init__(self, mind: Mind) -> None:
        super().__init__(("127.0.0.1", 0), _Chat)
        self.mind, self.asked, self.keys = mind, [], []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class _Chat(BaseHTTPRequestHandler):
    server: Endpoint

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert self.path == "/v1/chat/completions" and body["temperature"] == 0
        prompt = body["messages"][0]["content"]
        self.server.asked.append(prompt)
        self.server.keys.append(self.headers.get("Authorization"))
        reply = self.server.mind(prompt)
        status = 500 if reply == "broken" else 200
        data = json.dumps({"choices": [{"message": {"role": "assistant", "content": reply}}]}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None: ...


Serve = Callable[[Mind], Endpoint]


@pytest.fixture
def serve() -> Iterator[Serve]:
    running: list[Endpoint] = []

    def start(mind: Mind) -> Endpoint:
        endpoint = Endpoint(mind)
        threading.Thread(target=endpoint.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        running.append(endpoint)
        return endpoint

    yield start
    for endpoint in running:
        endpoint.shutdown()
        endpoint.server_close()


def parts_of(prompt: str) -> tuple[str, str]:
    question, _, rest = prompt.partition("Question:\n")[2].partition("\n\nExplanation:\n")
    return question, rest.partition("\n\nFirst copy")[0]


def reply(prompt: str, score: int) -> str:
    return f'Evidence: "{parts_of(prompt)[1].splitlines()[0]}"\nScore: {score}'


def careful(prompt: str) -> str:
    """Looks whether the first step speaks of the question's first number."""
    question, explanation = parts_of(prompt)
    first = next(word.strip(".,:;") for word in question.split() if word.strip(".,:;").isdigit())
    return reply(prompt, 5 if explanation.split()[0] == first else 1)


def at_random(prompt: str) -> str:
    return reply(prompt, random.Random(hashlib.sha256(prompt.encode()).digest()).randint(1, 5))


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    return TASK.examples("search", 20)


def asked(explanation: str = "8 + 20 = 28\nAnswer: 28") -> Asked:
    return Asked(RUBRIC.criteria[0], "What is 8 + 20?", explanation)


@pytest.mark.parametrize(
    ("said", "score"),
    [
        ('Evidence: "8 + 20 = 28"\nScore: 4', 4),
        ('Evidence: "8 + 20\n= 28"\nScore: 4\n', 4),  # spacing is no part of a quote
        ('Evidence: "8 + 20 = 29"\nScore: 4', None),  # not in the explanation
        ('Evidence: " "\nScore: 4', None),
        ('Evidence: "8 + 20 = 28"\nScore: 6', None),
        ('Evidence: "8 + 20 = 28"\nScore: 4 of 5', None),
        ('Evidence: "8 + 20 = 28"\nScore: 4.5', None),
        ("Score: 4", None),
        ('Score: 4\nEvidence: "8 + 20 = 28"', None),
        ('Sure! Evidence: "8 + 20 = 28"\nScore: 4', None),
        ("", None),
    ],
)
def test_a_reply_is_read_strictly(tmp_path: Path, said: str, score: int | None) -> None:
    assert Judge("http://127.0.0.1:9", "m", tmp_path).parsed(asked(), said).score == score


def test_a_criterion_is_asked_at_a_time_with_its_definition_and_the_scale(serve: Serve, tmp_path: Path) -> None:
    endpoint = serve(careful)
    Judge(endpoint.url, "m", tmp_path).verdicts([Asked(c, "What is 8 + 20?", "8 + 20 = 28\nAnswer: 28") for c in RUBRIC.criteria])
    assert len(endpoint.asked) == len(RUBRIC.criteria)
    for criterion in RUBRIC.criteria:
        naming = [prompt for prompt in endpoint.asked if criterion.definition in prompt]
        assert len(naming) == 1 and f"from {RUBRIC.lowest} to {RUBRIC.highest}" in naming[0]


def test_what_was_asked_before_is_not_asked_again(serve: Serve, tmp_path: Path) -> None:
    endpoint = serve(careful)
    judge = Judge(endpoint.url, "m", tmp_path)
    first = judge.verdicts([asked(), asked()])
    assert judge.verdicts([asked()]) == first[:1] and len(endpoint.asked) == 1
    Judge(endpoint.url, "another", tmp_path).verdicts([asked()])
    judge.verdicts([asked("9 + 9 = 18\nAnswer: 18")])
    assert len(endpoint.asked) == 3


def test_the_key_comes_from_the_environment_and_is_kept_nowhere(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint = serve(careful)
    monkeypatch.setenv(KEY_VARIABLE, "secret-key")
    judge = Judge(endpoint.url, "m", tmp_path)
    judge.verdicts([asked()])
    assert endpoint.keys == ["Bearer secret-key"] and "secret-key" not in repr(judge)
    assert all("secret-key" not in file.read_text() for file in tmp_path.iterdir())


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/v1", "127.0.0.1/v1", "broken"])
def test_a_judge_that_is_away_is_one_sentence(serve: Serve, tmp_path: Path, url: str) -> None:
    url = serve(lambda prompt: "broken").url if url == "broken" else url
    with pytest.raises(JudgeUnavailable, match="must reply as OpenAI's chat completions do, but did not"):
        Judge(url, "m", tmp_path).verdicts([asked()])
    assert not list(tmp_path.iterdir())


def test_a_judge_that_is_too_slow_names_the_option_that_gives_it_more_time(serve: Serve, tmp_path: Path) -> None:
    given_up = threading.Event()

    def slow(prompt: str) -> str:
        given_up.wait(10)
        return "broken"

    try:
        with pytest.raises(JudgeUnavailable, match=r"within 0\.1 s, but did not.*--judge-timeout-s"):
            Judge(serve(slow).url, "m", tmp_path, timeout_s=0.1).verdicts([asked()])
    finally:
        given_up.set()


@pytest.mark.parametrize("text", ["", '{"prompt": "cut', "[]", "null", '{"reply": "of another question", "prompt": "other"}'])
def test_a_damaged_reply_is_asked_for_again(serve: Serve, tmp_path: Path, text: str) -> None:
    endpoint = serve(careful)
    judge = Judge(endpoint.url, "m", tmp_path)
    first = judge.verdicts([asked()])
    (file,) = tmp_path.iterdir()
    file.write_text(text)
    assert judge.verdicts([asked()]) == first and len(endpoint.asked) == 2
    assert judge.verdicts([asked()]) == first and len(endpoint.asked) == 2


def read(backbone: Backbone, examples: Sequence[Example], judge: Judge) -> Row:
    plan = [Planned(JudgedRationality(judge), TASK, examples, "report")]
    reader = Reader(backbone, {None: {example.question: example.chain for example in examples}})
    return evaluate(reader, backbone, None, plan).rows[0]


def test_a_careful_judge_is_believed_and_its_agreement_is_reported(
    serve: Serve, tmp_path: Path, backbone: Backbone, examples: list[Example]
) -> None:
    row = read(backbone, examples, Judge(serve(careful).url, "m", tmp_path))
    assert not row.not_measurable and row.base.mean == 1.0 and not any(row.change.per_item)
    assert row.summary["unparsed"] == 0.0 and row.summary["control_own"] == 1.0
    assert (row.summary["control_swapped"] or 0.0) < 0.5 and row.summary["control_swapped"] is not None
    assert {f"agreement_{criterion.name}" for criterion in RUBRIC.criteria} <= set(row.summary)


def test_a_judge_that_answers_at_random_measures_nothing(
    serve: Serve, tmp_path: Path, backbone: Backbone, examples: list[Example]
) -> None:
    row = read(backbone, examples, Judge(serve(at_random).url, "m", tmp_path))
    assert "does not tell a gold trace from another item's" in row.not_measurable
    assert all(math.isnan(value) for value in row.base.values)
    agreements = [value for name, value in row.summary.items() if name.startswith("agreement") and value is not None]
    assert agreements and all(abs(value) < 0.6 for value in agreements)


def test_a_judge_that_could_not_be_tried_measures_nothing(
    serve: Serve, tmp_path: Path, backbone: Backbone, examples: list[Example]
) -> None:
    bare = [replace(example, rationale=None) for example in examples]
    row = read(backbone, bare, Judge(serve(careful).url, "m", tmp_path))
    assert "no gold trace to try the judge on" in row.not_measurable


def test_replies_that_cannot_be_read_are_counted_and_their_items_left_out(
    serve: Serve, tmp_path: Path, backbone: Backbone, examples: list[Example]
) -> None:
    chatty = examples[3].question

    def mind(prompt: str) -> str:
        return "I like it." if chatty in prompt and "Property: sufficiency" in prompt else careful(prompt)

    row = read(backbone, examples, Judge(serve(mind).url, "m", tmp_path))
    assert [math.isnan(value) for value in row.base.values] == [example.question == chatty for example in examples]
    assert row.base.parts["unparsed"][3] == 0.25 and row.summary["unparsed"] == pytest.approx(0.25 / 20)


def test_agreement_is_a_rank_correlation_and_undefined_for_a_constant() -> None:
    rising = [index / 10 for index in range(10)]
    assert judged_rationality._correlation(rising, [value**3 for value in rising]) == pytest.approx(1.0)
    assert judged_rationality._correlation(rising, [0.5] * 10) is None
    assert judged_rationality._correlation([*rising, math.nan], [*reversed(rising), 0.0]) == pytest.approx(-1.0)


def test_the_command_line_reads_the_judge_on_the_domain(serve: Serve, tmp_path: Path, backbone: Backbone) -> None:
    write_release(tmp_path / "one", backbone, random_lora(backbone, 1), domain="arithmetic", protected=["grammar"])
    subject = load_subject(str(tmp_path / "one"), None, None, tmp_path / "home", None)
    planned = judged(subject, JudgeAt(serve(at_random).url, "m", 7.0), items=8)
    assert planned.measure.judge.timeout_s == 7.0  # type: ignore[attr-defined]
    row = evaluate(subject.engine, subject.backbone, LOADED, [planned]).rows[0]
    assert row.base.task == "arithmetic" and "control_swapped" in row.summary
    assert list((tmp_path / "home" / "cache" / "judge").iterdir())
