"""The OpenAPI document: every endpoint of the table of scopes, its body, its answer, its errors and the scope it needs."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from service.described import ErrorBody
from service.scopes import TABLE

_METHODS = ("get", "post", "put", "patch", "delete")
_PROBES = ("/livez", "/readyz", "/healthz")  # BentoML's
_ERROR = {"$ref": "#/components/schemas/ErrorBody"}
_ABOUT = "One frozen backbone and every promoted adapter. `model` names what answers: the backbone, NAME or NAME@VERSION."
_KEY = {"type": "http", "scheme": "bearer", "description": "A key of `graftline keys create`."}


def document(app: FastAPI, version: str) -> dict[str, Any]:
    """Of the application's own endpoints; BentoML's pages of itself are not described."""
    found = get_openapi(title="Graftline", version=version, description=_ABOUT, routes=app.routes)
    components = found.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    shape = ErrorBody.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas |= shape.pop("$defs", {})
    schemas["ErrorBody"] = shape
    components["securitySchemes"] = {"key": _KEY}
    described = found.setdefault("paths", {})
    for rule in TABLE:
        path = rule.path.replace(":path}", "}")
        if rule.path in _PROBES:
            answers = {"200": {"description": "Yes"}, "503": {"description": "No"}}
            described[path] = {"get": {"summary": "Probe", "responses": answers, "security": []}}
            continue
        for method in set(_METHODS) & described.get(path, {}).keys() & {name.lower() for name in rule.methods}:
            operation = described[path][method]
            operation["responses"].pop("422", None)
            failed = {"description": "A failure, told in one shape", "content": {"application/json": {"schema": _ERROR}}}
            operation["responses"]["default"] = failed
            operation["security"] = [{"key": [rule.scope.value]}] if rule.scope is not None else []
    return found
