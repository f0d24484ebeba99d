"""What can go wrong in a fit or a sweep.

TuningError (ValueError)
├── BadRecipe        a recipe that cannot be read, or that names what does not exist
├── NoSignal         the rewards of a fit never differ: nothing can be learnt from them
├── Diverged         the loss of a fit is not finite, or exploded: a deterministic failure of those settings
├── FitStopped       a stop rule ended a fit that was not worth its end
├── FitFailed        a process of a fit that was launched said why it cannot go on
├── BadStorage       the URL of a study's database cannot be used, or not from here
│   └── StorageRefused  the database of a study lets this user, password or name not in
├── StorageAway      the database of a study does not answer
├── NoStudy          no study of that name, for a worker to join
├── StudyMismatch    a study of that name exists with another search space or other directions
├── DamagedStudy     the file of a study cannot be read as one
├── NothingToPublish no such study or trial, or its best trial lost more than a margin
├── NothingToExtend  a limit that is no larger than the study's own, or that it does not have
├── NothingToRefit   a trial that did not finish, or whose recipe is not known
├── SweepRefused     no trial of the recipe can run: the backbone, the data or the protected families
├── SweepStopped     trial after trial died, or could not be fitted for one and the same reason
├── Preempted        a worker was told to end: what it ran is handed back
├── NoSelection      a task has too few items in the select split to choose a policy on them
├── NotSearchable    a part of the decoding policy that this release, backbone or engine does not have
├── BadCluster       settings of an executor that cannot be read, or that ask for what is not there
├── NotSubmitted     a scheduler's program that is not here, or that took no job
├── RoundIsRunning   another process goes on with new rows of the same name
├── NotReproducible  a release that no fit made has nothing to be fitted again
└── StudyIsRunning   another process fits and reads the arms of the very same study
"""


class TuningError(ValueError):
    """The root of the errors of this package."""


class BadRecipe(TuningError):
    pass


class NoSignal(TuningError):
    pass


class FitFailed(TuningError):
    pass


class Diverged(TuningError):
    pass


class FitStopped(TuningError):
    pass


class BadStorage(TuningError):
    pass


class StorageRefused(BadStorage):
    pass


class StorageAway(TuningError):
    pass


class NoStudy(TuningError):
    pass


class StudyMismatch(TuningError):
    pass


class DamagedStudy(TuningError):
    pass


class NothingToPublish(TuningError):
    pass


class NothingToExtend(TuningError):
    pass


class NothingToRefit(TuningError):
    pass


class SweepRefused(TuningError):
    pass


class SweepStopped(TuningError):
    pass


class StudyIsRunning(TuningError):
    pass


class Preempted(TuningError):
    pass


class NoSelection(TuningError):
    pass


class NotSearchable(TuningError):
    pass


class BadCluster(TuningError):
    pass


class NotSubmitted(TuningError):
    pass


class NotReproducible(TuningError):
    pass


class RoundIsRunning(TuningError):
    pass
