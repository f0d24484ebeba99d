"""`graftline router` and what stands beside it: which releases a router takes, and which gate it is sent to."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_releases import promote as make_champion
from small_releases import random_lora, write_release
from stores import store_at

from adapters.adapter_router import AdapterRouter
from adapters.backbone import Backbone
from engine.profile import Profile
from evaluation.errors import DataChanged
from evaluation.tasks import TASKS, task_named
from registry.errors import PolicyRefused, PromotionRefused
from registry.policy import policies
from registry.release import publish as publish_release
from registry.tracking import Tracking
from service.commands import router
from service.commands.releases import promote, publish
from tuning.manifest import complete
from tuning.recipe import Recipe
from tuning.router_fit import RouterFit, RouterSpec, reading, write_router


def written(directory: Path, backbone: Backbone, targets: dict[str, str]) -> Path:
    """A router that leaves all to the backbone."""
    width, classes = backbone.hidden_size, len(targets) + 1
    mean_H, scale_H, weights_CH = torch.zeros(width), torch.ones(width), torch.zeros(classes, width)
    found = AdapterRouter(tuple(targets), 0, 0.0, 1.0, backbone.fingerprint, mean_H, scale_H, weights_CH, torch.zeros(classes))
    told = reading(found, torch.zeros(2, width), torch.tensor([0, 1]))
    domains = dict.fromkeys(targets, TASKS["icd10-chapter"])
    write_router(directory, RouterFit(found, told, told), backbone, targets, domains, [], RouterSpec(items=20))
    return directory


def champion(tracking: Tracking, backbone: Backbone, name: str, directory: Path, domain: str, *protected: str) -> None:
    write_release(directory, backbone, random_lora(backbone, 1), domain=domain, protected=protected)
    publish_release(tracking, name, directory)
    make_champion(tracking, name, 1)


def test_a_published_router_is_sent_to_its_own_gate_and_refused_at_that_of_adapters(
    backbone: Backbone, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store_at(tmp_path / "home")
    publish(str(written(tmp_path / "auto", backbone, {"skin": "skin@1"})), "auto", tmp_path / "home", None, as_json=False)
    assert "next: graftline router promote auto@1" in capsys.readouterr().out
    with pytest.raises(PromotionRefused, match="graftline router promote auto@1"):
        promote("auto@1", "", False, None, None, tmp_path / "home", None, as_json=True)


def test_two_names_of_one_domain_are_refused(backbone: Backbone, tmp_path: Path) -> None:
    tracking = store_at(tmp_path / "home")
    for name in ("skin", "ear"):
        champion(tracking, backbone, name, tmp_path / name, "icd10-chapter", "grammar")
    with pytest.raises(ValueError, match="fitted on one domain"):
        router.fit(["skin", "ear"], tmp_path / "auto", 20, None, None, None, tmp_path / "home", None, as_json=True)
    assert not (tmp_path / "auto").exists()


def test_what_one_release_protects_and_another_was_fitted_on_is_not_the_backbones(backbone: Backbone, tmp_path: Path) -> None:
    tracking = store_at(tmp_path / "home")
    champion(tracking, backbone, "skin", tmp_path / "skin", "icd10-chapter", "grammar", "customs-section")
    champion(tracking, backbone, "goods", tmp_path / "goods", "customs-section", "grammar")
    router.fit(["skin", "goods"], tmp_path / "auto", 20, None, None, None, tmp_path / "home", None, as_json=True)
    with router.opened(tracking, tmp_path / "auto") as opened:
        assert opened.protected == ("grammar",)


def test_a_routers_gate_is_that_of_its_name_and_a_laxer_one_needs_a_reason(backbone: Backbone, tmp_path: Path) -> None:
    home, gate = tmp_path / "home", tmp_path / "gate.toml"
    tracking = store_at(home)
    champion(tracking, backbone, "skin", tmp_path / "skin", "icd10-chapter", "grammar")
    router.fit(["skin"], tmp_path / "auto", 20, None, None, None, home, None, as_json=True)
    publish_release(tracking, "auto", tmp_path / "auto")
    gate.write_text("margin = 0.3\nround_items = 8\nmax_rounds = 1\n")

    def promoted(reason: str) -> int:
        return router.promote("auto@1", reason, False, None, gate, home, None, as_json=True)

    with pytest.raises(PolicyRefused, match="the margin of grammar"):
        promoted("")
    assert [change.policy.margin for change in policies(tracking, "auto")] == [0.02]
    assert promoted("the domain has few items") == 1  # a random backbone's router shows nothing
    assert [change.policy.margin for change in policies(tracking, "auto")] == [0.02, 0.3]


def test_a_router_whose_releases_protect_nothing_cannot_be_gated(backbone: Backbone, tmp_path: Path) -> None:
    tracking = store_at(tmp_path / "home")
    champion(tracking, backbone, "skin", tmp_path / "skin", "icd10-chapter")
    publish_release(tracking, "auto", written(tmp_path / "auto", backbone, {"skin": "skin@1"}))
    with pytest.raises(ValueError, match="protect none"):
        router.promote("auto@1", "", False, None, None, tmp_path / "home", None, as_json=True)


def test_a_domain_that_changed_since_its_release_was_fitted_stops_a_router(backbone: Backbone, tmp_path: Path) -> None:
    data, toml = tmp_path / "data.csv", tmp_path / "mine.toml"
    data.write_text("q,a\n" + "".join(f"Is number {n} even?,{'no' if n % 2 else 'yes'}\n" for n in range(60)))
    toml.write_text('name = "mine"\nfile = "data.csv"\n[columns]\nquestion = "q"\nanswer = "a"\n')
    recipe = Recipe(name="mine", backbone=backbone.name, domain=str(toml), protected=("grammar",))
    examples = task_named(str(toml)).examples("train", 20)
    complete(tmp_path / "mine", recipe, backbone, Profile((random_lora(backbone, 1),)), 1.0, examples)
    tracking = store_at(tmp_path / "home")
    publish_release(tracking, "mine", tmp_path / "mine")
    directory = written(tmp_path / "auto", backbone, {"mine": "mine@1"})
    data.write_text(data.read_text().replace("number 7 ", "number 77 "))
    with pytest.raises(DataChanged, match="mine@1"), router.opened(tracking, directory):
        pass
