"""`graftline serve` and `graftline build`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from registry.home import home_directory
from service.access import refuse_open
from service.serve import check_address
from service.serve import serve as serve_settings
from service.settings import PREFIX, Settings, misspelt


def serve(
    host: str | None,
    port: int | None,
    backbone: str | None,
    engine: str | None,
    home: Path | None,
    tracking_uri: str | None,
    is_open: bool = False,
) -> int:
    """Becomes the server; what is not given comes from GRAFTLINE_* variables."""
    from adapters.backbone import sources_of
    from service.engines import vllm_options

    settings = _settings(
        host=host, port=port, backbone=backbone, engine=engine, home=home_directory(home), tracking_uri=tracking_uri
    )
    settings = settings.model_copy(update={"open": is_open or settings.open})
    for warning in misspelt(os.environ):
        print(warning, file=sys.stderr, flush=True)
    settings.check_here()
    if settings.engine == "vllm":
        vllm_options(settings)
    sources_of(settings.backbone)  # a server that cannot start would be started again and again
    check_address(settings.host, settings.port)
    refuse_open(settings.host, settings.home, settings.open)
    print(f"serving {settings.backbone} on http://{settings.host}:{settings.port}/v1 (Ctrl-C stops it)", flush=True)
    serve_settings(settings)


def build(backbone: str | None, home: Path | None, tracking_uri: str | None) -> None:
    from service.bento import build as build_bento

    place = build_bento(_settings(backbone=backbone, home=home_directory(home), tracking_uri=tracking_uri))
    print(f"built {place}\nrun it with: bentoml serve {place}")


def _settings(**given: object) -> Settings:
    told = {f"{PREFIX}{key.upper()}": str(value) for key, value in given.items() if value is not None}
    return Settings.from_environment({**os.environ, **told})
