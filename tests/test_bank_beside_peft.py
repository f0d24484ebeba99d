"""The bank beside PEFT: one forward of rows of several adapters gives the logits of PEFT's own mixed batch."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from fitted import fitted_lora
from peft import PeftModel

from adapters.backbone import Backbone
from engine.bank import AdapterBank
from engine.twin import Twin

NAMES = ("", "one", "two", "", "three", "one")


def test_logits_of_a_mixed_batch_equal_those_of_peft(backbone: Backbone, tmp_path: Path) -> None:
    made = {name: fitted_lora(backbone, rank, rank) for name, rank in {"one": 4, "two": 9, "three": 16}.items()}
    twin = Twin(backbone)
    bank = AdapterBank(twin.linears(), twin.dtype, twin.layers, backbone.hidden_size, twin.groups)
    peft = None
    for name, lora in made.items():
        bank.load(name, lora.contribution())
        (tmp_path / name).mkdir()
        lora.save(tmp_path / name)
        if peft is None:
            peft = PeftModel.from_pretrained(copy.deepcopy(backbone.model), tmp_path / name, adapter_name=name)
        else:
            peft.load_adapter(tmp_path / name, adapter_name=name)
    assert peft is not None
    for width in (1, 7):
        ids_BT = torch.randint(10, 100, (len(NAMES), width), generator=torch.Generator().manual_seed(width))
        with torch.no_grad():
            wanted_BTV = peft.eval()(ids_BT, adapter_names=[name or "__base__" for name in NAMES]).logits
            plain_BTV = backbone.model(ids_BT).logits
        positions_BT = torch.arange(width).expand(len(NAMES), -1)
        causal = torch.ones(width, width, dtype=torch.bool).tril()[None, None]
        with twin.running():
            bare_BTV = twin.logits(twin.states(twin.embeddings(ids_BT), positions_BT, causal))
            with bank.rows(NAMES):
                found_BTV = twin.logits(twin.states(twin.embeddings(ids_BT), positions_BT, causal))
        torch.testing.assert_close(found_BTV, wanted_BTV, atol=1e-4, rtol=1e-4)
        assert torch.equal(found_BTV[[0, 3]], bare_BTV[[0, 3]])
        assert (found_BTV[[1, 2, 4, 5]] - plain_BTV[[1, 2, 4, 5]]).abs().max() > 0.1
    bank.close()
