"""What can go wrong between a fitted adapter and a champion.

RegistryError (ValueError)
├── RegistryUnreachable    the tracking store or server does not answer, or is of a kind that is refused
├── StoreRefused           the tracking store answered, with an error
├── NoRegistry             the home has no registry yet
├── RefusedName            a model name that MLflow or the ledger cannot hold
├── UnknownRelease         no such registered model, version or alias
├── NoChampion             the model exists, but the ledger has promoted nothing
├── NoRoom                 this machine could not take a release's files at that moment
├── DamagedRelease         a file is missing, added, changed, cut short or not finite
├── DamagedExport          an export that is not whole, or is none
├── BackboneMismatch       the release was fitted on another backbone (also adapters.errors.BackboneMismatch)
├── PromotionRefused       the gate did not pass, or the report is about something else
│   ├── PolicyRefused      a gate asks for less than the name's policy, or the file of a policy cannot be read
│   └── ApprovalRefused    nothing is proposed, or whoever approves has proposed or published it
├── AwaitsApproval         not yet promoted: it is proposed, and another person's word is asked for
├── GateIsRunning          another process gates the same files, or too many gates begin at once
├── ChampionMoved          someone else promoted first
├── CanaryRefused          a canary that breaks a rule: the champion itself, a second one, a share beyond its limits
├── CanaryMoved            someone else ended or changed the canary first
├── NoCanary               no canary is under way
└── NothingToRollBackTo    no earlier champion to return to
"""

from __future__ import annotations

import errno
import re

from adapters import errors as adapter_errors


class RegistryError(ValueError):
    """The root of the errors of this package."""


class NoRegistry(RegistryError):
    """The home has no registry yet."""


class UnreadableReport(RegistryError):
    """A gate report that another version of Graftline wrote."""


class RegistryUnreachable(RegistryError):
    pass


class StoreRefused(RegistryError):
    pass


class RefusedName(RegistryError):
    pass


class UnknownRelease(RegistryError):
    pass


class NoChampion(RegistryError):
    pass


class NoRoom(RegistryError):
    """This machine could not take a release's files at that moment; the release itself may be whole."""


_NO_ROOM = frozenset({errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM})


def lacks_room(error: BaseException) -> bool:
    """Whether a failure to write files is of the machine's moment: a full disk, too many open files.

    Copying a tree and downloading artifacts tell the errors of single files as text alone.
    """
    told = {int(number) for number in re.findall(r"\[Errno (\d+)\]", str(error))}
    return getattr(error, "errno", None) in _NO_ROOM or bool(_NO_ROOM & told)


class DamagedRelease(RegistryError):
    pass


class DamagedExport(RegistryError):
    pass


class BackboneMismatch(RegistryError, adapter_errors.BackboneMismatch):
    pass


class PromotionRefused(RegistryError):
    pass


class PolicyRefused(PromotionRefused):
    pass


class ApprovalRefused(PromotionRefused):
    pass


class AwaitsApproval(RegistryError):
    """What `Ledger.promote` ends with under a policy of two people. Its sentence names the command of the second one."""


class GateIsRunning(RegistryError):
    pass


class ChampionMoved(RegistryError):
    pass


class CanaryRefused(RegistryError):
    pass


class CanaryMoved(RegistryError):
    pass


class NoCanary(RegistryError):
    pass


class NothingToRollBackTo(RegistryError):
    pass
