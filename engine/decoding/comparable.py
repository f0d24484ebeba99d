"""What an answer says, whatever its case, spacing and punctuation."""

from __future__ import annotations

import re
import unicodedata


def comparable(text: str) -> str:
    """Words and numbers of any script, with minus signs, decimal points and mathematical symbols, case folded.

    A hyphen inside a word is a space, and so are other symbols and all other punctuation.
    """
    folded = unicodedata.normalize("NFC", text.casefold()).replace("\N{MINUS SIGN}", "-")
    plain = re.sub(r"(?<=\w)-(?=\w)|(?<=[^\W\d])\.|\.(?!\d)", " ", folded)
    signed = re.sub(r"-(?![\d.])", " - ", plain)  # a minus that is no number's sign stands alone
    return " ".join("".join(_kept(char) for char in signed).split())


def _kept(char: str) -> str:
    kind = unicodedata.category(char)
    return char if char in "-." or kind[0] in "LMN" else f" {char} " if kind == "Sm" else " "
