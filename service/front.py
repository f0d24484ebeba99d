"""What every request passes first, before BentoML's own routes too: its id, its log line, the guard, the bounds of its body."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from fastapi import FastAPI
from fastapi.responses import JSONResponse
from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Send
from starlette.types import Scope as ConnectionScope

from service import meters
from service.access import Access
from service.bounded_body import BoundedBodies
from service.caller import let_in
from service.deadline import note_arrival
from service.errors import ApiError
from service.parts import Parts
from service.request_ids import RequestIds
from service.request_log import RequestLog
from service.scopes import TABLE, Rule, methods_of, rule_for

_PASSED = "graftline.passed"


class Front:
    """Plain ASGI. A request that passes it a second time, behind BentoML's, is let through.

    `application` is whose state has the access; None: the application that it stands in.
    """

    def __init__(self, app: ASGIApp, application: FastAPI | None = None) -> None:
        self._inside = app
        self._whole = RequestIds(RequestLog(Guard(BoundedBodies(app, application), application)))

    async def __call__(self, scope: ConnectionScope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or scope.get(_PASSED):
            await self._inside(scope, receive, send)
        elif scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})  # nothing here speaks it
        else:
            scope[_PASSED] = True
            note_arrival(scope)
            await self._whole(scope, receive, send)


class Guard:
    """Lets in who has a key with the endpoint's scope; everything that the table of scopes does not name is refused."""

    def __init__(self, app: ASGIApp, application: FastAPI | None) -> None:
        self._app, self._application = app, application

    async def __call__(self, scope: ConnectionScope, receive: Receive, send: Send) -> None:
        try:
            limits = self._let_in(scope)
        except ApiError as error:
            meters.TURNED_AWAY.labels(error.code).inc()
            await JSONResponse(error.body(), error.status, dict(error.headers))(scope, receive, send)
            return

        async def send_with_limits(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(limits())
            await send(message)

        await self._app(scope, receive, send_with_limits)

    def _let_in(self, scope: ConnectionScope) -> Callable[[], Mapping[str, str]]:
        """What to tell of the caller's limits at the time of the answer."""
        method, path = scope["method"], scope["path"]
        rule = rule_for(method, path)
        state = (self._application or scope["app"]).state
        access: Access | None = getattr(state, "access", None)
        if rule is not None and (rule.scope is None or (access is not None and access.leaves_open(rule))):
            return dict
        if access is None:
            raise _starting()
        caller = access.caller(HTTPConnection(scope))
        if rule is None and (methods := methods_of(path)):
            allowed = ", ".join(sorted(methods))
            message = f"{path[:200]} is asked with {allowed}, but got {method}."
            raise ApiError(405, message, "method_not_allowed", headers={"allow": allowed})
        if rule is None:
            offered = ", ".join(dict.fromkeys(rule.path for rule in TABLE if rule.path.startswith("/v1/")))
            raise ApiError(404, f"{method} {path[:200]} is not offered here. There are {offered}.", "unknown_url")
        if rule.scope is not None and not caller.may(rule.scope):
            raise _without_scope(rule, method)
        parts: Parts | None = getattr(state, "parts", None)
        if parts is None:
            raise _starting()
        let_in(scope, caller)
        quotas = parts.admission.quotas
        try:
            quotas.count_request(caller)
            if rule.joins_engine:
                parts.admission.refuse_when_full(caller)
        except ApiError as error:
            error.headers = {**error.headers, **quotas.headers(caller)}
            raise
        return lambda: quotas.headers(caller)


def _starting() -> ApiError:
    return ApiError(503, "The server is starting. Try again soon.", "starting", None, "server_error", {"retry-after": "5"})


def _without_scope(rule: Rule, method: str) -> ApiError:
    assert rule.scope is not None
    message = f"{method} {rule.path} needs a key with the scope {rule.scope.value!r}, which this key does not have."
    challenge = f'Bearer realm="graftline", error="insufficient_scope", scope="{rule.scope.value}"'
    return ApiError(
        403, f"{message} Make one with `graftline keys create`.", "missing_scope", headers={"www-authenticate": challenge}
    )
