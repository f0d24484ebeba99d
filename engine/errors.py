"""What can go wrong in an engine. Nothing is imported here: whoever only tells of these needs no engine.

EngineError (RuntimeError)
├── UnknownProfile         nothing of that name is loaded
├── PromptTooLong          no room is left for a reply
├── TimedOut               past its deadline
├── EngineDied             the engine's own process has ended
├── NotFinite              NaN or infinity in a row's logits
├── BadGrammar             what a reply is to be written like cannot be followed
├── CannotRun              a part of a decoding policy, or of a request, that an engine has not
└── NotNarrower            a request that asks for more than its release's policy
"""

from __future__ import annotations


class EngineError(RuntimeError):
    """The root of what an engine refuses."""


class UnknownProfile(EngineError):
    pass


class PromptTooLong(EngineError, ValueError):
    pass


class TimedOut(EngineError):
    """A request was past its deadline: nothing more is computed for it."""


class EngineDied(EngineError):
    """Nothing is computed any more, for nobody: the process must be started again."""


class NotFinite(EngineError):
    """A row's logits held NaN or infinity: the row is failed, its adapter is at fault, other rows go on."""


class BadGrammar(EngineError, ValueError):
    """A grammar that cannot be compiled, or that became too large on the way; the message has the reason."""


class CannotRun(EngineError):
    """What this engine cannot run on this backbone, mostly a part of a decoding policy; the message names it.

    `field`: where it stands in the request; None where that is not known.
    """

    def __init__(self, message: str, field: str | None = "policy") -> None:
        super().__init__(message)
        self.field = field


class NotNarrower(EngineError, ValueError):
    """A request that asks for more than its release's policy."""
