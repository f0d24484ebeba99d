"""The scheduler: who joins, one step for everybody who runs, who leaves."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from engine.bank import AdapterBank
from engine.cache import RowCache
from engine.engine import NotFinite, TokenLogprob
from engine.row import Row
from engine.twin import Twin

# Legend: B rows, T tokens, H hidden, V vocabulary


class Scheduler:
    """Rows join and leave between steps. Row i of `running` owns place i of the cache."""

    def __init__(self, twin: Twin, bank: AdapterBank, max_rows: int, max_batch_tokens: int, max_cache_tokens: int) -> None:
        self._twin, self._bank = twin, bank
        self._max_rows, self._max_batch_tokens, self._max_cache_tokens = max_rows, max_batch_tokens, max_cache_tokens
        self.waiting: deque[Row] = deque()
        self.running: list[Row] = []
        self.generated: Counter[str] = Counter()
        self.prefilled = 0  # tokens; of equal prompts that join together, those of one
        self._cache = RowCache(twin.num_layers, twin.dtype)

    @property
    def is_busy(self) -> bool:
        return bool(self.waiting or self.running)

    def rows_of(self, name: str) -> int:
        return sum(row.name == name for row in (*self.waiting, *self.running))

    def submit(self, row: Row) -> None:
        self.waiting.append(row)

    @torch.inference_mode()
    def step(self) -> None:
        """Joins who fits, then one token for every running row."""
        self._drop_cancelled()
        joining = self._joining()
        if joining:
            self._prefill(joining)
        if self.running:
            self._decode()
        if not self.running:
            self._cache = RowCache(self._twin.num_layers, self._twin.dtype)  # an idle engine holds no memory

    def fail(self, error: Exception) -> None:
        """Ends everything that runs or waits."""
        rows, self.running = [*self.running, *self.waiting], []
        self.waiting.clear()
        self._cache = RowCache(self._twin.num_layers, self._twin.dtype)
        for row in rows:
            row.fail(error)

    def _drop_cancelled(self) -> None:
        for row in [row for row in self.waiting if row.cancelled]:
            self.waiting.remove(row)
            row.cancel()
        for row in self.running:
            if row.cancelled:
                row.cancel()
        self._leave()

    def _joining(self) -> list[Row]:
        """The first in the queue that fit: rows, tokens of one prefill, and the cache's total."""
        joining: list[Row] = []
        longest = max((row.max_length for row in self.running), default=0)
        width = 0
        while self.waiting and len(self.running) + len(joining) < self._max_rows:
            row = self.waiting[0]
            count = len(joining) + 1
            longest, width = max(longest, row.max_length), max(width, len(row.prompt.ids))
            first = not joining and not self.running
            if not first and (len(self.running) + count) * longest > self._max_cache_tokens:
                break
            if joining and count * width > self._max_batch_tokens:
                break
            joining.append(self.waiting.popleft())
        return joining

    def _prefill(self, joining: Sequence[Row]) -> None:
        read, index = _distinct(joining)
        lengths = [len(row.prompt.ids) for row in read]
        width, device = max(lengths), self._twin.device
        self.prefilled += sum(lengths)
        self._cache.reserve(len(self.running) + len(joining), max(row.max_length for row in joining))
        with self._twin.running(), self._bank.rows([row.name for row in read]):
            embeds_BTH = pad_sequence([row.prompt.embed(self._twin.embeddings) for row in read], batch_first=True)
            positions_BT = torch.arange(width, device=device).expand(len(read), -1)
            causal_11TT = torch.ones(width, width, dtype=torch.bool, device=device).tril()[None, None]
            lengths_B, index_B = torch.tensor(lengths, device=device), torch.tensor(index, device=device)
            self._cache.prefill(len(self.running), lengths_B, width, index_B)
            states_BTH = self._twin.states(embeds_BTH, positions_BT, causal_11TT, self._cache)
            logits_BV = self._twin.logits(states_BTH[torch.arange(len(read), device=device), lengths_B - 1])[index_B]
        self.running.extend(joining)
        self._choose(joining, logits_BV)

    def _decode(self) -> None:
        device = self._twin.device
        columns_B = torch.tensor([row.length - 1 for row in self.running], device=device)
        width = max(row.length for row in self.running)
        with self._twin.running(), self._bank.rows([row.name for row in self.running]):
            ids_BT = torch.tensor([[row.token_ids[-1]] for row in self.running], device=device)
            mask_B11T = (torch.arange(width, device=device) <= columns_B[:, None])[:, None, None]
            self._cache.decode(columns_B, width)
            states_BTH = self._twin.states(self._twin.embeddings(ids_BT), columns_B[:, None], mask_B11T, self._cache)
            logits_BV = self._twin.logits(states_BTH[:, -1])
        self._choose(tuple(self.running), logits_BV)

    def _choose(self, rows: Sequence[Row], logits_BV: Tensor) -> None:
        finite_B = torch.isfinite(logits_BV).all(dim=-1).tolist()
        norms_B = logits_BV.logsumexp(dim=-1)
        tokens = [row.choose(logits_BV[i]) if finite_B[i] else 0 for i, row in enumerate(rows)]
        chosen_B = logits_BV[torch.arange(len(rows)), torch.tensor(tokens)] - norms_B
        _keep_tops(rows, logits_BV, norms_B)
        for row, token, logprob, finite in zip(rows, tokens, chosen_B.tolist(), finite_B, strict=True):
            if finite:
                self.generated[row.name] += 1
                row.take(token, logprob)
            else:
                row.fail(_not_finite(row))
        self._leave()

    def _leave(self) -> None:
        for place in reversed(range(len(self.running))):
            row = self.running[place]
            if not row.is_finished:
                continue
            if isinstance(row.error, NotFinite):
                self._cache.wipe(place)
            last = self.running.pop()
            if last is not row:
                self._cache.move(len(self.running), place, last.length)
                self.running[place] = last


def _distinct(rows: Sequence[Row]) -> tuple[list[Row], list[int]]:
    """The rows whose prompts must be read, and for each row which of them it shares: several completions have one prompt."""
    places: dict[tuple[object, ...], int] = {}
    read, index = list[Row](), list[int]()
    for row in rows:
        soft_KH = row.prompt.soft_KH
        soft = None if soft_KH is None else soft_KH.detach().float().cpu().numpy().tobytes()
        place = places.setdefault((row.name, row.prompt.ids, row.prompt.soft_at, soft), len(read))
        if place == len(read):
            read.append(row)
        index.append(place)
    return read, index


def _keep_tops(rows: Sequence[Row], logits_BV: Tensor, norms_B: Tensor) -> None:
    """The likeliest tokens of the rows that ask for them."""
    asking = [place for place, row in enumerate(rows) if row.num_top]
    if not asking:
        return
    best = logits_BV[asking].float().topk(max(rows[place].num_top for place in asking))
    logprobs = (best.values - norms_B[asking, None]).tolist()
    for place, ids, found in zip(asking, best.indices.tolist(), logprobs, strict=True):
        row = rows[place]
        row.tops.append(tuple(TokenLogprob(*pair) for pair in zip(ids, found, strict=True))[: row.num_top])


def _not_finite(row: Row) -> NotFinite:
    return NotFinite(
        f"Logits must be finite, but {f'profile {row.name!r}' if row.name else 'the backbone'} gave NaN or infinity after "
        f"{len(row.token_ids)} tokens. Its adapter has diverged: unload it and fit again."
    )
