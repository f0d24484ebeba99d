"""`/console/`: the console's page. Static files, which ask the API with the reader's own key; see docs/console.md."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from service.errors import ApiError

router = APIRouter(include_in_schema=False)

FOLDER = Path(__file__).resolve().parent.parent / "console"
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
# Nothing from elsewhere, nothing inline, and no text becomes markup: the browser holds the page to it.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",
}


@dataclass(frozen=True)
class Asset:
    content: bytes
    media_type: str

    @property
    def etag(self) -> str:
        return f'"{hashlib.sha256(self.content).hexdigest()[:24]}"'


ASSETS = {file.name: Asset(file.read_bytes(), _TYPES[file.suffix]) for file in sorted(FOLDER.iterdir()) if file.suffix in _TYPES}


@router.get("/")
@router.get("/console")
async def to_the_page() -> Response:
    return RedirectResponse("console/", 307)  # relative: it holds behind a proxy that adds a path


@router.get("/console/")
async def page(request: Request) -> Response:
    return await asset(request, "index.html")


@router.get("/console/{file}")
async def asset(request: Request, file: str) -> Response:
    found = ASSETS.get(file)
    if found is None:
        raise ApiError(404, f"The console has no file {file[:80]!r}.", "unknown_url")
    headers = {**HEADERS, "etag": found.etag}
    if request.headers.get("if-none-match") == found.etag:
        return Response(status_code=304, headers=headers)
    return Response(found.content, media_type=found.media_type, headers=headers)
