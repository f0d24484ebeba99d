"""`/v1/files`: training data for fine-tuning jobs."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import FileResponse, JSONResponse, Response
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive

from service.control import CONTROLLED
from service.errors import ApiError
from service.jobs.shapes import page
from service.jobs.uploads import UploadedFile, too_large
from service.parts import Parts, PartsHere
from service.shortened import shortened

router = APIRouter(dependencies=[CONTROLLED])
Limit = Annotated[int, Query(ge=1, le=10_000)]
_FORM_BYTES = 2**16  # of the form around the file


_FORM = {
    "type": "object",
    "required": ["file", "purpose"],
    "properties": {"file": {"type": "string", "format": "binary"}, "purpose": {"type": "string", "enum": ["fine-tune"]}},
}


@router.post(
    "/v1/files", openapi_extra={"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": _FORM}}}}
)
async def upload(parts: PartsHere, request: Request) -> Response:
    limited = Request(request.scope, _limited(request.receive, parts.uploads.max_bytes))
    with parts.audit.during(request, "file.create", "") as act:
        if int(request.headers.get("content-length") or 0) > parts.uploads.max_bytes + _FORM_BYTES:
            raise too_large(parts.uploads.max_bytes)
        try:
            form = await limited.form(max_files=1, max_fields=8)
        except HTTPException as error:
            raise ApiError(400, f"A file is sent as a multipart form: {error.detail}", "invalid_request", "file") from error
        try:
            file, purpose = form.get("file"), form.get("purpose")
            if not isinstance(file, UploadFile):
                raise ApiError(400, "The form has a part `file` with a filename. Send one.", "missing_parameter", "file")
            kept = await asyncio.to_thread(parts.uploads.keep, file.filename or "", str(purpose or ""), file.file)
        finally:
            await form.close()
        act.detail |= {"id": kept.id, "bytes": kept.bytes}
    return JSONResponse(kept.wire())


@router.get("/v1/files")
async def list_files(parts: PartsHere, limit: Limit = 10_000, after: str | None = None, purpose: str | None = None) -> Response:
    found = await asyncio.to_thread(lambda: [file.wire() for file in parts.uploads.all()])
    return JSONResponse(page([file for file in found if purpose in (None, file["purpose"])], after, limit))


@router.get("/v1/files/{file_id}")
async def one_file(parts: PartsHere, file_id: str) -> Response:
    return JSONResponse((await uploaded(parts, file_id)).wire())


@router.get("/v1/files/{file_id}/content")
async def content(parts: PartsHere, file_id: str) -> Response:
    file = await uploaded(parts, file_id)
    return FileResponse(parts.uploads.content(file), media_type="application/octet-stream", filename=file.filename)


@router.delete("/v1/files/{file_id}")
async def delete(parts: PartsHere, request: Request, file_id: str) -> Response:
    with parts.audit.during(request, "file.delete", file_id):
        await asyncio.to_thread(parts.uploads.delete, await uploaded(parts, file_id))
    return JSONResponse({"id": file_id, "object": "file", "deleted": True})


async def uploaded(parts: Parts, file_id: str, param: str = "file_id") -> UploadedFile:
    file = await asyncio.to_thread(parts.uploads.find, file_id)
    if file is None:
        raise ApiError(404, f"There is no file {shortened(file_id)}. Upload it first.", "file_not_found", param)
    return file


def _limited(receive: Receive, max_bytes: int) -> Receive:
    """The body, counted as it comes in: what is too large is refused without being read to its end."""
    left = max_bytes + _FORM_BYTES

    async def receive_limited() -> Message:
        nonlocal left
        message = await receive()
        left -= len(message.get("body", b""))
        if left < 0:
            raise too_large(max_bytes)
        return message

    return receive_limited
