"""The scheduler: who joins, one step for everybody who runs, who leaves."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from engine.bank import BASE, AdapterBank
from engine.cache import RowCache, Span, whole_columns
from engine.counts import Counts
from engine.engine import TokenLogprob
from engine.errors import NotFinite, TimedOut
from engine.inspect import kept_outputs
from engine.limits import Limits
from engine.line import Order, WaitingLine, by_priority
from engine.oracle import Oracle
from engine.peek import shifted
from engine.prefix_cache import PrefixCache
from engine.reading import Chunk, Seat, plan
from engine.row import Row
from engine.seats import Seats
from engine.twin import Twin

# Legend: B rows, T tokens, H hidden, V vocabulary


class Scheduler:
    """Rows join and leave between steps. A step reads a share of the prompts and writes one token of every row that is read.

    A routed row has a second seat for its oracle.
    """

    def __init__(
        self,
        twin: Twin,
        bank: AdapterBank,
        limits: Limits,
        chunk_tokens: int | None = None,
        *,
        order: Order = by_priority,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`chunk_tokens` are read of prompts in one step; None: as many as one forward may hold."""
        self._twin, self._bank, self._limits = twin, bank, limits
        self._chunk_tokens = limits.max_batch_tokens if chunk_tokens is None else chunk_tokens
        self._clock = clock
        self._line = WaitingLine(order)
        self._cache = RowCache(twin.num_layers, twin.dtype)
        self._seats = Seats(self._cache)
        self.prefixes = PrefixCache(limits.max_prefix_tokens)
        self.counts = Counts()

    @property
    def running(self) -> list[Row]:
        return self._seats.rows

    @property
    def num_waiting(self) -> int:
        return len(self._line)

    @property
    def is_busy(self) -> bool:
        return bool(self._seats) or bool(self._line)

    @property
    def cache_tokens(self) -> int:
        return sum(seat.held for seat in tuple(self._seats))

    def rows_of(self, name: str) -> int:
        return sum(row.name == name for row in (*self._line, *self.running))

    def submit(self, *rows: Row) -> None:
        now = self._clock()
        for row in rows:
            row.submitted_at = now
            self._line.add(row)

    @torch.inference_mode()
    def step(self) -> None:
        """Joins who fits, reads a share of the prompts, then one token for every row whose prompt is read."""
        self.counts.steps += 1
        self._drop_ended()
        self._join()
        if self._seats.reading:
            self._read()
        if self._seats.writing:
            self._write()
        if not self._seats:
            self._empty()

    def fail(self, error: Exception) -> None:
        """Ends everything that runs or waits, and forgets all that was kept."""
        rows = [*self.running, *self._line.leave(lambda _: True)]
        self._empty()
        self.prefixes.clear()
        for row in rows:
            row.fail(error)

    def _empty(self) -> None:
        """An idle engine holds no memory but that of kept prompts."""
        self._cache = RowCache(self._twin.num_layers, self._twin.dtype)
        self._seats = Seats(self._cache)

    def _drop_ended(self) -> None:
        """Those that were cancelled, or are past their deadline."""
        now = self._clock()

        def ends(row: Row) -> bool:
            if row.cancelled:
                row.cancel()
            elif row.deadline is not None and now > row.deadline:
                row.fail(_timed_out(row, now))
            return row.is_finished

        self._line.leave(ends)
        if any([ends(row) for row in self.running]):
            self._seats.leave()

    def _join(self) -> None:
        """Those in the line that fit: into the batch, the cache with all that they may write, and their adapters the bank."""
        longest = max((seat.max_length for seat in self._seats), default=0)
        count = len(self._seats)
        names = {row.name for row in self.running}

        def fits(row: Row) -> bool:
            nonlocal longest, count
            width, places = max(longest, *(seat.max_length for seat in row.seats)), count + len(row.seats)
            if count and places * whole_columns(width) > self._limits.max_cache_tokens:
                return False
            if not self._bank.admit(row.name, names):
                return False
            longest, count = width, places
            names.add(row.name)
            return True

        joining = self._line.take(self._limits.max_rows - len(self.running), fits)
        now = self._clock()
        for row in joining:
            row.joined_at = now
        self._seats.join(joining)

    def _read(self) -> None:
        self._begin_from_kept()
        chunks = plan(self._seats.reading, self._chunk_tokens)
        place_of = self._seats.places()
        width, device = max(chunk.count for chunk in chunks), self._twin.device
        self._fit(max(chunk.end for chunk in chunks))
        spans = [
            Span(place_of[id(seat)], source, chunk.start, chunk.count)
            for source, chunk in enumerate(chunks)
            for seat in chunk.seats
        ]
        counts_B = torch.tensor([chunk.count for chunk in chunks], device=device)
        starts_B = torch.tensor([chunk.start for chunk in chunks], device=device)
        with self._forward([chunk.seats[0] for chunk in chunks]) as found:
            embeds_BTH = pad_sequence([_embeds(chunk, self._twin) for chunk in chunks], batch_first=True)
            positions_BT = starts_B[:, None] + torch.arange(width, device=device)
            self._cache.read(spans, device)
            states_BTH = self._twin.states(embeds_BTH, positions_BT, _reads(chunks, positions_BT), self._cache)
            ends_BH = states_BTH[torch.arange(len(chunks), device=device), counts_B - 1]
            last = [source for source, chunk in enumerate(chunks) if chunk.is_last]
            logits_NV = self._twin.logits(ends_BH[last]) if last else None
        self.counts.prefilled += sum(chunk.count for chunk in chunks)
        # What is not finite anywhere in a prompt reaches its last place: such a row is ended before it costs more.
        finite_B = torch.isfinite(ends_BH).all(dim=-1).tolist()
        for source, chunk in enumerate(chunks):
            for seat in chunk.seats:
                seat.read = chunk.end
                if isinstance(seat, Oracle):
                    seat.see(found[seat.router.read_layer][source, : chunk.count])
                if not finite_B[source] and not seat.is_finished:
                    seat.row.fail(_not_finite(seat.row))
        self._seats.leave()
        if logits_NV is not None:
            self._begin([(seat, logits_NV[place]) for place, source in enumerate(last) for seat in chunks[source].seats])

    def _begin_from_kept(self) -> None:
        """Prompts of which nothing is read yet begin with what other requests have left of the same."""
        untouched = [seat for row in self._seats.reading for seat in row.seats if not seat.read]
        if not untouched or not self.prefixes.num_tokens:
            return
        place_of = self._seats.places()
        self._fit(max(seat.most_cached for seat in untouched))
        for seat in untouched:
            seat.read = self.prefixes.begin(seat, place_of[id(seat)], self._cache)
            if isinstance(seat, Row):
                seat.cached = seat.read
            self.counts.cached += seat.read

    def _begin(self, read: Sequence[tuple[Seat, Tensor]]) -> None:
        """The first token of the rows whose prompts are read now."""
        read = [(seat, logits_V) for seat, logits_V in read if not seat.is_finished]
        if not read:
            return
        place_of = self._seats.places()
        for seat, _ in read:
            self.prefixes.keep(seat, place_of[id(seat)], self._cache)
        seats = [seat for seat, _ in read]
        self._seats.begin_writing(seat for seat in seats if isinstance(seat, Row))
        self._choose(*self._routed(seats, torch.stack([logits_V for _, logits_V in read])))

    def _write(self) -> None:
        device, seats = self._twin.device, tuple(self._seats.writing)
        columns_B = torch.tensor([seat.length - 1 for seat in seats], device=device)
        width = max(seat.length for seat in seats)
        self._fit(width)
        with self._forward(seats) as found:
            ids_BT = torch.tensor([[seat.last_id] for seat in seats], device=device)
            mask_B11T = (torch.arange(width, device=device) <= columns_B[:, None])[:, None, None]
            self._cache.decode(columns_B, width)
            states_BTH = self._twin.states(self._twin.embeddings(ids_BT), columns_B[:, None], mask_B11T, self._cache)
            logits_BV = self._twin.logits(states_BTH[:, -1])
        rows = [seat for seat in seats if isinstance(seat, Row)]
        self.counts.beside += len(seats) - len(rows)
        self.counts.decode_rows += len(rows)
        self.counts.mixes[len({row.name for row in rows})] += 1
        for place, seat in enumerate(seats):
            if isinstance(seat, Oracle):
                seat.see(found[seat.router.read_layer][place])
        self._choose(*self._routed(seats, logits_BV))

    def _fit(self, num_columns: int) -> None:
        held = max((seat.held for seat in self._seats), default=0)
        self._cache.fit(len(self._seats), max(num_columns, held), self._limits.max_cache_tokens)

    @contextmanager
    def _forward(self, seats: Sequence[Seat]) -> Iterator[Mapping[int, Tensor]]:
        """Every seat computes under its own adapters; what the oracles' routings read, [B, T, H] by layer, is kept."""
        layers = sorted({seat.router.read_layer for seat in seats if isinstance(seat, Oracle)})
        names = [seat.adapters for seat in seats]
        with self._twin.running(), self._bank.rows(names), kept_outputs(self._twin, layers) as found:
            yield found

    def _routed(self, seats: Sequence[Seat], logits_BV: Tensor) -> tuple[Sequence[Row], Tensor]:
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
            shift_H = oracle.shift(likeliest[own], likeliest[place])
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
        place_of = self._seats.places()
        shifts: dict[int, Tensor] = {}
        for place, (row, shift_H) in enumerate(steered):
            assert row.oracle is not None
            layer = row.oracle.router.routing.spec.layer
            shifts.setdefault(layer, torch.zeros(len(rows), 1, len(shift_H), device=device))[place, 0] = shift_H.to(device)
            self.counts.steered[row.name] += 1
        self.counts.beside += len(rows)
        columns_B = torch.tensor([row.length - 1 for row in rows], device=device)
        width = max(row.length for row in rows)
        self._cache.peek(torch.tensor([place_of[id(row)] for row in rows], device=device), columns_B, width)
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
        now = self._clock()
        for row, token, logprob, finite in zip(rows, tokens, chosen_B.tolist(), finite_B, strict=True):
            if finite:
                self.counts.generated[row.name] += 1
                row.first_at = now if row.first_at is None else row.first_at
                row.take(token, logprob)
            else:
                row.fail(_not_finite(row))
        if any(row.is_finished for row in rows):
            self._keep_written(rows)
            self._seats.leave()

    def _keep_written(self, rows: Sequence[Row]) -> None:
        """What a row has written is the beginning of the conversation's next prompt."""
        place_of = self._seats.places()
        for row in rows:
            if row.finish_reason is not None:
                self.prefixes.keep(row, place_of[id(row)], self._cache)


def _embeds(chunk: Chunk, twin: Twin) -> Tensor:
    return chunk.seats[0].prompt.part(chunk.start, chunk.end).embed(twin.embeddings)


def _reads(chunks: Sequence[Chunk], positions_BT: Tensor) -> Tensor:
    """The mask: every place reads itself and what stands before it."""
    if all(chunk.is_whole for chunk in chunks):
        width = positions_BT.shape[1]
        return torch.ones(width, width, dtype=torch.bool, device=positions_BT.device).tril()[None, None]
    width = max(chunk.end for chunk in chunks)
    return (torch.arange(width, device=positions_BT.device) <= positions_BT[:, :, None])[:, None]


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


def _timed_out(row: Row, now: float) -> TimedOut:
    where = "it waited" if row.joined_at is None else f"it had written {len(row.token_ids)} tokens"
    return TimedOut(
        f"A request ends at its deadline, but this one was past it {now - row.submitted_at:.1f} s after it came, when {where}. "
        "Give it more time, or ask for fewer tokens."
    )
