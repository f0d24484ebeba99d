"""Chats with a backbone that thinks between markers: the chain apart from the answer, and how long it may be."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from live_service import Live, live, small
from saying_engine import SayingEngine
from thinking_backbones import thinking_directory

from engine.engine import GenerationRequest

REPLY = "<think>\nAdd 5 to 12.\n</think>\n\nIt is 17."
HELLO = [{"role": "user", "content": "What is 12 + 5?"}]


@dataclass
class Thinker:
    live: Live
    engine: SayingEngine
    model: str

    def post(self, **body: Any) -> httpx.Response:
        return httpx.post(f"{self.live.openai_url}/chat/completions", json={"model": self.model, "messages": HELLO, **body})

    def choice(self, **body: Any) -> dict[str, Any]:
        reply = self.post(**body)
        assert reply.status_code == 200, reply.text
        return {**reply.json()["choices"][0], "usage": reply.json()["usage"]}

    def refusal(self, **body: Any) -> tuple[int, str | None, str]:
        reply = self.post(**body)
        error = reply.json()["error"]
        return reply.status_code, error["param"], error["message"]

    @property
    def asked(self) -> GenerationRequest:
        return self.engine.asked[-1]

    @property
    def prompt(self) -> str:
        return str(self.live.parts.backbone.tokenizer.decode(self.asked.prompt_ids))


@pytest.fixture(scope="module")
def served(backbone_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Thinker]:
    folder = tmp_path_factory.mktemp("thinking")
    directory = thinking_directory(backbone_directory, folder / "thinker")
    with live(small(directory, folder / "home")) as server:
        engine = SayingEngine(server.parts.backbone)
        server.app.state.parts = replace(server.parts, engine=engine)
        yield Thinker(server, engine, "thinker")


@pytest.fixture
def thinker(served: Thinker) -> Thinker:
    served.engine.text = REPLY
    return served


def test_the_chain_is_reasoning_and_the_answer_is_content(thinker: Thinker) -> None:
    found = thinker.choice()
    assert found["message"] == {"role": "assistant", "content": "It is 17.", "reasoning_content": "Add 5 to 12."}
    assert found["finish_reason"] == "stop"


def test_usage_counts_the_chain_with_its_markers(thinker: Thinker) -> None:
    chain = thinker.live.parts.backbone.encode("<think>\nAdd 5 to 12.\n</think>")
    usage = thinker.choice()["usage"]
    assert usage["completion_tokens_details"] == {"reasoning_tokens": len(chain)}
    assert usage["completion_tokens"] > len(chain)


def test_a_stream_says_the_same_in_pieces(thinker: Thinker) -> None:
    lines = thinker.post(stream=True, stream_options={"include_usage": True}).text.split("\n\n")
    chunks = [httpx.Response(200, text=line.removeprefix("data: ")).json() for line in lines if line and "[DONE]" not in line]
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "Add 5 to 12."
    assert "".join(delta.get("content", "") for delta in deltas) == "It is 17."
    assert all(len(delta) < 2 for delta in deltas[1:])
    assert chunks[-1]["usage"]["completion_tokens_details"]["reasoning_tokens"] > 0


def test_a_chain_that_is_cut_is_all_reasoning(thinker: Thinker) -> None:
    found = thinker.choice(max_tokens=4)
    assert (found["message"]["content"], found["finish_reason"]) == ("", "length")
    assert found["message"]["reasoning_content"]
    assert found["usage"]["completion_tokens_details"]["reasoning_tokens"] == 4


def test_a_reply_without_a_chain_is_content(thinker: Thinker) -> None:
    thinker.engine.text = "It is 17, as <think> says."
    found = thinker.choice()
    assert found["message"] == {"role": "assistant", "content": thinker.engine.text, "reasoning_content": None}
    assert found["usage"]["completion_tokens_details"] == {"reasoning_tokens": 0}


def test_the_chain_is_left_out_on_request(thinker: Thinker) -> None:
    assert thinker.choice(include_reasoning=False)["message"]["reasoning_content"] is None


def test_completions_give_the_text_as_it_is(thinker: Thinker) -> None:
    body = {"model": "thinker", "prompt": "12 + 5", "max_tokens": 100}
    assert httpx.post(f"{thinker.live.openai_url}/completions", json=body).json()["choices"][0]["text"] == REPLY


def test_the_template_is_told_not_to_think(thinker: Thinker) -> None:
    thinker.choice()
    assert not thinker.prompt.endswith("</think>\n\n")
    thinker.choice(chat_template_kwargs={"enable_thinking": False})
    assert thinker.prompt.endswith("<think>\n\n</think>\n\n")
    thinker.choice(reasoning_effort="none")
    assert thinker.prompt.endswith("<think>\n\n</think>\n\n")


def test_a_value_that_the_template_does_not_read_is_refused(thinker: Thinker) -> None:
    for name in ("enable_singing", "tokenize"):
        status, param, message = thinker.refusal(chat_template_kwargs={name: False})
        assert (status, param) == (400, "chat_template_kwargs") and name in message


def test_a_client_s_own_template_is_refused(thinker: Thinker) -> None:
    assert thinker.refusal(chat_template="{{ messages }}")[:2] == (400, "chat_template")
    assert thinker.refusal(chat_template_kwargs={"chat_template": "{{ 1 }}"})[:2] == (400, "chat_template_kwargs")


def test_a_thinking_budget_is_a_budget_of_the_chain(thinker: Thinker) -> None:
    thinker.choice(thinking_token_budget=7, max_tokens=50)
    policy = thinker.asked.policy
    assert policy is not None and policy.budget is not None
    assert (policy.budget.max_trace_tokens, policy.budget.answer_is_line, policy.budget.reserves_answer) == (7, False, False)
    thinker.choice()
    assert thinker.asked.policy is not None and thinker.asked.policy.budget is None


def test_an_effort_is_a_share_of_the_tokens_that_are_allowed(thinker: Thinker) -> None:
    caps = {}
    for effort in ("low", "medium", "high"):
        thinker.choice(reasoning_effort=effort, max_tokens=100)
        assert thinker.asked.policy is not None and thinker.asked.policy.budget is not None
        caps[effort] = thinker.asked.policy.budget.max_trace_tokens
    assert caps == {"low": 20, "medium": 50, "high": 80}


def test_an_unknown_effort_is_refused(thinker: Thinker) -> None:
    assert thinker.refusal(reasoning_effort="heroic")[:2] == (400, "reasoning_effort")


def test_the_chain_of_an_earlier_turn_is_read_by_the_template(thinker: Thinker) -> None:
    earlier = {"role": "assistant", "content": "17.", "reasoning_content": "Counted."}
    thinker.choice(messages=[*HELLO, earlier, {"role": "user", "content": "Sure?"}])
    assert "<think>\nCounted.\n</think>\n\n17." in thinker.prompt


def test_a_reply_goes_on_with_the_last_message(thinker: Thinker) -> None:
    thinker.engine.text = " 12 is 17.\n</think>Seventeen."
    begun = {"role": "assistant", "content": "<think>\nFive and"}
    found = thinker.choice(messages=[*HELLO, begun], continue_final_message=True)
    backbone = thinker.live.parts.backbone
    assert backbone.decode(thinker.asked.begun_ids) == "<think>\nFive and"
    assert thinker.prompt.endswith("<|im_start|>assistant\n")
    assert found["message"]["content"] == "Seventeen." and found["message"]["reasoning_content"] == " 12 is 17."
    assert found["usage"]["prompt_tokens"] == len(thinker.asked.prompt_ids) + len(thinker.asked.begun_ids)


def test_only_the_assistant_is_continued(thinker: Thinker) -> None:
    assert "assistant" in thinker.refusal(continue_final_message=True)[2]
    both = [*HELLO, {"role": "assistant", "content": "So"}]
    assert thinker.refusal(messages=both, continue_final_message=True, add_generation_prompt=True)[0] == 400


def test_no_reply_is_opened_where_none_is_asked_for(thinker: Thinker) -> None:
    thinker.choice(add_generation_prompt=False)
    assert thinker.prompt.endswith("5?<|im_end|>\n")


def test_a_name_is_read_by_the_template(thinker: Thinker) -> None:
    thinker.choice(messages=[{"role": "user", "name": "Ada", "content": "Hello"}])
    assert "user Ada\nHello" in thinker.prompt


def test_what_the_template_refuses_is_answered_with_its_reason(thinker: Thinker) -> None:
    template = thinker.live.parts.backbone.tokenizer.chat_template
    try:
        thinker.live.parts.backbone.tokenizer.chat_template = "{{ raise_exception('turns must alternate') }}"
        status, param, message = thinker.refusal()
    finally:
        thinker.live.parts.backbone.tokenizer.chat_template = template
    assert (status, param) == (400, "messages") and "turns must alternate" in message
