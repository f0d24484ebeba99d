"""A judge: any model behind an OpenAI-compatible endpoint, asked about one criterion of a rubric at a time."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from adapters.whole_file import write_whole
from evaluation.errors import JudgeUnavailable, MissingPackage
from evaluation.rubric import Criterion, Rubric, load_rubric

if TYPE_CHECKING:
    import httpx

KEY_VARIABLE = "GRAFTLINE_JUDGE_API_KEY"
_REPLY = re.compile(r'Evidence: "(?P<evidence>.+)"\nScore: (?P<score>[0-9]+)', re.DOTALL)
TIMEOUT_S = 300.0  # a small model on a few cores takes minutes for eight replies at once


@dataclass(frozen=True)
class Asked:
    criterion: Criterion
    question: str
    explanation: str


@dataclass(frozen=True)
class Verdict:
    """`score` is None where the reply breaks the form, its score is off the scale, or its evidence is not in the explanation."""

    score: int | None
    reply: str


@dataclass(frozen=True)
class Judge:
    """Greedy. A reply is kept by all that decides it: the model, the endpoint and the words of the question.

    The key, if the endpoint wants one, is read from $GRAFTLINE_JUDGE_API_KEY when the judge is asked, and kept nowhere.
    """

    base_url: str  # what stands before /chat/completions
    model: str
    cache: Path = field(repr=False)
    rubric: Rubric = field(default_factory=load_rubric)
    timeout_s: float = field(default=TIMEOUT_S, repr=False)  # of one reply, between two of its bytes
    max_parallel: int = field(default=8, repr=False)

    def verdicts(self, asked: Sequence[Asked]) -> list[Verdict]:
        """In the order asked; what was asked before is not asked again. Raises JudgeUnavailable."""
        prompts = [self.rubric.question(one.criterion, one.question, one.explanation) for one in asked]
        known = {prompt: self._stored(prompt) for prompt in prompts}
        fresh = [prompt for prompt, reply in known.items() if reply is None]
        if fresh:
            known |= zip(fresh, self._ask(fresh), strict=True)
        return [self.parsed(one, known[prompt] or "") for one, prompt in zip(asked, prompts, strict=True)]

    def parsed(self, asked: Asked, reply: str) -> Verdict:
        """Strictly: two lines, the evidence copied from the explanation (spacing and case aside), the score on the scale."""
        found = _REPLY.fullmatch(reply.strip())
        evidence = _plain(found["evidence"]) if found else ""
        if found is None or not evidence or evidence not in _plain(asked.explanation):
            return Verdict(None, reply)
        score = int(found["score"])
        return Verdict(score if self.rubric.lowest <= score <= self.rubric.highest else None, reply)

    def _ask(self, prompts: Sequence[str]) -> list[str]:
        if importlib.util.find_spec("httpx") is None:
            raise MissingPackage(
                f"A judge is asked through the package httpx, which is not installed, to reach {self.base_url}. "
                "Install it with `pip install httpx`, or leave the judge out."
            )
        import httpx

        key = os.environ.get(KEY_VARIABLE)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        with (
            httpx.Client(headers=headers, timeout=self.timeout_s) as client,
            ThreadPoolExecutor(self.max_parallel) as pool,
        ):
            return list(pool.map(lambda prompt: self._reply(client, prompt), prompts))

    def _reply(self, client: httpx.Client, prompt: str) -> str:
        import httpx

        body = {"model": self.model, "messages": [{"role": "user", "content": prompt}], "temperature": 0, "max_tokens": 256}
        try:
            answer = client.post(f"{self.base_url.rstrip('/')}/chat/completions", json=body).raise_for_status()
            reply = str(answer.json()["choices"][0]["message"]["content"])
        except httpx.TimeoutException as error:
            raise JudgeUnavailable(
                f"The judge {self.model!r} at {self.base_url} must reply within {self.timeout_s:g} s, but did not "
                f"({type(error).__name__}). Raise --judge-timeout-s (replies so far are stored), or ask a faster judge."
            ) from error
        except (httpx.HTTPError, httpx.InvalidURL, KeyError, IndexError, TypeError, ValueError) as error:
            raise JudgeUnavailable(
                f"The judge {self.model!r} at {self.base_url} must reply as OpenAI's chat completions do, but did not: "
                f"{type(error).__name__}: {error}. Correct the URL, the model's name or ${KEY_VARIABLE}, or leave the judge out."
            ) from error
        write_whole(self._file(prompt), json.dumps({"prompt": prompt, "reply": reply}))
        return reply

    def _stored(self, prompt: str) -> str | None:
        file = self._file(prompt)
        if not file.is_file():
            return None
        try:
            stored = json.loads(file.read_text(encoding="utf-8"))
            return str(stored["reply"]) if stored["prompt"] == prompt else None
        except (ValueError, KeyError, TypeError):  # damaged: it is asked again, and the reply takes the file's place
            return None

    def _file(self, prompt: str) -> Path:
        identity = json.dumps([self.base_url, self.model, prompt])
        return self.cache / f"{hashlib.sha256(identity.encode()).hexdigest()}.json"


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()
