"""MLflow's webhooks: signed, fresh, and taken once. What one says is never read: it is a hint to look at the ledger."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import threading
from collections.abc import Mapping

MAX_AGE_S = 300.0
MAX_KEPT = 10_000  # deliveries that are remembered: more than these in five minutes are refused
_SECONDS = re.compile(r"[0-9]{1,12}")
_DELIVERY = re.compile(r"[!-~]{1,200}")


def is_signed(secret: str, headers: Mapping[str, str], body: bytes, now: float) -> bool:
    """Whether MLflow signed this delivery within MAX_AGE_S: HMAC-SHA256 over its id, its time and its body."""
    delivery, sent = headers.get("x-mlflow-delivery-id", ""), headers.get("x-mlflow-timestamp", "")
    if not _DELIVERY.fullmatch(delivery) or not _SECONDS.fullmatch(sent) or abs(now - int(sent)) > MAX_AGE_S:
        return False
    signed = f"{delivery}.{sent}.".encode() + body
    expected = "v1," + base64.b64encode(hmac.new(secret.encode(), signed, hashlib.sha256).digest()).decode()
    return hmac.compare_digest(expected.encode(), headers.get("x-mlflow-signature", "").encode())


class Deliveries:
    """The ids of signed deliveries, for as long as their time would let them in again. Safe to use from threads."""

    def __init__(self) -> None:
        self._until: dict[str, float] = {}
        self._lock = threading.Lock()

    def take(self, delivery: str, sent: float, now: float) -> bool:
        """Whether it comes for the first time. False as well where too many came to remember one more."""
        with self._lock:
            if len(self._until) >= MAX_KEPT:
                self._until = {one: until for one, until in self._until.items() if until >= now}
            if delivery in self._until or len(self._until) >= MAX_KEPT:
                return False
            self._until[delivery] = sent + MAX_AGE_S
            return True
