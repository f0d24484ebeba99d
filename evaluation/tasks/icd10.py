"""ICD-10-CM: the chapter, or the category, that a diagnosis is coded under (CDC's tabular list, by simple-icd-10-cm)."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from functools import cache

from evaluation.tasks.classification import ClassificationTask, Leaf, Mixture, Table

# Chapter titles as a reader would say them; the official ones run to fifteen words.
CHAPTERS = {
    "1": "infectious and parasitic diseases",
    "2": "tumours and cancers",
    "3": "blood and immune disorders",
    "4": "endocrine, nutritional and metabolic diseases",
    "5": "mental and behavioural disorders",
    "6": "nervous system diseases",
    "7": "eye diseases",
    "8": "ear diseases",
    "9": "heart and circulatory diseases",
    "10": "respiratory diseases",
    "11": "digestive diseases",
    "12": "skin diseases",
    "13": "muscle, bone and joint diseases",
    "14": "kidney, urinary and genital diseases",
    "15": "pregnancy and childbirth",
    "16": "conditions of the newborn",
    "17": "birth defects and chromosomal disorders",
    "18": "symptoms and abnormal findings",
    "19": "injuries and poisoning",
    "20": "external causes of injury",
    "21": "contact with health services",
    "22": "codes for special purposes",
}


@cache
def table() -> Table:
    return Table(_leaves())


def _leaves() -> Iterator[Leaf]:
    with warnings.catch_warnings():
        # The package reads its data through an importlib function that Python 3.11 deprecates.
        warnings.simplefilter("ignore", DeprecationWarning)
        import simple_icd_10_cm as icd
    for code in icd.get_all_codes():
        if not icd.is_leaf(code):
            continue
        category = code[:3]
        # A category that is a block by itself has no ancestor but its chapter.
        *above, chapter = icd.get_ancestors(code)
        block = above[-1] if above else category
        path = (CHAPTERS[chapter], title(icd.get_description(block, True)), title(icd.get_description(category)))
        yield Leaf(code, title(icd.get_description(code)), path, category)


def title(description: str) -> str:
    """Without the code range at its end: `Cholera (A00)` is `Cholera`."""
    return re.sub(r"\s*\([A-Z][0-9A-Z]{2}(-[A-Z][0-9A-Z]{2})?\)\s*$", "", description).strip()


_LEVELS = ("Chapter", "Block", "Category")
ICD10_CHAPTER = ClassificationTask(
    "icd10-chapter", "widest", table, "Diagnosis: {text}\nWhich chapter of ICD-10 is it in?", _LEVELS
)
ICD10_CATEGORY = ClassificationTask(
    "icd10-category", "narrowest", table, "Diagnosis: {text}\nWhich category of ICD-10 is it in?", _LEVELS
)
ICD10 = Mixture("icd10", (ICD10_CHAPTER, ICD10_CATEGORY))
