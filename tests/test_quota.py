"""Quotas: buckets of requests and tokens a key, refilled by the minute, and waits that are true."""

from __future__ import annotations

import math

import pytest

from service.caller import ANYONE, Caller, Quota, Scope
from service.errors import ApiError
from service.quota import Bucket, Quotas


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def quotas(clock: Clock) -> Quotas:
    return Quotas(clock)


def bot(**quota: int) -> Caller:
    return Caller("0a1b2c3d", "bot", frozenset({Scope.COMPLETE}), Quota.model_validate(quota))


def refusal(quotas: Quotas, caller: Caller, tokens: int | None = None) -> ApiError:
    with pytest.raises(ApiError) as caught:
        quotas.count_request(caller) if tokens is None else quotas.reserve(caller, tokens)
    assert caught.value.status == 429
    return caught.value


def test_a_bucket_fills_up_evenly_and_not_over() -> None:
    bucket = Bucket(60, now=0)
    bucket.take(60, now=0)
    assert (bucket.level(now=30), bucket.level(now=600)) == (30, 60)


def test_the_wait_is_as_long_as_it_says(quotas: Quotas, clock: Clock) -> None:
    caller = bot(requests_per_min=2)
    quotas.count_request(caller)
    quotas.count_request(caller)
    clock.now_s = 10.5
    refused = refusal(quotas, caller)
    assert refused.headers == {"retry-after": "20", "retry-after-ms": "19500"}  # one request is 30 s
    clock.now_s += 19.4
    refusal(quotas, caller)
    clock.now_s += 0.1001
    quotas.count_request(caller)


def test_what_was_reserved_and_not_used_is_given_back_once(quotas: Quotas) -> None:
    caller = bot(tokens_per_min=1000)
    reserved = quotas.reserve(caller, 900)
    assert quotas.headers(caller)["x-ratelimit-remaining-tokens"] == "100"
    reserved.settle(200)
    reserved.settle(200)
    assert quotas.headers(caller)["x-ratelimit-remaining-tokens"] == "800"


def test_a_quota_that_is_changed_holds_for_the_next_request(quotas: Quotas) -> None:
    quotas.count_request(bot(requests_per_min=1))
    refusal(quotas, bot(requests_per_min=1))
    quotas.count_request(bot(requests_per_min=2))
    assert quotas.headers(bot(requests_per_min=2))["x-ratelimit-limit-requests"] == "2"


def test_what_was_used_beyond_is_owed(quotas: Quotas, clock: Clock) -> None:
    caller = bot(tokens_per_min=600)
    quotas.reserve(caller, 600).settle(900)
    assert quotas.headers(caller)["x-ratelimit-remaining-tokens"] == "0"
    assert float(refusal(quotas, caller, 1).headers["retry-after-ms"]) == pytest.approx(30_100, abs=1)
    clock.now_s = 30.2
    quotas.reserve(caller, 1)


def test_more_than_a_minute_holds_is_never_possible_and_not_tried_again(quotas: Quotas) -> None:
    refused = refusal(quotas, bot(tokens_per_min=100), 101)
    assert refused.headers == {"x-should-retry": "false"} and "Ask for fewer" in refused.message
    assert math.isinf(Bucket(100, 0).wait_s(101, 0))


def test_requests_under_way_are_counted_until_they_end(quotas: Quotas) -> None:
    caller = bot(max_running=2)
    first, _ = quotas.reserve(caller, 1), quotas.reserve(caller, 1)
    assert "2 requests under way" in refusal(quotas, caller, 1).message
    first.settle(1)
    quotas.reserve(caller, 1)


def test_a_request_that_the_tokens_refuse_is_not_under_way(quotas: Quotas, clock: Clock) -> None:
    caller = bot(max_running=1, tokens_per_min=100)
    quotas.reserve(caller, 100).settle(100)
    refusal(quotas, caller, 100)
    clock.now_s = 60
    quotas.reserve(caller, 100)


def test_keys_have_quotas_of_their_own(quotas: Quotas) -> None:
    caller = bot(requests_per_min=1)
    quotas.count_request(caller)
    refusal(quotas, caller)
    quotas.count_request(Caller("other", "other", caller.scopes, caller.quota))


def test_without_a_key_or_a_quota_nothing_is_bound_or_told(quotas: Quotas) -> None:
    for caller in (ANYONE, bot()):
        quotas.count_request(caller)
        quotas.reserve(caller, 10**9).settle(5)
        assert quotas.headers(caller) == {}


def test_the_headers_are_openais(quotas: Quotas, clock: Clock) -> None:
    caller = bot(requests_per_min=60, tokens_per_min=6000)
    quotas.count_request(caller)
    quotas.reserve(caller, 600)
    clock.now_s = 0.5
    assert quotas.headers(caller) == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "0.500s",
        "x-ratelimit-limit-tokens": "6000",
        "x-ratelimit-remaining-tokens": "5450",
        "x-ratelimit-reset-tokens": "5.500s",
    }
