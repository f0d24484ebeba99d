"""One fit of a recipe's own values: what lies beside its directory afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_studies import small

from tuning.errors import BadRecipe, Diverged
from tuning.fitting import fit_recipe, kept_beside


@pytest.mark.parametrize(("end", "is_kept"), [(Diverged("Lower it."), False), (KeyboardInterrupt(), True)])
def test_what_can_go_on_is_kept_and_what_diverged_is_not(
    backbone_directory: Path, tmp_path: Path, end: BaseException, is_kept: bool
) -> None:
    def ends(step: int, num_steps: int, loss: float) -> None:
        raise end

    with pytest.raises(type(end)):
        fit_recipe(small(backbone_directory), tmp_path / "fitted", ends)
    assert not (tmp_path / "fitted").exists()
    assert kept_beside(tmp_path / "fitted").exists() is is_kept


def test_a_whole_fit_leaves_its_files_alone_and_is_not_written_over(backbone_directory: Path, tmp_path: Path) -> None:
    recipe = small(backbone_directory)
    fit_recipe(recipe, tmp_path / "fitted")
    assert [path.name for path in tmp_path.iterdir()] == ["fitted"]
    with pytest.raises(BadRecipe, match="fitted is there. Remove it, or name another"):
        fit_recipe(recipe, tmp_path / "fitted")
