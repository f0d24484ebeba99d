"""Which endpoint needs which scope: one table for the whole server, and what is not in it is not there.

The guard asks this table before anything is routed, so an endpoint without a line answers 404 until it gets one. A path is
written as its route writes it; the first line that fits a request decides.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

from starlette.routing import compile_path

from service.caller import Scope

COMPLETE, TUNE, PROMOTE, ADMIN = Scope


@dataclass(frozen=True)
class Rule:
    """`scope` None: open to everybody, with a key or without."""

    methods: frozenset[str]
    path: str
    scope: Scope | None
    joins_engine: bool = False  # its rows wait for the engine
    bounds_its_body: bool = False  # it reads large ones piece by piece, and bounds them itself

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return compile_path(self.path)[0]

    def fits(self, method: str, path: str) -> bool:
        return method in self.methods and self._pattern.match(path) is not None


def _rule(methods: str, path: str, scope: Scope | None, *, joins_engine: bool = False, bounds_its_body: bool = False) -> Rule:
    return Rule(frozenset(methods.split()), path, scope, joins_engine, bounds_its_body)


TABLE: tuple[Rule, ...] = (
    # Probes of whatever watches over the process.
    _rule("GET HEAD", "/livez", None),
    _rule("GET HEAD", "/readyz", None),
    _rule("GET HEAD", "/healthz", None),
    # What a client of the OpenAI shape asks for.
    _rule("GET", "/v1/models", COMPLETE),
    _rule("GET", "/v1/models/{model:path}", COMPLETE),
    _rule("GET", "/v1/releases/{name}", COMPLETE),
    _rule("POST", "/v1/chat/completions", COMPLETE, joins_engine=True),
    _rule("POST", "/v1/completions", COMPLETE, joins_engine=True),
    _rule("POST", "/v1/xray", COMPLETE, joins_engine=True),
    _rule("POST", "/tokenize", COMPLETE),
    _rule("POST", "/detokenize", COMPLETE),
    _rule("GET", "/tokenizer_info", COMPLETE),
    _rule("GET", "/version", COMPLETE),
    _rule("GET", "/openapi.json", COMPLETE),
    # Adapters at run time.
    _rule("POST", "/v1/load_lora_adapter", ADMIN),
    _rule("POST", "/v1/unload_lora_adapter", ADMIN),
    # Training data and jobs.
    _rule("POST GET", "/v1/files", TUNE, bounds_its_body=True),
    _rule("GET DELETE", "/v1/files/{file_id}", TUNE),
    _rule("GET", "/v1/files/{file_id}/content", TUNE),
    _rule("POST GET", "/v1/fine_tuning/jobs", TUNE),
    _rule("GET", "/v1/fine_tuning/jobs/{job_id}", TUNE),
    _rule("GET", "/v1/fine_tuning/jobs/{job_id}/events", TUNE),
    _rule("GET", "/v1/fine_tuning/jobs/{job_id}/checkpoints", TUNE),
    _rule("POST", "/v1/fine_tuning/jobs/{job_id}/cancel", TUNE),
    _rule("GET", "/v1/recipes", TUNE),
    _rule("POST", "/v1/sweeps", TUNE),
    # What a name serves. A webhook has no key: its endpoint asks for MLflow's signature.
    _rule("GET", "/v1/releases", PROMOTE),
    _rule("GET", "/v1/releases/{name}/versions/{version}/gate", PROMOTE),
    _rule("POST", "/v1/releases/{name}/promote", PROMOTE),
    _rule("POST", "/v1/releases/{name}/approve", PROMOTE),
    _rule("POST", "/v1/releases/{name}/rollback", PROMOTE),
    _rule("GET", "/v1/releases/promotions/{job_id}", PROMOTE),
    _rule("GET", "/v1/releases/promotions/{job_id}/events", PROMOTE),
    _rule("POST", "/v1/releases/promotions/{job_id}/cancel", PROMOTE),
    _rule("POST", "/v1/ledger/hint", PROMOTE),
    _rule("POST", "/v1/ledger/webhook", None, bounds_its_body=True),
    # The console's own files, which hold nothing of this server: what they show, they ask for with the reader's key.
    _rule("GET", "/", None),
    _rule("GET", "/console", None),
    _rule("GET", "/console/", None),
    _rule("GET", "/console/{file}", None),
    # The guard opens it where a setting says so. BentoML's own pages have no line: they describe nothing of this application,
    # and have a browser load scripts from elsewhere.
    _rule("GET", "/metrics", ADMIN),
)


def methods_of(path: str) -> frozenset[str]:
    """Those that the path is offered with; none where there is no such path."""
    return frozenset(method for rule in TABLE for method in rule.methods if rule.fits(method, path))


def rule_for(method: str, path: str) -> Rule | None:
    """None: no such endpoint."""
    return next((rule for rule in TABLE if rule.fits(method, path)), None)
