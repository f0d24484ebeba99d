"""`model=auto` and its like: a promoted router reads the prompt and says which name answers, or the backbone."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from pydantic import JsonValue

from adapters.adapter_router import AdapterRouter, Choice
from engine.inspect import inspector
from engine.routed_engine import prompt_states
from service.caller import Caller
from service.errors import ApiError
from service.lease import Lease
from service.models import ServedModels
from service.parts import Parts

log = logging.getLogger("graftline.dispatch")
# One prompt's states at a time lie in memory; their forwards would take turns anyway, and other threads stay free for the ledger.
_CHOOSING = ThreadPoolExecutor(1, "graftline-choice")
Told = Mapping[str, JsonValue]


async def dispatch(parts: Parts, lease: Lease, prompts: Sequence[tuple[int, ...]], caller: Caller) -> Told:
    """Where the lease is of a router: hands it over to what the router chooses, and tells the decision; else tells nothing.

    The name stands for its champion of this moment. One that has none, or that cannot be loaded, leaves the prompt to the
    backbone, and the decision says so.
    """
    router = lease.served.router
    if router is None:
        return {}
    if len(prompts) != 1:
        rule = f"{lease.served.id} chooses by the prompt, so a request holds one"
        message = f"{rule}, but this has {len(prompts)}. Send them apart."
        raise ApiError(400, message, "invalid_value", "prompt")
    parts.admission.refuse_when_full(caller, tokens=len(prompts[0]))  # before anything is computed for it
    chosen = asyncio.get_running_loop().run_in_executor(_CHOOSING, _choice, parts, router, prompts[0])
    name, choice = lease.served.id, await chosen
    found, missing = await answering(parts.models, name, choice.name or parts.models.backbone_id)
    lease.hand_over(found)
    probabilities = {key or parts.models.backbone_id: round(value, 4) for key, value in choice.probabilities.items()}
    return {
        "router": name,
        "chosen": lease.served.id,
        "likeliest": choice.likeliest or parts.models.backbone_id,
        "probability": round(choice.probability, 4),
        "threshold": round(router.threshold, 4),
        "probabilities": dict(probabilities),
        **({} if missing is None else {"not_available": missing}),
    }


async def answering(models: ServedModels, router: str, chosen: str) -> tuple[Lease, str | None]:
    """Of what was chosen, or of the backbone with the reason why that does not answer."""
    try:
        found = await models.lease(chosen)
        if found.served.router is None:
            return found, None
        found.release()
        missing = "is_a_router"  # it writes nothing itself
    except ApiError as error:
        missing = error.code
    log.warning("%s chose %s, which does not answer (%s): the backbone does", router, chosen, missing)
    return await models.lease(models.backbone_id), missing


def _choice(parts: Parts, router: AdapterRouter, prompt: tuple[int, ...]) -> Choice:
    engine = inspector(parts.engine)
    assert engine is not None  # a router is refused at its loading where the engine shows no states
    (state_H,) = prompt_states(engine, [prompt], router.layer)
    return router.choose(state_H)
