"""Programs that people have against the OpenAI shape, run on the service: the OpenAI SDK, LangChain, lm-eval, schemathesis."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from live_service import Live, live, small
from saying_engine import SayingEngine
from small_releases import promote, random_lora, write_release
from stores import store_at
from thinking_backbones import thinking_directory

from adapters.backbone import Backbone
from engine.profile import Profile
from engine.torch_engine import TorchEngine
from registry.release import publish

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # of what the clients bring along
HELLO: list[Any] = [{"role": "user", "content": "Start with 12. Add 5. What is the result?"}]
REPLY = "<think>\nAdd 5.\n</think>\n\nIt is 17."
TASK = """
task: tiny_choice
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: multiple_choice
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_choice: choices
doc_to_target: label
num_fewshot: 0
metric_list: [{metric: acc}]
"""


def needs(package: str) -> pytest.MarkDecorator:
    missing = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(missing, reason="needs `pip install 'graftline[clients]'`")


@pytest.fixture(scope="module")
def server(backbone_directory: Path, session_backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """With one champion, law@1."""
    folder = tmp_path_factory.mktemp("clients")
    tracking = store_at(folder / "home")
    write_release(folder / "law", session_backbone, random_lora(session_backbone, 1))
    publish(tracking, "law", folder / "law")
    promote(tracking, "law", 1)
    with live(small(backbone_directory, folder / "home")) as server:
        yield server


@pytest.fixture(scope="module")
def thinker(backbone_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Live, SayingEngine]]:
    folder = tmp_path_factory.mktemp("thinking")
    with live(small(thinking_directory(backbone_directory, folder / "thinker"), folder / "home")) as server:
        engine = SayingEngine(server.parts.backbone)
        server.app.state.parts = replace(server.parts, engine=engine)
        yield server, engine


class TestOpenAI:
    @pytest.fixture
    def client(self, server: Live) -> Iterator[openai.OpenAI]:
        with openai.OpenAI(base_url=server.openai_url, api_key="none", max_retries=0) as client:
            yield client

    def test_models(self, client: openai.OpenAI, base: str) -> None:
        assert {model.id for model in client.models.list()} == {base, "law"}
        assert client.models.retrieve("law@1").to_dict()["root"] == "law@1"

    def test_chat_and_completion(self, client: openai.OpenAI) -> None:
        chat = client.chat.completions.create(model="law", messages=HELLO, max_completion_tokens=6, temperature=0)
        assert chat.model == "law@1" and chat.usage is not None and chat.usage.completion_tokens == 6
        text = client.completions.create(model="law", prompt=["Add 5.", "Add 6."], max_tokens=4)
        assert [choice.index for choice in text.choices] == [0, 1]

    def test_a_stream_adds_up_to_the_reply(self, client: openai.OpenAI) -> None:
        whole = client.chat.completions.create(model="law", messages=HELLO, max_tokens=16).choices[0].message.content
        chunks = list(
            client.chat.completions.create(
                model="law", messages=HELLO, max_tokens=16, stream=True, stream_options={"include_usage": True}
            )
        )
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == whole
        assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == 16

    def test_the_asynchronous_client(self, server: Live) -> None:
        async def together() -> list[str | None]:
            async with openai.AsyncOpenAI(base_url=server.openai_url, api_key="none", max_retries=0) as client:
                calls = [client.chat.completions.create(model="law", messages=HELLO, max_tokens=8) for _ in range(6)]
                return [reply.choices[0].message.content for reply in await asyncio.gather(*calls)]

        assert len(set(asyncio.run(together()))) == 1

    def test_failures_are_its_own_exceptions(self, client: openai.OpenAI) -> None:
        with pytest.raises(openai.NotFoundError) as missing:
            client.chat.completions.create(model="nobody", messages=HELLO)
        assert (missing.value.code, missing.value.param) == ("model_not_found", "model") and missing.value.request_id
        with pytest.raises(openai.BadRequestError) as wrong:
            client.chat.completions.create(model="law", messages=HELLO, temperature=9)
        assert wrong.value.param == "temperature"
        with pytest.raises(openai.BadRequestError) as long:
            client.completions.create(model="law", prompt="Add 5. " * 600)
        assert long.value.code == "context_length_exceeded"

    def test_chains_and_calls(self, thinker: tuple[Live, SayingEngine]) -> None:
        server, engine = thinker
        engine.text = REPLY + '<tool_call>{"name": "add", "arguments": {"a": 5}}</tool_call>'
        tools: list[Any] = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}]
        with (
            openai.OpenAI(base_url=server.openai_url, api_key="none", max_retries=0) as client,
            client.chat.completions.stream(model="thinker", messages=HELLO, tools=tools) as stream,
        ):
            final = stream.get_final_completion().choices[0]
        assert final.message.to_dict()["reasoning_content"] == "Add 5." and final.message.content == "It is 17."
        assert final.message.tool_calls is not None and final.message.tool_calls[0].function.arguments == '{"a": 5}'
        assert final.finish_reason == "tool_calls"


@needs("langchain_openai")
class TestLangChain:
    def chat(self, server: Live, model: str, **fields: Any) -> Any:
        from langchain_openai import ChatOpenAI

        return ChatOpenAI(model=model, base_url=server.openai_url, api_key="none", max_retries=0, **fields)  # type: ignore[arg-type]

    def test_a_reply_with_its_usage(self, server: Live) -> None:
        reply = self.chat(server, "law", max_tokens=6).invoke("Add 5.")
        assert reply.response_metadata["model_name"] == "law@1" and reply.response_metadata["finish_reason"] == "length"
        assert reply.usage_metadata["output_tokens"] == 6

    def test_a_stream_adds_up_to_the_reply(self, server: Live) -> None:
        chat = self.chat(server, "law", max_tokens=12, stream_usage=True)
        whole = chat.invoke("Add 5.")
        chunks = list(chat.stream("Add 5."))
        assert "".join(str(chunk.content) for chunk in chunks) == whole.content
        assert sum(chunk.usage_metadata["output_tokens"] for chunk in chunks if chunk.usage_metadata) == 12

    def test_a_bound_tool_is_called_and_its_outcome_told(self, thinker: tuple[Live, SayingEngine]) -> None:
        from langchain_core.messages import HumanMessage, ToolMessage
        from langchain_core.tools import tool

        @tool
        def add(first: int, second: int) -> int:
            """Adds two numbers."""
            return first + second

        server, engine = thinker
        engine.text = '<tool_call>{"name": "add", "arguments": {"first": 12, "second": 5}}</tool_call>'
        chat = self.chat(server, "thinker").bind_tools([add])
        asked = HumanMessage("What is 12 + 5?")
        reply = chat.invoke([asked])
        (call,) = reply.tool_calls
        assert (call["name"], call["args"]) == ("add", {"first": 12, "second": 5})
        engine.text = "It is 17."
        told = ToolMessage(str(add.invoke(call["args"])), tool_call_id=call["id"])
        assert chat.invoke([asked, reply, told]).content == "It is 17."
        assert "17" in engine.backbone.decode(engine.asked[-1].prompt_ids)


@needs("lm_eval")
class TestLMEval:
    @pytest.fixture(scope="class")
    def task(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        folder = tmp_path_factory.mktemp("task")
        rows = [
            {"question": f"Start with {n}. Add {n % 7}.", "choices": [str(n + n % 7 + d) for d in (0, 1, 5)], "label": n % 3}
            for n in range(11, 23)
        ]
        (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
        (folder / "task.yaml").write_text(TASK.replace("DATA", str(folder / "rows.jsonl")))
        return folder

    def scores(self, model: Any, task: Path, **fields: Any) -> list[tuple[float, bool]]:
        from lm_eval import simple_evaluate
        from lm_eval.tasks import TaskManager

        manager = TaskManager(include_path=str(task))
        found = simple_evaluate(model, tasks=["tiny_choice"], task_manager=manager, bootstrap_iters=0, **fields)
        assert found is not None
        samples = sorted(found["samples"]["tiny_choice"], key=lambda sample: sample["doc_id"])
        return [(float(total), str(greedy) == "True") for sample in samples for ((total, greedy),) in sample["resps"]]

    @pytest.mark.parametrize(("name", "tokenizer"), [(None, "huggingface"), (None, "remote"), ("law", "huggingface")])
    def test_likelihoods_over_http_are_those_in_process(
        self,
        server: Live,
        task: Path,
        backbone_directory: Path,
        session_backbone: Backbone,
        name: str | None,
        tokenizer: str,
    ) -> None:
        from evaluation.harness_model import EngineLM

        arguments = {
            "base_url": f"{server.openai_url}/completions",
            "model": name or backbone_directory.name,
            "tokenizer": str(backbone_directory),
            "tokenizer_backend": tokenizer,
            "max_length": 512,
            "num_concurrent": 1,
            "max_retries": 1,
        }
        over_http = self.scores("local-completions", task, model_args=arguments, batch_size=4)
        engine = TorchEngine(session_backbone)
        engine.load("law", Profile((random_lora(session_backbone, 1),)))
        names = (name, None if name else "law")
        inside, other = (self.scores(EngineLM(engine, session_backbone, asked), task) for asked in names)
        engine.close()
        assert [total for total, _ in inside] != pytest.approx([total for total, _ in other], abs=1e-2)
        assert [total for total, _ in over_http] == pytest.approx([total for total, _ in inside], abs=1e-3)
        assert [greedy for _, greedy in over_http] == [greedy for _, greedy in inside]


@needs("schemathesis")
class TestSchemathesis:
    def test_no_request_of_the_document_breaks_the_service(self, server: Live, base: str, tmp_path: Path) -> None:
        document = httpx.get(f"{server.url}/openapi.json").json()
        for name in ("ChatRequest", "CompletionRequest"):
            # Models that are there and short replies, so that more than refusals is tried.
            shape = document["components"]["schemas"][name]
            shape["properties"]["model"]["enum"] = [base, "law", "law@1"]
            shape["properties"]["max_tokens"] = {"type": "integer", "minimum": 1, "maximum": 4}
            shape["properties"]["timeout"] = {"type": "number", "minimum": 20}  # else many a request is rightly not done in time
            shape["required"].append("max_tokens")
        (tmp_path / "openapi.json").write_text(json.dumps(document))
        checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
        done = subprocess.run(
            [sys.executable, "-m", "schemathesis.cli", "run", str(tmp_path / "openapi.json"), "--url", server.url]
            + ["--checks", checks, "--max-examples", "15", "--phases", "examples,coverage,fuzzing", "--seed", "1"]
            + ["--request-timeout", "30", "--no-color", "--generation-database", "none"],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            timeout=900,
        )
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
        assert httpx.get(f"{server.openai_url}/models").status_code == 200
