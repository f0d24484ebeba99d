"""One table says which scope an endpoint needs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
from starlette.routing import BaseRoute, Route, Router

from service.application import new_application
from service.caller import Caller, Scope
from service.scopes import TABLE, rule_for


def routes_of(routes: Sequence[BaseRoute]) -> Iterator[Route]:
    """Those of included routers too, which FastAPI keeps apart."""
    for route in routes:
        included: Router | None = getattr(route, "original_router", None)
        if included is not None:
            yield from routes_of(included.routes)
        else:
            assert isinstance(route, Route), f"{route} would stand outside the table: a mounted application or a websocket"
            yield route


ROUTES = list(routes_of(new_application().routes))


def test_the_walk_finds_what_is_included() -> None:
    assert {"/v1/models", "/v1/completions"} <= {route.path for route in ROUTES}


@pytest.mark.parametrize("route", ROUTES, ids=[route.path for route in ROUTES])
def test_every_endpoint_has_a_line_of_its_own(route: Route) -> None:
    for method in route.methods or ():
        rule = rule_for(method, route.path)
        assert rule is not None and rule.path == route.path, f"add {method} {route.path} to service/scopes.py"


def test_the_table_names_nothing_that_is_not_there() -> None:
    by_bentoml = {"/livez", "/readyz", "/healthz"}
    assert {rule.path for rule in TABLE} - {route.path for route in ROUTES} == by_bentoml


def test_nothing_is_open_but_probes_the_page_itself_and_what_asks_for_a_signature() -> None:
    page = {"/", "/console", "/console/", "/console/{file}"}
    opened = {"/livez", "/readyz", "/healthz", "/v1/ledger/webhook"} | page
    assert {rule.path for rule in TABLE if rule.scope is None} == opened
    assert {method for rule in TABLE if rule.path in page for method in rule.methods} == {"GET"}


def test_what_has_no_line_needs_none() -> None:
    assert rule_for("DELETE", "/v1/models") is None
    assert rule_for("GET", "/v1/models/../../metrics") == rule_for("GET", "/v1/models/law")  # a name, no endpoint
    assert rule_for("GET", "/livez/x") is None


def test_an_admin_may_everything_and_others_what_their_key_says() -> None:
    admin, tuner = (Caller("k", "k", frozenset({scope})) for scope in (Scope.ADMIN, Scope.TUNE))
    assert all(admin.may(scope) for scope in Scope)
    assert [scope for scope in Scope if tuner.may(scope)] == [Scope.TUNE]
