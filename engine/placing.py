"""Which pages each row of a forward reads, worked out once for all modules and steps of the same rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Legend: B rows, or 1 where all are alike; K pages of a row, P pages of the span


@dataclass(frozen=True)
class Placing:
    """The rows' own pages, and the span of the stack that holds them all.

    Two products give the same sums. The spanning one takes each row through the whole span, in one plain product for the batch,
    and drops what is not the row's: best where a row has one token and wide products cost little more than narrow ones. The
    gathered one copies each row's own pages: best where a row has many tokens.
    """

    pages_N: Tensor  # B * K numbers, row by row, filled up with page 0
    width: int  # K
    first: int
    last: int  # one beyond the span
    foreign_BP: Tensor | None  # True where a page of the span is not the row's; None: nowhere
    leading_B: Tensor  # each row's first page, where its bias is
    is_wide_cheap: bool

    @classmethod
    def of(cls, pages: Sequence[tuple[int, ...]], device: torch.device, *, is_wide_cheap: bool) -> Placing | None:
        """`pages` by row, () without an adapter. None where no row has one."""
        present = {page for owned in pages for page in owned}
        if not present:
            return None
        # Rows that are all alike are one long row.
        rows = pages[:1] if len(set(pages)) == 1 else pages
        width, first, last = max(map(len, rows)), min(present), max(present) + 1
        filled = [page for owned in rows for page in (*owned, *[0] * (width - len(owned)))]
        foreign = [[page not in owned for page in range(first, last)] for owned in map(set, rows)]
        return cls(
            torch.tensor(filled, device=device),
            width,
            first,
            last,
            torch.tensor(foreign, device=device) if any(map(any, foreign)) else None,
            torch.tensor([owned[0] if owned else 0 for owned in rows], device=device),
            is_wide_cheap,
        )

    @property
    def num_rows(self) -> int:
        return len(self.leading_B)

    def spans(self, num_tokens: int) -> bool:
        """Whether rows of so many tokens take the spanning product. Measured: docs/results.md, "Mixed batches"."""
        waste = (self.last - self.first) / self.width
        if num_tokens == 1:
            return self.is_wide_cheap or waste <= max(2.0, self.num_rows / 4)
        return waste <= 2
