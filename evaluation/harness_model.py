"""The engine as lm-evaluation-harness sees a model. Imported only where the harness is: it is an extra."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from adapters.backbone import Backbone
from engine.engine import Continuation, Engine, GenerationRequest

_MAX_NEW_TOKENS = 256  # the harness's own default
_SURE = math.log(0.5)  # no other token can be likelier


class EngineLM(TemplateLM):  # type: ignore[misc]
    """One profile (None: the backbone). Every call is one call of the engine, which batches it.

    Prompts are the harness's plain text, without a chat template; what is too long loses its beginning.
    """

    def __init__(self, engine: Engine, backbone: Backbone, profile: str | None) -> None:
        super().__init__()
        self._engine, self._backbone, self._profile = engine, backbone, profile

    @property
    def eot_token_id(self) -> int:
        return int(self._backbone.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        first = self._backbone.tokenizer.bos_token_id
        return self.eot_token_id if first is None else int(first)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        return self._backbone.encode(string)

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Of whole texts: every token once, in windows as long as the context; the last has what it can hold before it."""
        asked, owners = [], []
        for index, request in enumerate(requests):
            (text,) = request.args
            windows = get_rolling_token_windows(
                self.tok_encode(text), self.prefix_token_id, max_seq_len=self._backbone.context_length - 1, context_len=1
            )
            for before, ids in map(make_disjoint_window, windows):
                asked.append(Continuation(tuple(before), tuple(ids)))
                owners.append(index)
        totals = [0.0] * len(requests)
        for owner, row in zip(owners, self._engine.score(asked, self._profile), strict=True):
            totals[owner] += sum(row)
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Greedy, unless the task samples."""
        return [done.text for done in self._engine.complete([self._request(*request.args) for request in requests])]

    def _request(self, context: str, asked: dict[str, Any]) -> GenerationRequest:
        limit = self._backbone.context_length
        count = min(int(asked.get("max_gen_toks") or asked.get("max_new_tokens") or _MAX_NEW_TOKENS), limit // 2)
        until = asked.get("until") or ()
        return GenerationRequest(
            tuple(self.tok_encode(context)[count - limit :]) or (self.prefix_token_id,),
            self._profile,
            max_new_tokens=count,
            temperature=float(asked.get("temperature") or 1.0) if asked.get("do_sample") else 0.0,
            top_p=float(asked.get("top_p") or 1.0),
            stop=(until,) if isinstance(until, str) else tuple(until),
        )

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[tuple[str, str], list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        asked = []
        for _, context, continuation in requests:
            ids = (*context, *continuation)[-self._backbone.context_length :]
            start = max(1, len(ids) - len(continuation))
            asked.append(Continuation(ids[:start], ids[start:]))
        rows = self._engine.score(asked, self._profile)
        return [(sum(row), greedy) for row, greedy in zip(rows, self._are_greedy(asked, rows), strict=True)]

    def _are_greedy(self, asked: Sequence[Continuation], rows: Sequence[tuple[float, ...]]) -> list[bool]:
        """Whether each continuation is what greedy decoding writes; it is asked to write only where the scores leave it open."""
        best: dict[tuple[int, ...], float] = {}
        for one, row in zip(asked, rows, strict=True):
            best[one.prompt_ids] = max(row[0], best.get(one.prompt_ids, -math.inf))
        open_lengths: dict[tuple[int, ...], int] = {}
        for one, row in zip(asked, rows, strict=True):
            if row[0] == best[one.prompt_ids] and min(row) <= _SURE:
                open_lengths[one.prompt_ids] = max(len(one.ids), open_lengths.get(one.prompt_ids, 0))
        written = self._engine.complete(
            [GenerationRequest(ids, self._profile, max_new_tokens=count, temperature=0.0) for ids, count in open_lengths.items()]
        )
        found = dict(zip(open_lengths, (done.token_ids for done in written), strict=True))
        return [
            min(row) > _SURE or found.get(one.prompt_ids, ())[: len(one.ids)] == one.ids
            for one, row in zip(asked, rows, strict=True)
        ]
