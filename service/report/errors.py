"""What a report cannot be made of."""

from __future__ import annotations


class NothingToReport(ValueError):
    def __init__(self, asked: str, studies: str, models: str) -> None:
        super().__init__(
            f"A report is of a study or of a release (NAME, NAME@VERSION, NAME@ALIAS), but {asked!r} is neither here (studies: "
            f"{studies}; models: {models}). Correct the name or --home, or make one: `graftline tune RECIPE.toml`."
        )


class NothingToMeasure(ValueError):
    """The subject has no adapter here."""
