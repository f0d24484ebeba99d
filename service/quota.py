"""How much a key may still ask for: buckets of requests and of tokens that fill up by the minute, and requests under way."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from service.caller import Caller, Quota
from service.errors import ApiError


class Bucket:
    """Holds a minute's worth and fills up evenly. It may owe: what was used beyond what was reserved is paid off by waiting."""

    def __init__(self, per_min: int, now: float) -> None:
        self.per_min = per_min
        self._level, self._at = float(per_min), now

    def level(self, now: float) -> float:
        self._level = min(self.per_min, self._level + (now - self._at) * self.per_min / 60)
        self._at = now
        return self._level

    def wait_s(self, amount: float, now: float) -> float:
        """Until so much can be taken, if nobody takes in between; infinite where it never can."""
        if amount > self.per_min:
            return math.inf
        return max(0.0, (amount - self.level(now)) * 60 / self.per_min)

    def take(self, amount: float, now: float) -> None:
        self._level = self.level(now) - amount

    def give_back(self, amount: float, now: float) -> None:
        self._level = min(self.per_min, self.level(now) + amount)


@dataclass
class _Account:
    quota: Quota
    requests: Bucket | None
    tokens: Bucket | None
    running: int = 0

    @classmethod
    def opened(cls, quota: Quota, now: float) -> _Account:
        requests, tokens = (
            None if per_min is None else Bucket(per_min, now) for per_min in (quota.requests_per_min, quota.tokens_per_min)
        )
        return cls(quota, requests, tokens)


@dataclass
class Reserved:
    """Tokens that were taken for one request. `settle` gives back what was not used; called again, it does nothing."""

    tokens: int
    _settle: Callable[[int, int], None] | None = field(repr=False)

    def settle(self, used: int) -> None:
        settle, self._settle = self._settle, None
        if settle is not None:
            settle(self.tokens, used)


class Quotas:
    """Of one process, which owns the engine. A caller without a key has no quota."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._accounts: dict[str, _Account] = {}

    def count_request(self, caller: Caller) -> None:
        """ApiError 429 where the minute's requests are used up."""
        account = self._account(caller)
        if account is None or account.requests is None:
            return
        now = self._clock()
        wait_s = account.requests.wait_s(1, now)
        if wait_s > 0:
            message = f"The key {caller.name!r} may ask {account.requests.per_min} times a minute, and has. Wait {wait_s:.1f} s."
            raise too_many(message, "requests", "rate_limit_exceeded", wait_s)
        account.requests.take(1, now)

    def reserve(self, caller: Caller, tokens: int) -> Reserved:
        """One more request under way, with so many tokens at most. ApiError 429 where the quota does not allow it."""
        account = self._account(caller)
        if account is None:
            return Reserved(tokens, None)
        now, most = self._clock(), account.quota.max_running
        if most is not None and account.running >= most:
            message = f"The key {caller.name!r} may have {most} requests under way at one time, and has. Wait for one to end."
            raise too_many(message, "requests", "rate_limit_exceeded", 1.0)
        if account.tokens is not None:
            wait_s = account.tokens.wait_s(tokens, now)
            if wait_s > 0:
                rule = f"The key {caller.name!r} may use {account.tokens.per_min} tokens a minute"
                asked = f"this request asks for up to {tokens} (prompt and reply)"
                way_out = "Ask for fewer." if math.isinf(wait_s) else f"Wait {wait_s:.1f} s, or ask for fewer."
                raise too_many(f"{rule}, and {asked}. {way_out}", "tokens", "rate_limit_exceeded", wait_s)
            account.tokens.take(tokens, now)
        account.running += 1

        def settle(reserved: int, used: int) -> None:
            account.running -= 1
            if account.tokens is not None:
                account.tokens.give_back(reserved - used, self._clock())

        return Reserved(tokens, settle)

    def headers(self, caller: Caller) -> Mapping[str, str]:
        """What OpenAI tells of limits, for those that the caller has."""
        account = self._account(caller)
        if account is None:
            return {}
        now, told = self._clock(), {}
        for name, bucket in (("requests", account.requests), ("tokens", account.tokens)):
            if bucket is not None:
                told[f"x-ratelimit-limit-{name}"] = str(bucket.per_min)
                told[f"x-ratelimit-remaining-{name}"] = str(max(0, math.floor(bucket.level(now))))
                told[f"x-ratelimit-reset-{name}"] = f"{bucket.wait_s(bucket.per_min, now):.3f}s"
        return told

    def _account(self, caller: Caller) -> _Account | None:
        if caller.key is None or caller.quota == Quota():
            return None
        account = self._accounts.get(caller.key)
        if account is None or account.quota != caller.quota:
            account = self._accounts[caller.key] = _Account.opened(caller.quota, self._clock())
        return account


def too_many(message: str, kind: str, code: str, wait_s: float) -> ApiError:
    """429 with the true wait, in whole seconds as HTTP has them and in milliseconds as OpenAI's clients read first."""
    if math.isinf(wait_s):
        return ApiError(429, message, code, None, kind, {"x-should-retry": "false"})
    headers = {"retry-after": str(max(1, math.ceil(wait_s))), "retry-after-ms": str(math.ceil(wait_s * 1000))}
    return ApiError(429, message, code, None, kind, headers)
