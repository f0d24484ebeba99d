"""Takes BentoML's timeout away: of every request it keeps a timer, with all that hangs on it, until the whole timeout is over.

BentoML 1.4.39 (`bentoml._internal.server.http.traffic`) sets the timer and never cancels it, so that ten minutes' requests are in
memory at any time, about 7 kB each. Requests here have deadlines of their own (`service.deadline`), and bodies theirs.
"""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send


class NoTimeout:
    """Stands where BentoML's middleware would."""

    def __init__(self, app: ASGIApp, timeout: float) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)


def take_away() -> None:
    """Before BentoML puts its middlewares together."""
    from bentoml._internal.server.http import traffic

    traffic.TimeoutMiddleware = NoTimeout
