"""When a worker that ended is started again, and when it is given up."""

from __future__ import annotations

from dataclasses import dataclass

from tuning.executors.executor import START_AGAIN

_STEADY_S = 600.0  # a worker that ran for so long was not ended by what it began with
_MAX_WAIT_S = 60.0


@dataclass
class Backoff:
    """Of one worker. Deaths count against `max_deaths`, preemptions never; both wait longer and longer while they come soon."""

    max_deaths: int
    first_s: float
    _deaths: int = 0
    _soon: int = 0

    def wait_s(self, code: int, ran_s: float) -> float | None:
        """Seconds before the next start; None: it died once too often in a row."""
        if ran_s >= _STEADY_S:
            self._deaths = self._soon = 0
        self._soon += 1
        self._deaths = 0 if code == START_AGAIN else self._deaths + 1
        if self._deaths > self.max_deaths:
            return None
        return min(_MAX_WAIT_S, self.first_s * 2.0 ** min(self._soon - 1, 16))
