"""Prometheus metrics by adapter. The label is the served NAME@VERSION or the backbone, never what a client typed."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

# For requests that named no served model: one series, whatever they sent.
UNKNOWN = "unknown"
_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)

REQUESTS = Counter("graftline_requests", "Requests by how they ended", ["model", "outcome"])
PROMPT_TOKENS = Counter("graftline_prompt_tokens", "Prompt tokens read", ["model"])
GENERATED_TOKENS = Counter("graftline_generated_tokens", "Tokens written", ["model"])
LATENCY = Histogram("graftline_request_seconds", "From the request to its last token", ["model"], buckets=_SECONDS)
FIRST_TOKEN = Histogram("graftline_first_token_seconds", "From the request to its first token", ["model"], buckets=_SECONDS)
RUNNING = Gauge("graftline_running_rows", "Completions being written now", ["model"], multiprocess_mode="livesum")


def count_refusal() -> None:
    REQUESTS.labels(UNKNOWN, "refused").inc()
