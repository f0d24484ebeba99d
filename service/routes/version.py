"""`/version`: of Graftline."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from fastapi import APIRouter
from pydantic import BaseModel

router = APIRouter()


class Version(BaseModel):
    version: str


def own_version() -> str:
    try:
        return version("graftline")
    except PackageNotFoundError:  # run from its files, as a Bento is
        return "unknown"


@router.get("/version", summary="Of Graftline")
async def tell_version() -> Version:
    return Version(version=own_version())
