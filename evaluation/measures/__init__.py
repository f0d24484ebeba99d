"""The measures, by name."""

from evaluation.errors import UnknownMeasure
from evaluation.measure import Measure
from evaluation.measures.belief import Belief
from evaluation.measures.budget import BudgetAccuracy
from evaluation.measures.calibration import BrierScore, CandidateLogProbability
from evaluation.measures.chain import ChainLikelihood
from evaluation.measures.choice import ChoiceAccuracy
from evaluation.measures.correction import Correction
from evaluation.measures.faithfulness import Faithfulness
from evaluation.measures.generation import Generation
from evaluation.measures.information_gain import InformationGain
from evaluation.measures.latent import LatentReasoning
from evaluation.measures.length import TraceLength
from evaluation.measures.rationality import Rationality
from evaluation.measures.raw_text import PairMargin, PairPreference, TextLikelihood
from evaluation.measures.reasoned_choice import ReasonedChoice
from evaluation.measures.search import SystematicSearch
from evaluation.measures.shift import ShiftRobustness
from evaluation.measures.soft_thoughts import SoftThoughts
from evaluation.measures.underthinking import Underthinking
from evaluation.measures.wandering import Conclusion, NewSteps

MEASURES: dict[str, Measure] = {
    measure.name: measure
    for measure in (
        ChoiceAccuracy(),
        ChainLikelihood(),
        Generation(),
        InformationGain("external", "own"),
        InformationGain("self", "gold"),
        Correction(),
        ShiftRobustness(),
        Faithfulness("self", "own"),
        Faithfulness("self", "base"),
        Faithfulness("external", "own"),
        Faithfulness("self", "gold"),
        SoftThoughts(),
        ReasonedChoice(),
        Rationality(),
        TextLikelihood(),
        PairPreference(),
        PairMargin(),
        TraceLength(),
        BudgetAccuracy(),
        Underthinking(),
        SystematicSearch(),
        NewSteps(),
        Conclusion(),
        LatentReasoning(),
        Belief(),
        BrierScore(),
        CandidateLogProbability(),
    )
}

# What reads plain text, pairs of it, or stories of belief, and so no problem with an answer.
OF_TEXT = frozenset(measure.name for measure in (TextLikelihood(), PairPreference(), PairMargin(), Belief()))


def measure_named(name: str) -> Measure:
    if name not in MEASURES:
        raise UnknownMeasure(f"A measure is one of {', '.join(MEASURES)}, but {name!r} is none. Correct the name.")
    return MEASURES[name]
