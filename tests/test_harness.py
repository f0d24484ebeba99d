"""lm-evaluation-harness over the engine: its requests, against a direct forward, and its tasks, paired item by item."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small_releases import random_lora, write_release
from test_cli import ended

from adapters.backbone import Backbone
from engine.profile import Profile
from engine.torch_engine import TorchEngine
from evaluation.admission import random_update
from evaluation.errors import MissingPackage, UnknownTask, UnreadableFile
from evaluation.harness import evaluate_harness

INSTALLED = importlib.util.find_spec("lm_eval") is not None
CHOICE = """
task: tiny_choice
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: multiple_choice
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_choice: choices
doc_to_target: label
metric_list: [{metric: acc}, {metric: acc_norm}, {metric: mcc}]
"""
WRITTEN = """
task: tiny_written
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: generate_until
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_target: "{{choices[label]}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 6, do_sample: false}
metric_list: [{metric: exact_match}]
"""
ROLLING = """
task: tiny_text
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question}}"
metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]
"""


def test_without_the_package_the_way_out_is_told(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingPackage, match=r"not installed, to read piqa.*graftline\[harness\]"):
        evaluate_harness(TorchEngine(backbone), backbone, None, ["piqa"])


@pytest.mark.slow
@pytest.mark.skipif(not INSTALLED, reason="needs `pip install 'graftline[harness]'`")
@pytest.mark.filterwarnings("ignore")  # of the harness and what it brings along
class TestWithThePackage:
    @pytest.fixture(scope="class")
    def engine(self, session_backbone: Backbone) -> TorchEngine:
        engine = TorchEngine(session_backbone)
        engine.load("noop", Profile((random_update(session_backbone, 0.0),)))
        engine.load("noise", Profile((random_update(session_backbone, 1.0),)))
        return engine

    @pytest.fixture(scope="class")
    def own_tasks(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        folder = tmp_path_factory.mktemp("tasks")
        rows = [
            {"question": f"Start with {n}. Add {n % 7}. What is the result?", "choices": [str(n + n % 7 + d) for d in (0, 1, 5)]}
            for n in range(11, 41)
        ]
        data = [json.dumps({**row, "label": index % 3}) for index, row in enumerate(rows)]
        (folder / "rows.jsonl").write_text("\n".join(data))
        for name, text in (("choice", CHOICE), ("written", WRITTEN), ("text", ROLLING)):
            (folder / f"{name}.yaml").write_text(text.replace("DATA", str(folder / "rows.jsonl")))
        (folder / "away.yaml").write_text(CHOICE.replace("tiny_choice", "tiny_away").replace("DATA", str(folder / "none.jsonl")))
        return folder

    def model(self, engine: TorchEngine, backbone: Backbone, profile: str | None = None) -> Any:
        from evaluation.harness_model import EngineLM

        return EngineLM(engine, backbone, profile)

    def test_loglikelihoods_are_those_of_a_direct_forward(self, engine: TorchEngine, backbone: Backbone) -> None:
        pairs = [
            ("Start with 12. Add 5.", " What is the result?"),
            ("Answer:", " 14"),
            ("Answer: ", "14"),
            ("", "Start with 12."),
        ]
        found = self.model(engine, backbone).loglikelihood(requests(pairs), disable_tqdm=True)
        for (context, continuation), (total, greedy) in zip(pairs, found, strict=True):
            before = backbone.encode(context.rstrip()) or [int(backbone.tokenizer.bos_token_id)]
            whole = backbone.encode(context + continuation) if context else [*before, *backbone.encode(continuation)]
            logprobs = forward(backbone, whole)
            after = list(range(len(before), len(whole)))
            assert total == pytest.approx(sum(float(logprobs[place - 1, whole[place]]) for place in after), abs=1e-4)
            assert greedy == all(int(logprobs[place - 1].argmax()) == whole[place] for place in after)

    def test_what_greedy_decoding_writes_is_called_greedy(self, engine: TorchEngine, backbone: Backbone) -> None:
        prompt = "Start with 12. Add 5."
        whole = backbone.encode(prompt)
        for _ in range(4):
            whole.append(int(forward(backbone, whole)[-1].argmax()))
        ids, model = whole[len(backbone.encode(prompt)) :], self.model(engine, backbone)
        context = backbone.encode(prompt)
        other = [*ids[:3], (ids[3] + 1) % len(backbone.tokenizer)]
        found = model._loglikelihood_tokens([(("", ""), context, ids), (("", ""), context, other), (("", ""), context, ids[:2])])
        assert [greedy for _, greedy in found] == [True, False, True]

    def test_a_rolling_likelihood_counts_every_token_once(self, engine: TorchEngine, backbone: Backbone) -> None:
        text = "Start with 12. Add 5, then take away 3. " * 40  # longer than the context of 512 tokens
        ids, start = backbone.encode(text), int(backbone.tokenizer.bos_token_id)
        limit = backbone.context_length - 1
        assert limit < len(ids) < 2 * limit
        first, last = [start, *ids[:limit]], ids[len(ids) - limit - 1 :]
        total = sum(float(row[token]) for row, token in zip(forward(backbone, first), first[1:], strict=False))
        fresh = len(ids) - limit
        rows = forward(backbone, last)[-1 - fresh : -1]
        total += sum(float(row[token]) for row, token in zip(rows, last[-fresh:], strict=True))
        found = self.model(engine, backbone).loglikelihood_rolling(requests([(text,), ("Add 5.",)]))
        assert found[0] == pytest.approx(total, rel=1e-4) and found[1] > found[0]

    def test_writing_stops_before_the_stop_text_and_at_the_limit(self, engine: TorchEngine, backbone: Backbone) -> None:
        model, prompt = self.model(engine, backbone), "Start with 12."
        (whole,) = model.generate_until(requests([(prompt, {"until": [], "max_gen_toks": 12})]))
        stop = whole[4:6]
        (cut,) = model.generate_until(requests([(prompt, {"until": stop, "max_gen_toks": 12, "do_sample": False})]))
        assert cut == whole.partition(stop)[0] and len(cut) < len(whole)

    def test_a_prompt_that_is_too_long_loses_its_beginning(self, engine: TorchEngine, backbone: Backbone) -> None:
        model, text = self.model(engine, backbone), "Start with 12. Add 5, then take away 3. " * 60
        assert model.generate_until(requests([(text, {"max_gen_toks": 4})]))
        ((total, _),) = model.loglikelihood(requests([(text, "Answer: 14")]), disable_tqdm=True)
        assert total < 0

    @pytest.mark.parametrize("task", ["tiny_choice", "tiny_written", "tiny_text"])
    def test_an_adapter_of_zeros_changes_no_item(
        self, engine: TorchEngine, backbone: Backbone, own_tasks: Path, task: str
    ) -> None:
        for row in evaluate_harness(engine, backbone, "noop", [task], include_path=own_tasks):
            assert (set(row.change.per_item) == {0.0} and row.change.n == 30) or row.not_measurable

    def test_every_metric_of_a_task_is_a_row_and_one_without_a_number_an_item_says_so(
        self, engine: TorchEngine, backbone: Backbone, own_tasks: Path
    ) -> None:
        rows = evaluate_harness(engine, backbone, "noise", ["tiny_choice", "tiny_text"], 12, own_tasks)
        found = {(row.base.task, row.base.measure): row for row in rows}
        assert set(found) == {
            ("tiny_choice", "acc"),
            ("tiny_choice", "acc_norm"),
            ("tiny_choice", "mcc"),
            ("tiny_text", "word_perplexity"),
            ("tiny_text", "bits_per_byte"),
        }
        assert "only one for the whole task" in found["tiny_choice", "mcc"].not_measurable
        moved = found["tiny_text", "word_perplexity"]
        assert moved.adapted.unit == "nats per word" and moved.change.n == 12 and any(moved.change.per_item)
        json.dumps([row.as_dict() for row in rows], allow_nan=False)

    def test_the_accuracy_is_that_of_the_likeliest_choice(self, engine: TorchEngine, backbone: Backbone, own_tasks: Path) -> None:
        rows = evaluate_harness(engine, backbone, None, ["tiny_choice"], include_path=own_tasks)
        accuracy = next(row for row in rows if row.base.measure == "acc")
        for line, value in zip((own_tasks / "rows.jsonl").read_text().splitlines(), accuracy.base.values, strict=True):
            row = json.loads(line)
            before = backbone.encode(f"Question: {row['question']}\nAnswer:")
            sums = []
            for choice in row["choices"]:
                whole = backbone.encode(f"Question: {row['question']}\nAnswer: {choice}")
                logprobs = forward(backbone, whole)
                sums.append(sum(float(logprobs[place - 1, whole[place]]) for place in range(len(before), len(whole))))
            assert value == float(max(sums) == sums[row["label"]])

    def test_an_unknown_task_and_data_that_are_away_are_one_sentence_each(
        self, engine: TorchEngine, backbone: Backbone, own_tasks: Path
    ) -> None:
        with pytest.raises(UnknownTask, match="no task, group or tag 'tiny_chioce'"):
            evaluate_harness(engine, backbone, None, ["tiny_chioce"], include_path=own_tasks)
        with pytest.raises(UnreadableFile, match="The data of tiny_away must be on the hub") as told:
            evaluate_harness(engine, backbone, None, ["tiny_away"], include_path=own_tasks)
        assert "\n" not in str(told.value)

    def test_a_release_is_shown_beside_its_backbone(
        self,
        backbone: Backbone,
        own_tasks: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.setenv("COLUMNS", "200")
        write_release(tmp_path / "one", backbone, random_lora(backbone, 1), domain="icd10-chapter", protected=["grammar"])
        asked = ("evaluate", "one", "--home", "home", "--harness", "tiny_choice,tiny_text", "--limit", "6")
        assert ended((*asked, "--include-path", str(own_tasks), "--json"), tmp_path, monkeypatch) == 0
        told = json.loads(capsys.readouterr().out)
        assert {(row["task"], row["measure"]) for row in told["rows"]} >= {("tiny_choice", "acc"), ("tiny_text", "bits_per_byte")}
        assert {row["n"] for row in told["rows"] if not row["not_measurable"]} == {6}
        assert {len(side) for row in told["rows"] for side in row["items"].values()} == {6}
        assert ended((*asked, "--include-path", str(own_tasks)), tmp_path, monkeypatch) == 0
        assert "tiny_choice" in capsys.readouterr().out


def requests(arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
    """As the harness hands them over: all that is read of one are its arguments."""
    return [SimpleNamespace(args=one) for one in arguments]


def forward(backbone: Backbone, ids: Sequence[int]) -> torch.Tensor:
    """Log-probabilities of the next token at every place, by the model itself."""
    with torch.no_grad():
        return backbone.model(torch.tensor([list(ids)])).logits[0].log_softmax(-1)
