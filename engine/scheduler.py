"""The scheduler: who joins, one step for everybody who runs, who leaves."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from engine.bank import BASE, AdapterBank
from engine.cache import RowCache
from engine.engine import NotFinite, TokenLogprob
from engine.inspect import kept_outputs
from engine.oracle import Oracle
from engine.peek import shifted
from engine.row import Row
from engine.twin import Twin

# Legend: B rows, T tokens, H hidden, V vocabulary


class Scheduler:
    """Rows join and leave between steps. Seat i owns place i of the cache; a routed row has a second seat for its oracle."""

    def __init__(self, twin: Twin, bank: AdapterBank, max_rows: int, max_batch_tokens: int, max_cache_tokens: int) -> None:
        self._twin, self._bank = twin, bank
        self._max_rows, self._max_batch_tokens, self._max_cache_tokens = max_rows, max_batch_tokens, max_cache_tokens
        self.waiting: deque[Row] = deque()
        self._seats: list[Row | Oracle] = []
        self.generated: Counter[str] = Counter()
        self.steered: Counter[str] = Counter()
        self.prefilled = 0  # tokens; of equal prompts that join together, those of one
        self.beside = 0  # tokens read by oracles and by peeks
        self._cache = RowCache(twin.num_layers, twin.dtype)

    @property
    def running(self) -> list[Row]:
        return [seat for seat in self._seats if isinstance(seat, Row)]

    @property
    def is_busy(self) -> bool:
        return bool(self.waiting or self._seats)

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
        if self._seats:
            self._decode()
        if not self._seats:
            self._cache = RowCache(self._twin.num_layers, self._twin.dtype)  # an idle engine holds no memory

    def fail(self, error: Exception) -> None:
        """Ends everything that runs or waits."""
        rows, self._seats = [*self.running, *self.waiting], []
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
        longest = max((seat.max_length for seat in self._seats), default=0)
        width, count = 0, 0
        num_running = len(self.running)
        while self.waiting and num_running + len(joining) < self._max_rows:
            row = self.waiting[0]
            count += len(row.seats)
            longest = max(longest, *(seat.max_length for seat in row.seats))
            width = max(width, *(len(seat.prompt.ids) for seat in row.seats))
            first = not joining and not self._seats
            if not first and (len(self._seats) + count) * longest > self._max_cache_tokens:
                break
            if joining and count * width > self._max_batch_tokens:
                break
            joining.append(self.waiting.popleft())
        return joining

    def _prefill(self, joining: Sequence[Row]) -> None:
        seats = [seat for row in joining for seat in row.seats]
        read, index = _distinct(seats)
        lengths = [len(seat.prompt.ids) for seat in read]
        width, device = max(lengths), self._twin.device
        self.prefilled += sum(lengths)
        self._cache.reserve(len(self._seats) + len(seats), max(seat.max_length for seat in seats))
        with self._forward(read) as found:
            embeds_BTH = pad_sequence([seat.prompt.embed(self._twin.embeddings) for seat in read], batch_first=True)
            positions_BT = torch.arange(width, device=device).expand(len(read), -1)
            causal_11TT = torch.ones(width, width, dtype=torch.bool, device=device).tril()[None, None]
            lengths_B, index_B = torch.tensor(lengths, device=device), torch.tensor(index, device=device)
            self._cache.prefill(len(self._seats), lengths_B, width, index_B)
            states_BTH = self._twin.states(embeds_BTH, positions_BT, causal_11TT, self._cache)
            logits_BV = self._twin.logits(states_BTH[torch.arange(len(read), device=device), lengths_B - 1])[index_B]
        self._seats.extend(seats)
        states = {layer: read_BTH[index_B] for layer, read_BTH in found.items()}
        self._choose(*self._routed(seats, logits_BV, states, [lengths[place] for place in index]))

    def _decode(self) -> None:
        device, seats = self._twin.device, tuple(self._seats)
        columns_B = torch.tensor([seat.length - 1 for seat in seats], device=device)
        width = max(seat.length for seat in seats)
        with self._forward(seats) as read:
            ids_BT = torch.tensor([[seat.last_id] for seat in seats], device=device)
            mask_B11T = (torch.arange(width, device=device) <= columns_B[:, None])[:, None, None]
            self._cache.decode(columns_B, width)
            states_BTH = self._twin.states(self._twin.embeddings(ids_BT), columns_B[:, None], mask_B11T, self._cache)
            logits_BV = self._twin.logits(states_BTH[:, -1])
        self.beside += len(seats) - len(self.running)
        self._choose(*self._routed(seats, logits_BV, read, [1] * len(seats)))

    @contextmanager
    def _forward(self, seats: Sequence[Row | Oracle]) -> Iterator[Mapping[int, Tensor]]:
        """Every seat computes under its own adapters; what the oracles' routings read, [B, T, H] by layer, is kept."""
        layers = sorted({seat.router.read_layer for seat in seats if isinstance(seat, Oracle)})
        names = [seat.adapters for seat in seats]
        with self._twin.running(), self._bank.rows(names), kept_outputs(self._twin, layers) as read:
            yield read

    def _routed(
        self, seats: Sequence[Row | Oracle], logits_BV: Tensor, read: Mapping[int, Tensor], lengths: Sequence[int]
    ) -> tuple[Sequence[Row], Tensor]:
        """The rows among the seats with what each draws from: of a routed row where its oracle differs, the steered logits."""
        place_of = {id(seat): place for place, seat in enumerate(seats)}
        oracles = [(place, seat) for place, seat in enumerate(seats) if isinstance(seat, Oracle)]
        if not oracles:
            return [seat for seat in seats if isinstance(seat, Row)], logits_BV
        likeliest = logits_BV.argmax(dim=-1).tolist()
        found: list[tuple[Row, Tensor]] = []
        for place, oracle in oracles:
            own = place_of[id(oracle.row)]
            if not torch.isfinite(logits_BV[place]).all():
                logits_BV[own] = torch.nan  # the row fails by name for its adapter's sake
                continue
            states_TH = read[oracle.router.read_layer][place, : lengths[place]]
            shift_H = oracle.shift(states_TH, likeliest[own], likeliest[place])
            if shift_H is not None:
                found.append((oracle.row, shift_H))
        if found:
            places = [place_of[id(row)] for row, _ in found]
            logits_BV[places] = self._peek(found)
        rows = [(place, seat) for place, seat in enumerate(seats) if isinstance(seat, Row)]
        return [row for _, row in rows], logits_BV[[place for place, _ in rows]]

    def _peek(self, steered: Sequence[tuple[Row, Tensor]]) -> Tensor:
        """Logits of what follows these rows, [B, V], with a layer shifted at each one's last token; the cache stays as it is."""
        device, rows = self._twin.device, [row for row, _ in steered]
        seat_of = {id(seat): place for place, seat in enumerate(self._seats)}
        shifts: dict[int, Tensor] = {}
        for place, (row, shift_H) in enumerate(steered):
            assert row.oracle is not None
            layer = row.oracle.router.routing.spec.layer
            shifts.setdefault(layer, torch.zeros(len(rows), 1, len(shift_H), device=device))[place, 0] = shift_H.to(device)
            self.steered[row.name] += 1
        self.beside += len(rows)
        columns_B = torch.tensor([row.length - 1 for row in rows], device=device)
        width = max(row.length for row in rows)
        self._cache.peek(torch.tensor([seat_of[id(row)] for row in rows], device=device), columns_B, width)
        ids_BT = torch.tensor([[row.last_id] for row in rows], device=device)
        mask_B11T = (torch.arange(width, device=device) <= columns_B[:, None])[:, None, None]
        with self._twin.running(), self._bank.rows([BASE] * len(rows)), shifted(self._twin, shifts):
            states_BTH = self._twin.states(self._twin.embeddings(ids_BT), columns_B[:, None], mask_B11T, self._cache)
            return self._twin.logits(states_BTH[:, -1])

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
        for place in reversed(range(len(self._seats))):
            seat = self._seats[place]
            if not seat.is_finished:
                continue
            if isinstance(seat.error, NotFinite):
                self._cache.wipe(place)
            last = self._seats.pop()
            if last is not seat:
                self._cache.move(len(self._seats), place, last.length)
                self._seats[place] = last


def _distinct(seats: Sequence[Row | Oracle]) -> tuple[list[Row | Oracle], list[int]]:
    """The seats whose prompts must be read, and for each seat which of them it shares: several completions have one prompt."""
    places: dict[tuple[object, ...], int] = {}
    read, index = list[Row | Oracle](), list[int]()
    for seat in seats:
        soft_KH = seat.prompt.soft_KH
        soft = None if soft_KH is None else soft_KH.detach().float().cpu().numpy().tobytes()
        reads = seat.router.read_layer if isinstance(seat, Oracle) else None
        place = places.setdefault((seat.adapters, reads, seat.prompt.ids, seat.prompt.soft_at, soft), len(read))
        if place == len(read):
            read.append(seat)
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
