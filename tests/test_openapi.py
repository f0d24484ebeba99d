"""The OpenAPI document says what the endpoints are: all of them, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi.routing import APIRoute

from service.application import new_application
from service.openapi import document
from service.scopes import TABLE, rule_for


@pytest.fixture(scope="module")
def described() -> dict[str, Any]:
    return document(new_application(), "1.0")


def test_every_endpoint_of_the_table_is_described(described: dict[str, Any]) -> None:
    paths = {rule.path.replace(":path}", "}") for rule in TABLE} - {
        "/openapi.json",
        "/",
        "/console",
        "/console/",
        "/console/{file}",
    }
    assert set(described["paths"]) == paths


def test_every_route_is_described_with_its_methods(described: dict[str, Any]) -> None:
    for route in new_application().routes:
        if isinstance(route, APIRoute) and route.include_in_schema:
            path = route.path_format
            assert {method.lower() for method in route.methods} <= described["paths"][path].keys()


def test_an_operation_tells_its_errors_and_its_scope(described: dict[str, Any]) -> None:
    for path, operations in described["paths"].items():
        for method, operation in operations.items():
            rule = rule_for(method.upper(), path.replace("{", "").replace("}", ""))
            assert rule is not None, (method, path)
            if path in ("/livez", "/readyz", "/healthz"):
                continue
            assert operation["summary"] and "422" not in operation["responses"]
            error = operation["responses"]["default"]["content"]["application/json"]["schema"]
            assert error == {"$ref": "#/components/schemas/ErrorBody"}
            assert operation["security"] == ([{"key": [rule.scope.value]}] if rule.scope else [])


def test_a_body_and_an_answer_are_described_by_their_fields(described: dict[str, Any]) -> None:
    schemas = described["components"]["schemas"]
    assert {"messages", "tools", "stream", "seed", "chat_template_kwargs"} <= schemas["ChatRequest"]["properties"].keys()
    assert {"model", "messages"} == set(schemas["ChatRequest"]["required"])
    answer = described["paths"]["/v1/chat/completions"]["post"]["responses"]["200"]["content"]
    assert answer["application/json"]["schema"]["$ref"].endswith("/ChatCompletion") and "text/event-stream" in answer


def test_every_reference_leads_somewhere(described: dict[str, Any]) -> None:
    found: list[str] = []

    def walk(node: Any) -> None:
        if isinstance(node, dict):
            found.extend([node["$ref"]] if isinstance(node.get("$ref"), str) else [])
            for one in node.values():
                walk(one)
        elif isinstance(node, list):
            for one in node:
                walk(one)

    walk(described)
    names = described["components"]["schemas"]
    assert found and all(reference.removeprefix("#/components/schemas/") in names for reference in found)
