"""Prometheus metrics by what answered. The label is the served NAME@VERSION or the backbone, never what a client typed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping

# One process holds the engine and so all counts. The files that BentoML has several workers share could take no series away.
os.environ.pop("PROMETHEUS_MULTIPROC_DIR", None)

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest  # noqa: E402
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric  # noqa: E402
from prometheus_client.metrics import MetricWrapperBase  # noqa: E402

from engine.engine import EngineStats  # noqa: E402
from service.lease import Served  # noqa: E402

BASE = ""  # the engine's name for the backbone
# For requests that named no served model: one series, whatever they sent.
UNKNOWN = "unknown"
# A release that is served no more keeps its series for some scrapes.
KEPT_S = 900.0
_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_SHORT_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5)

SERIES = CollectorRegistry()
REQUESTS = Counter("graftline_requests", "Requests by how they ended", ["model", "outcome"], registry=SERIES)
PROMPT_TOKENS = Counter("graftline_prompt_tokens", "Prompt tokens read", ["model"], registry=SERIES)
GENERATED_TOKENS = Counter("graftline_generated_tokens", "Tokens written", ["model"], registry=SERIES)
LATENCY = Histogram(
    "graftline_request_seconds", "From the request to its last token", ["model"], buckets=_SECONDS, registry=SERIES
)
FIRST_TOKEN = Histogram(
    "graftline_first_token_seconds", "From the request to its first token", ["model"], buckets=_SECONDS, registry=SERIES
)
QUEUE_TIME = Histogram(
    "graftline_queue_seconds", "From a row's admission to its first step", ["model"], buckets=_SECONDS, registry=SERIES
)
TOKEN_TIME = Histogram(
    "graftline_token_seconds",
    "A request's seconds a token after its first, by choice",
    ["model"],
    buckets=_SHORT_SECONDS,
    registry=SERIES,
)
RUNNING = Gauge("graftline_running_rows", "Completions being written now", ["model"], registry=SERIES)
QUEUED_ROWS = Gauge("graftline_queued_rows", "Completions that were admitted and wait for the engine", registry=SERIES)
QUEUED_TOKENS = Gauge("graftline_queued_tokens", "Tokens that those may cost at most", registry=SERIES)
TURNED_AWAY = Counter("graftline_turned_away", "Requests that access, quotas or bounds refused", ["code"], registry=SERIES)
ROLLBACKS = Counter("graftline_canary_rollbacks", "Canaries that this process took the traffic from", ["model"], registry=SERIES)
MIRRORED = Counter(
    "graftline_mirrored_requests", "Requests for a shadow by how they ended", ["model", "outcome"], registry=SERIES
)

_BY_MODEL: tuple[MetricWrapperBase, ...] = (
    REQUESTS,
    PROMPT_TOKENS,
    GENERATED_TOKENS,
    LATENCY,
    FIRST_TOKEN,
    QUEUE_TIME,
    TOKEN_TIME,
    RUNNING,
    ROLLBACKS,
    MIRRORED,
)


def count_refusal() -> None:
    REQUESTS.labels(UNKNOWN, "refused").inc()


class Forgetting:
    """Takes away the series of releases that are served no more, so that a thousand promotions leave no thousand series.

    `served` says what may still be asked for: every NAME@VERSION and the backbone.
    """

    def __init__(self, served: Callable[[], Iterable[str]], clock: Callable[[], float] = time.monotonic) -> None:
        self._served, self._clock = served, clock
        self._gone_since: dict[str, float] = {}

    def look(self) -> None:
        served, now = {UNKNOWN, *self._served()}, self._clock()
        counted = _models(REQUESTS) | _models(RUNNING) | _models(MIRRORED)
        self._gone_since = {model: self._gone_since.get(model, now) for model in counted - served}
        for model in [model for model, since in self._gone_since.items() if now - since >= KEPT_S]:
            del self._gone_since[model]
            for metric in _BY_MODEL:
                metric.remove_by_labels({"model": model})


class EngineCounts:
    """What the engine counts itself, read when somebody asks.

    By model it is told of what is in the engine now: a release's series go with its weights; loaded again, they begin anew.
    """

    def __init__(self, stats: Callable[[], EngineStats], answering: Callable[[], Iterable[Served]]) -> None:
        self._stats, self._answering = stats, answering

    def collect(self) -> Iterator[Metric]:
        stats = self._stats()
        model_of = {one.profile or BASE: one.id for one in self._answering() if one.router is None}
        yield GaugeMetricFamily("graftline_engine_running_rows", "Rows that take a place of the batch", stats.running)
        yield GaugeMetricFamily("graftline_engine_waiting_rows", "Rows that wait for a place", stats.waiting)
        yield CounterMetricFamily("graftline_engine_forward_tokens", "Tokens that went through a forward", stats.forward_tokens)
        yield CounterMetricFamily("graftline_engine_scored_tokens", "Tokens that were read to be scored", stats.scored_tokens)
        cached = "Tokens of prompts that another request had read"
        yield CounterMetricFamily("graftline_engine_cached_tokens", cached, stats.cached_tokens)
        yield CounterMetricFamily("graftline_engine_steps", "Steps", stats.steps)
        yield CounterMetricFamily("graftline_engine_decoded_rows", "Rows times steps that wrote a token", stats.decode_rows)
        yield GaugeMetricFamily("graftline_engine_cache_tokens", "Places of the cache that running rows hold", stats.cache_tokens)
        yield GaugeMetricFamily("graftline_engine_prefix_tokens", "Tokens of prompts that are kept", stats.prefix_tokens)
        bank = stats.bank
        yield GaugeMetricFamily("graftline_engine_resident_adapters", "Adapters that stand in the bank", bank.resident)
        yield GaugeMetricFamily("graftline_engine_loaded_adapters", "Adapters in main memory", bank.loaded)
        yield GaugeMetricFamily("graftline_engine_bank_bytes", "Bytes that the bank takes", bank.resident_bytes)
        resident = GaugeMetricFamily("graftline_engine_resident", "1 where the adapter stands in the bank", labels=["model"])
        for model, each in _by_model(bank.is_resident, model_of).items():
            resident.add_metric([model], max(each))
        yield resident
        for series, says, counts in (
            ("written_tokens", "Tokens written: one a row and step", stats.generated_tokens),
            ("bank_hits", "Completions whose adapter stood in the bank", bank.hits),
            ("bank_loads", "Times that the adapter came into the bank", bank.loads),
            ("bank_evictions", "Times that it left the bank for another", bank.evictions),
        ):
            family = CounterMetricFamily(f"graftline_engine_{series}", says, labels=["model"])
            for model, each in _by_model(counts, model_of).items():
                family.add_metric([model], sum(each))
            yield family
        mixes = CounterMetricFamily(
            "graftline_engine_mixed_steps", "Steps by how many profiles wrote in them", labels=["profiles"]
        )
        for profiles, steps in sorted(stats.mixes.items()):
            mixes.add_metric([str(profiles)], steps)
        yield mixes


def exposition(stats: Callable[[], EngineStats], answering: Callable[[], Iterable[Served]]) -> str:
    """All of it, in Prometheus' text format."""
    engine = CollectorRegistry()
    engine.register(EngineCounts(stats, answering))
    return (generate_latest(SERIES) + generate_latest(engine)).decode()


def _by_model(counts: Mapping[str, int], model_of: Mapping[str, str]) -> dict[str, list[int]]:
    """The counts of the engine's profiles, by what clients call them: a release may be loaded under a second name."""
    found: dict[str, list[int]] = {}
    for profile, count in counts.items():
        if profile in model_of:
            found.setdefault(model_of[profile], []).append(count)
    return found


def _models(metric: MetricWrapperBase) -> set[str]:
    return {sample.labels["model"] for family in metric.collect() for sample in family.samples}
