"""The logits processor of vLLM's Model Runner V2: GPUs with Triton. Loaded by name in vLLM's process."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor

from engine.vllm.chosen import Asked, ChosenRow, ChosenRows

if TYPE_CHECKING:
    from torch import Tensor
    from vllm import SamplingParams
    from vllm.config import VllmConfig
    from vllm.v1.worker.gpu.sample.logits_processor import LogitsContext, LogitsProcRequestState

# Legend: L logits rows, V vocabulary


@dataclass
class _Seat:
    """A request's slot. What is written is known without asking the device: it is what was chosen."""

    row: ChosenRow
    written: list[int] = field(default_factory=list)
    chosen: int | None = None  # after these; not known to stand before the next step


class ChosenTokens(LogitsProcessor):  # type: ignore[misc]
    def __init__(self, vllm_config: VllmConfig, req_states: LogitsProcRequestState) -> None:
        from engine.vllm.processor import words_of

        self._rows = ChosenRows(words_of(vllm_config, req_states.device))
        self._states = req_states
        self._seats: dict[int, _Seat] = {}

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        Asked.of(sampling_params.extra_args)

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        self._seats.pop(req_idx, None)  # whoever sat there before is gone
        row = self._rows.of(sampling_params.extra_args)
        if row is not None:
            self._seats[req_idx] = _Seat(row)
        return row is not None

    def apply(self, logits: Tensor, ctx: LogitsContext) -> Tensor:
        """[L, V] float32, a row a request: where vLLM guesses tokens ahead it takes no processors."""
        for place, slot in enumerate(ctx.idx_mapping_np.tolist()):
            seat = self._seats.get(slot)
            num_written = int(ctx.seq_lens_upper_bound_np[place]) - int(self._states.prompt_len.np[slot])
            if seat is None or num_written < 0:  # below 0: a part of the prompt, whose token is thrown away
                continue
            self._catch_up(seat, slot, num_written)
            seat.chosen = seat.row.choose(seat.written, logits[place])
            logits[place].fill_(float("-inf"))
            logits[place, seat.chosen] = 0.0
        return logits

    def _catch_up(self, seat: _Seat, slot: int, num_written: int) -> None:
        if seat.chosen is not None and num_written == len(seat.written) + 1:
            seat.written.append(seat.chosen)
        elif num_written != len(seat.written):  # taken up again after vLLM had put it aside
            first = int(self._states.prompt_len.np[slot])
            seat.written = self._states.all_token_ids.gpu[slot, first : first + num_written].tolist()
