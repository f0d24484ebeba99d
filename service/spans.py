"""OpenTelemetry: a span a request with the waiting, the reading and the writing in it, by the GenAI semantic conventions.

Off unless the usual variables name an exporter (OTEL_EXPORTER_OTLP_ENDPOINT or OTEL_EXPORTER_OTLP_TRACES_ENDPOINT). Spans are
made when a request has ended, from the times that were taken anyway: a request costs nothing more while it runs.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import SpanKind, Status, StatusCode, Tracer, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

Value = str | int | float | None

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
# Our facts by the names of the conventions; what has none keeps ours.
_ATTRIBUTES = {
    "method": "http.request.method",
    "route": "http.route",
    "status": "http.response.status_code",
    "model": "gen_ai.response.model",
    "prompt_tokens": "gen_ai.usage.input_tokens",
    "generated_tokens": "gen_ai.usage.output_tokens",
}
_tracer: Tracer | None = None
_provider: TracerProvider | None = None


class NoExporter(RuntimeError):
    """An exporter is asked for and not installed."""


def configure(environment: Mapping[str, str] | None = None) -> None:
    """Turns spans on where the environment names an OTLP endpoint. NoExporter where the exporter's package is missing."""
    environment = os.environ if environment is None else environment
    if not any(environment.get(name) for name in _ENDPOINTS):
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError as error:
        named = next(name for name in _ENDPOINTS if environment.get(name))
        raise NoExporter(
            f"{named} asks for spans, but the OTLP exporter is not installed. Run `pip install 'graftline[otel]'`, or unset it."
        ) from error
    export_to(OTLPSpanExporter())


def export_to(exporter: SpanExporter) -> None:
    """Turns spans on; `close` writes what is left and turns them off."""
    global _tracer, _provider
    close()
    # A provider of our own: BentoML has one too, and the global one belongs to whoever runs the process.
    _provider = TracerProvider(resource=Resource.create({"service.name": "graftline"}), shutdown_on_exit=False)
    _provider.add_span_processor(BatchSpanProcessor(exporter))
    _tracer = _provider.get_tracer("graftline")


def close() -> None:
    global _tracer, _provider
    provider, _provider, _tracer = _provider, None, None
    if provider is not None:
        provider.shutdown()


def record(began_ns: int, headers: Mapping[str, str], facts: Mapping[str, Value]) -> str | None:
    """The request as a span below the caller's `traceparent`; returns its trace id, or None where spans are off.

    `began_ns` is wall-clock time; `seconds`, `queue_s` and `first_token_s` of the facts count from it.
    """
    if _tracer is None:
        return None
    parent = TraceContextTextMapPropagator().extract(headers)
    attributes = {_ATTRIBUTES.get(key, f"graftline.{key}"): value for key, value in facts.items() if value is not None}
    name = f"{facts.get('method')} {facts.get('route') or ''}".rstrip()
    span = _tracer.start_span(name, parent, SpanKind.SERVER, attributes, start_time=began_ns)
    status = facts.get("status")
    if not isinstance(status, int) or status >= 500:
        span.set_status(Status(StatusCode.ERROR, str(facts.get("outcome") or "")))
    ended_ns = began_ns + _ns(facts.get("seconds"))
    inside = set_span_in_context(span)
    at_ns = began_ns
    first_token_s = facts.get("first_token_s")
    ends = {"queue": facts.get("queue_s"), "first token": first_token_s, "decode": first_token_s and facts.get("seconds")}
    for part, until in ends.items():
        if until is None:
            continue
        end_ns = began_ns + _ns(until)
        _tracer.start_span(part, inside, start_time=at_ns).end(end_ns)
        at_ns = end_ns
    span.end(ended_ns)
    return f"{span.get_span_context().trace_id:032x}"


def _ns(seconds: Value) -> int:
    return int(float(seconds or 0) * 1e9)
