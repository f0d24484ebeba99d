"""The BentoML service: OpenAI endpoints over one engine that runs every adapter in one batch."""

from __future__ import annotations

import contextlib
import gc

import bentoml

from service.application import new_application
from service.bento_image import self_contained
from service.bento_timeout import take_away
from service.front import Front
from service.meters import exposition
from service.parts import Parts
from service.settings import Settings
from service.startup import is_alive, is_ready, running

take_away()
app = new_application()
settings = Settings.from_environment()


# One worker, since the engine lives in it. BentoML's own limits are backstops: its 429 and 504 have no OpenAI shape.
@bentoml.service(
    name="graftline",
    workers=1,
    traffic={"timeout": settings.request_timeout_s + 60, "max_concurrency": 4096},
    http={"host": settings.host, "port": settings.port},
    metrics={"enabled": False},  # its series are by raw path, which a scanner can make without end
    tracing={"excluded_urls": "."},  # ours are service.spans: its own are one for every event of a stream, which doubles its cost
    logging={"access": {"enabled": False}},  # a line of its own beside ours, with the path that a client typed, decoded
    image=self_contained(),
)
@bentoml.asgi_app(app, path="/")
class Graftline:
    @bentoml.on_startup  # type: ignore[untyped-decorator]
    async def start(self) -> None:
        self.open = contextlib.AsyncExitStack()
        await self.open.enter_async_context(running(app, settings))
        # What is loaded now stays. Among the old objects, its 700,000 would put off every full collection until requests have
        # left a quarter as many: memory that grows for hours before it is found to be free.
        gc.collect()
        gc.freeze()

    @bentoml.on_shutdown  # type: ignore[untyped-decorator]
    async def stop(self) -> None:
        await self.open.aclose()

    async def __is_ready__(self) -> bool:
        return is_ready(app)

    async def __is_alive__(self) -> bool:
        return is_alive(app)

    async def __metrics__(self, text: str) -> str:
        parts: Parts = app.state.parts
        return exposition(parts.engine.stats, parts.models.answering)


# The application has it too; here it also stands before what BentoML answers by itself.
Graftline.add_asgi_middleware(Front, application=app)  # type: ignore[attr-defined]
