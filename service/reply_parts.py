"""One reply of a chat as it comes, in its parts: the chain of thought, the content, the calls of tools."""

from __future__ import annotations

import secrets
import string
from collections.abc import Sequence
from dataclasses import dataclass, field

from pydantic import JsonValue

from adapters.backbone import Backbone
from engine.decoding.chain import ChainStream
from engine.decoding.trace import Trace
from engine.engine import Delta
from service.chat_fields import ChatFields
from service.prompts import ReadPrompt, template_of
from service.tool_calls import Call, CallStream, Read, format_of

_LETTERS = string.ascii_letters + string.digits
_ID_LENGTH = 9  # the templates of Mistral's models take no other


@dataclass(frozen=True)
class Part:
    """What one step adds; most are empty."""

    reasoning: str = ""
    content: str = ""
    calls: tuple[Call, ...] = ()


@dataclass
class ReplyParts:
    """`add` every delta in turn; `wire` is what a chunk says of a part, `message` the whole."""

    chain: ChainStream | None  # None: the backbone writes no chain between markers
    trace: Trace | None  # counts the chain's tokens
    calls: CallStream | None  # None: no tools are offered
    is_shown: bool = True  # the chain is sent
    max_calls: int | None = None
    reasoning: str = field(default="", init=False)
    content: str = field(default="", init=False)
    called: list[dict[str, JsonValue]] = field(default_factory=list, init=False)

    @classmethod
    def of(cls, backbone: Backbone, prompt: ReadPrompt, body: ChatFields) -> ReplyParts:
        begun, markers = backbone.decode(prompt.begun_ids), backbone.markers
        chain = trace = calls = None
        if markers is not None:
            is_open = backbone.begins_chain(prompt.ids)
            chain = ChainStream(markers, is_open)
            trace = Trace(backbone.decode, markers.end, "" if is_open else markers.begin)
            chain.add(begun)
            for token in prompt.begun_ids:
                trace.take(token)
        known = format_of(template_of(backbone, with_tools=True)) if body.offers_tools else None
        if known is not None:
            calls = CallStream(known, body.tools)
        return cls(chain, trace, calls, body.include_reasoning, None if body.parallel_tool_calls else 1)

    @property
    def reasoning_tokens(self) -> int | None:
        """With those of the markers. None where the backbone does not think between markers."""
        return None if self.trace is None else self.trace.num_tokens

    def add(self, delta: Delta) -> Part:
        if delta.token_id is not None and self.trace is not None and self.trace.is_open:
            self.trace.take(delta.token_id)
        chain, answer = ("", delta.text) if self.chain is None else self.chain.add(delta.text)
        read = Read(answer, ()) if self.calls is None else self.calls.add(answer)
        if delta.finish_reason is not None:
            last, rest = ("", "") if self.chain is None else self.chain.finish()
            chain += last
            for more in (Read(rest, ()),) if self.calls is None else (self.calls.add(rest), self.calls.finish()):
                read = Read(read.content + more.content, read.calls + more.calls)
        return self._kept(Part(chain if self.is_shown else "", read.content, read.calls))

    def finish_reason(self, reason: str) -> str:
        return "tool_calls" if self.called and reason == "stop" else reason

    def wire(self, part: Part) -> list[dict[str, JsonValue]]:
        """The deltas that tell of a part which `add` returned last: one a kind."""
        found: list[dict[str, JsonValue]] = []
        if part.reasoning:
            found.append({"reasoning_content": part.reasoning})
        if part.content:
            found.append({"content": part.content})
        first = len(self.called) - len(part.calls)
        for place in range(first, len(self.called)):
            found.append({"tool_calls": [{"index": place, **self.called[place]}]})
        return found

    def message(self) -> dict[str, JsonValue]:
        """Null content only beside calls."""
        told: dict[str, JsonValue] = {"role": "assistant", "content": self.content or (None if self.called else "")}
        if self.chain is not None:
            told["reasoning_content"] = self.reasoning or None
        if self.called:
            told["tool_calls"] = list(self.called)
        return told

    def _kept(self, part: Part) -> Part:
        self.reasoning += part.reasoning
        self.content += part.content
        left = None if self.max_calls is None else max(0, self.max_calls - len(self.called))
        calls = part.calls[:left]
        self.called += [_call(call) for call in calls]
        return Part(part.reasoning, part.content, calls)


def _call(call: Call) -> dict[str, JsonValue]:
    name = "".join(secrets.choice(_LETTERS) for _ in range(_ID_LENGTH))
    return {"id": name, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def reasoning_tokens(replies: Sequence[ReplyParts]) -> int | None:
    counts = [count for reply in replies if (count := reply.reasoning_tokens) is not None]
    return sum(counts) if counts else None
