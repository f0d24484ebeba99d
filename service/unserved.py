"""What is not served, and why: a release that was refused, a registry that does not answer."""

from __future__ import annotations

from dataclasses import dataclass, field

from service.errors import ApiError

# A refused release is looked at again after this time, as its files may have been restored.
RETRY_REFUSED_S = 60.0
# A disk that was full, a file that could not be read at that moment: nothing of the release's own.
RETRY_FAILED_S = 2.0
REGISTRY_AWAY = "The registry does not answer: what is loaded stays served as it was last read. The server's log has the reason."


@dataclass(frozen=True)
class Refusal:
    reason: str
    at: float
    retry_s: float = RETRY_REFUSED_S


@dataclass(frozen=True)
class Readiness:
    """`registry` is None while the registry answers, else a sentence for clients; `refused` is by NAME@VERSION."""

    registry: str | None
    refused: dict[str, str] = field(default_factory=dict)
    loaded: tuple[str, ...] = ()


def unavailable(release: str, refusal: Refusal | None) -> ApiError:
    if refusal is None:
        message, code, headers = f"{release} is not loaded yet. Try again soon.", "model_not_loaded", {"retry-after": "5"}
    else:
        message, code, headers = f"{release} was refused: {refusal.reason}", "model_refused", {"x-should-retry": "false"}
    return ApiError(503, message, code, "model", "server_error", headers)


def registry_away() -> ApiError:
    """Where it stands is no client's business."""
    message = "The registry does not answer now, so what is not loaded yet cannot be. Ask again later."
    return ApiError(503, message, "registry_unreachable", "model", "server_error", {"retry-after": "10"})
