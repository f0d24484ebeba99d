"""`/version`: of Graftline."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from fastapi import APIRouter
from pydantic import BaseModel

router = APIRouter()


class Version(BaseModel):
    version: str


@router.get("/version")
async def tell_version() -> Version:
    try:
        return Version(version=version("graftline"))
    except PackageNotFoundError:  # run from its files, as a Bento is
        return Version(version="unknown")
