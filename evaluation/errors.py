"""What can be wrong with data that comes from outside. Each message tells the rule, the value and the way out."""


class DataError(ValueError):
    """A task's data cannot be used as it is."""


class UnreadableFile(DataError):
    """The file is missing, of an unknown kind, or damaged."""


class MissingColumn(DataError):
    """The specification names a column that the data does not have."""


class WrongRow(DataError):
    """One row breaks a rule; the message names its line."""


class AnswerNotAmongChoices(WrongRow):
    """The right answer of a row is none of its options."""


class DuplicateId(WrongRow):
    """Two rows have the same id."""


class ContradictoryAnswers(WrongRow):
    """One question has two right answers."""


class EmptySplit(DataError):
    """Hashing the groups left a split without a row."""


class OneClassAnswers(DataError):
    """Every row has the same answer, so that nothing can be learnt or measured."""


class UnknownTask(DataError):
    """No built-in task has that name, and no file is there."""


class UnknownMeasure(DataError):
    """No measure has that name."""


class MissingPackage(DataError):
    """The data needs an optional package that is not installed."""


class JudgeUnavailable(DataError):
    """A judge was asked and gave no reply at all."""


class DataChanged(DataError):
    """A task reads something else than what an adapter was fitted on."""


class Overlap(DataError):
    """Rows that are trained on say what held-out rows say."""


class IncompleteMatrix(DataError):
    """Stored scores do not make a table of stages and columns."""
