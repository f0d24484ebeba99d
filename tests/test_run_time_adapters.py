"""Adapters loaded while the service runs: what is served, and how each fault is refused."""

from __future__ import annotations

import json
import os
import struct
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import httpx
import openai
import pytest
import torch
from live_service import Live, live, small
from running_service import client_of, write
from safetensors.torch import load_file, save_file
from small_releases import promote, random_lora, random_thoughts, write_release
from stores import store_at

from adapters.backbone import RAW, REASONER, Backbone
from registry.release import publish
from service.errors import ApiError
from service.run_time_files import Limits, checked_profile

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
MAX_RANK = 8


@pytest.fixture(scope="module")
def allowed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("allowed")


@pytest.fixture(scope="module")
def server(
    allowed: Path, backbone_directory: Path, session_backbone: Backbone, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Live]:
    """law 1 is champion, law 2 is published; `allowed/plain` is a LoRA in PEFT's files."""
    home = tmp_path_factory.mktemp("home")
    tracking = store_at(home)
    for seed in (1, 2):
        write_release(home / f"law-{seed}", session_backbone, random_lora(session_backbone, seed))
        publish(tracking, "law", home / f"law-{seed}")
    promote(tracking, "law", 1)
    put(allowed / "plain", session_backbone)
    settings = small(
        backbone_directory,
        home,
        adapter_directory=allowed,
        max_lora_rank=MAX_RANK,
        max_adapter_bytes=2**20,
        max_named_adapters=3,
    )
    with live(settings) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Live) -> openai.OpenAI:
    return client_of(server)


def put(directory: Path, backbone: Backbone, seed: int = 9) -> None:
    directory.mkdir()
    random_lora(backbone, seed).save(directory)


def load(server: Live, name: str, path: str) -> httpx.Response:
    return httpx.post(f"{server.openai_url}/load_lora_adapter", json={"lora_name": name, "lora_path": path})


def unload(server: Live, name: str) -> httpx.Response:
    return httpx.post(f"{server.openai_url}/unload_lora_adapter", json={"lora_name": name})


def code(answer: httpx.Response) -> str:
    return str(answer.json()["error"]["code"])


def test_a_loaded_adapter_is_listed_with_its_parent_and_answers_under_its_name(
    server: Live, client: openai.OpenAI, base: str
) -> None:
    answer = load(server, "mine", "plain")
    assert (answer.status_code, answer.text) == (200, "Success: LoRA adapter 'mine' added successfully.")
    card = client.models.retrieve("mine").model_dump()
    assert (card["parent"], card["root"]) == (base, "mine")
    assert write(client, "mine") != write(client, base)
    assert unload(server, "mine").status_code == 200
    with pytest.raises(openai.NotFoundError):
        write(client, "mine")


def test_the_bank_is_told_by_the_adapters_name_until_it_is_unloaded(server: Live, client: openai.OpenAI, base: str) -> None:
    def by_model(series: str) -> dict[str, float]:
        lines = httpx.get(f"{server.url}/metrics").text.splitlines()
        told = (line.removeprefix(f'graftline_engine_{series}{{model="').split('"} ') for line in lines)
        return {found[0]: float(found[1]) for found in told if len(found) == 2 and "{" not in found[0]}

    load(server, "banked", "plain")
    assert by_model("resident")["banked"] == 0 and "banked" not in by_model("bank_loads_total")
    write(client, "banked", max_tokens=3)
    write(client, "banked", max_tokens=3)
    assert [by_model(f"bank_{one}_total")["banked"] for one in ("loads", "hits")] == [1, 1]
    assert by_model("resident")["banked"] == 1 and by_model("written_tokens_total")["banked"] == 6
    assert by_model("resident").keys() == {"banked", "law@1"} and by_model("written_tokens_total")[base]
    unload(server, "banked")
    assert "banked" not in {model for one in ("resident", "bank_loads_total", "written_tokens_total") for model in by_model(one)}


def test_a_release_loaded_by_version_answers_as_that_version(server: Live, client: openai.OpenAI) -> None:
    assert load(server, "second", "law@2").status_code == 200
    reply = client.completions.create(model="second", prompt="Add 5.", max_tokens=8)
    assert reply.model == "law@2" and reply.choices[0].text == write(client, "law@2", prompt="Add 5.", max_tokens=8)
    unload(server, "second")


@pytest.mark.parametrize("name", ["law", "plain"])
def test_a_name_that_means_something_already_is_refused(server: Live, base: str, name: str) -> None:
    load(server, "plain", "plain")
    assert [(answer.status_code, code(answer)) for answer in (load(server, name, "plain"), load(server, base, "plain"))] == [
        (400, "name_taken")
    ] * 2
    unload(server, "plain")


def test_what_was_unloaded_is_loaded_again_while_rows_still_run_on_it(server: Live, client: openai.OpenAI) -> None:
    load(server, "busy", "plain")
    alone = write(client, "busy", max_tokens=200)
    with ThreadPoolExecutor(4) as pool:
        streams = [pool.submit(stream_whole, client, "busy") for _ in range(4)]
        ends = time.monotonic() + 10
        while server.parts.engine.stats().running < len(streams) and time.monotonic() < ends:
            time.sleep(0.001)  # a stream that comes between the two calls below would find nothing to answer it
        assert unload(server, "busy").status_code == load(server, "busy", "plain").status_code == 200
        assert {stream.result() for stream in streams} == {alone}
    assert write(client, "busy", max_tokens=200) == alone
    unload(server, "busy")
    server.parts.models.refresh()
    assert not [name for name in server.parts.engine.loaded if name.startswith("busy")]  # type: ignore[attr-defined]


def stream_whole(client: openai.OpenAI, model: str) -> str:
    stream = client.completions.create(
        model=model, prompt="Start with 12. Add 5. What is the result?", max_tokens=200, stream=True
    )
    return "".join(chunk.choices[0].text for chunk in stream)


def test_no_more_adapters_are_loaded_than_the_setting_says(server: Live) -> None:
    for number in range(3):
        assert load(server, f"many-{number}", "plain").status_code == 200
    assert code(load(server, "many-3", "plain")) == "too_many_adapters"
    for number in range(3):
        unload(server, f"many-{number}")


def test_adapters_that_are_loaded_at_one_time_are_counted_too(server: Live) -> None:
    with ThreadPoolExecutor(6) as pool:
        codes = [reply.status_code for reply in pool.map(lambda number: load(server, f"at-once-{number}", "plain"), range(6))]
    for number in range(6):
        unload(server, f"at-once-{number}")
    assert sorted(codes) == [200] * 3 + [409] * 3


def rewritten_header(directory: Path, change: Callable[[dict[str, dict[str, object]]], None]) -> None:
    file = directory / WEIGHTS
    stored = file.read_bytes()
    (length,) = struct.unpack("<Q", stored[:8])
    header = json.loads(stored[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + stored[8 + length :])


def first_a(header: dict[str, dict[str, object]]) -> dict[str, object]:
    return next(entry for name, entry in header.items() if "lora_A" in name)


def claim_four_tebibytes(directory: Path) -> None:
    rewritten_header(directory, lambda header: first_a(header).update(shape=[2**20, 2**20]))


def claim_all_of_it(directory: Path) -> None:
    rewritten_header(directory, lambda header: first_a(header).update(shape=[2**20, 2**20], data_offsets=[0, 2**42]))


def claim_a_long_header(directory: Path) -> None:
    (directory / WEIGHTS).write_bytes(struct.pack("<Q", 2**62) + b"{}")


def cut_short(directory: Path) -> None:
    file = directory / WEIGHTS
    file.write_bytes(file.read_bytes()[:-100])


def edited(directory: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(directory / WEIGHTS)
    change(tensors)
    save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})


def lose_a_pair(directory: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if "layers.1.self_attn.q_proj" in name]:
            del tensors[name]

    edited(directory, change)
    configured(directory, target_modules=["q_proj"])


def lose_one(directory: Path) -> None:
    edited(directory, lambda tensors: tensors.pop(next(name for name in tensors if "lora_B" in name)))


def poison(directory: Path) -> None:
    edited(directory, lambda tensors: tensors[next(iter(tensors))].fill_(float("nan")))


def aim_at_the_embeddings(directory: Path) -> None:
    edited(directory, lambda tensors: tensors.update({"base_model.model.lm_head.lora_A.weight": torch.zeros(4, 32)}))


def widen(directory: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        name = next(name for name in tensors if "lora_A" in name)
        tensors[name] = torch.zeros(tensors[name].shape[0], 33)

    edited(directory, change)


def configured(directory: Path, **changes: object) -> None:
    file = directory / CONFIG
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def pickle_it(directory: Path) -> None:
    (directory / WEIGHTS).rename(directory / "adapter_model.bin")


def grow(directory: Path) -> None:
    edited(directory, lambda tensors: tensors.update(more=torch.zeros(2**19)))


def link_the_weights(directory: Path) -> None:
    outside = directory.parent.parent / f"{directory.name}-outside"
    (directory / WEIGHTS).rename(outside)
    (directory / WEIGHTS).symlink_to(outside)


def misname(directory: Path) -> None:
    def change(header: dict[str, dict[str, object]]) -> None:
        name = next(iter(name for name in header if "lora_A" in name))
        header[name + "\ud800"] = header.pop(name)

    rewritten_header(directory, change)


def make_a_pipe(directory: Path) -> None:
    (directory / WEIGHTS).unlink()
    os.mkfifo(directory / WEIGHTS)


FAULTS: dict[str, tuple[Callable[[Path], object], int, str]] = {
    "four tebibytes": (claim_four_tebibytes, 400, "header_damaged"),
    "an offset of four tebibytes": (claim_all_of_it, 400, "header_damaged"),
    "a header longer than the file": (claim_a_long_header, 400, "header_damaged"),
    "a truncated file": (cut_short, 400, "header_damaged"),
    "a pair that is missing": (lose_a_pair, 400, "tensors_missing"),
    "a B that is missing": (lose_one, 400, "tensors_missing"),
    "not finite": (poison, 400, "weights_not_finite"),
    "another module": (aim_at_the_embeddings, 400, "module_unknown"),
    "another shape": (widen, 400, "shape_differs"),
    "too large a rank": (lambda place: configured(place, r=MAX_RANK + 1), 400, "rank_too_large"),
    "another rank": (lambda place: configured(place, r=3), 400, "rank_differs"),
    "a pattern": (lambda place: configured(place, target_modules="(a+)+$"), 400, "modules_by_pattern"),
    "an excluding pattern": (lambda place: configured(place, exclude_modules="(a+)+$"), 400, "modules_by_pattern"),
    "weights of what is excluded": (lambda place: configured(place, exclude_modules=["q_proj"]), 400, "adapter_refused"),
    "DoRA": (lambda place: configured(place, use_dora=True), 400, "adapter_refused"),
    "another kind": (lambda place: configured(place, peft_type="IA3"), 400, "adapter_refused"),
    "another built-in backbone": (
        lambda place: configured(place, base_model_name_or_path="smollm2-135m"),
        400,
        "backbone_mismatch",
    ),
    "no JSON": (lambda place: (place / CONFIG).write_text("{"), 400, "config_damaged"),
    "JSON without an end": (lambda place: (place / CONFIG).write_text("[" * 10**5), 400, "config_damaged"),
    "layers that are none": (lambda place: configured(place, layers_to_transform=[[1]]), 400, "config_damaged"),
    "an alpha in words": (lambda place: configured(place, lora_alpha="16"), 400, "adapter_refused"),
    "an alpha without bound": (lambda place: configured(place, lora_alpha=float("inf")), 400, "adapter_refused"),
    "a dropout in words": (lambda place: configured(place, lora_dropout="much"), 400, "adapter_refused"),
    "targets that are no names": (lambda place: configured(place, target_modules=[[1]]), 400, "adapter_refused"),
    "a name that is no text": (misname, 400, "module_unknown"),
    "no config": (lambda place: (place / CONFIG).unlink(), 400, "config_missing"),
    "a pickle": (pickle_it, 400, "not_safetensors"),
    "too many bytes": (grow, 413, "adapter_too_large"),
    "a link out of the directory": (link_the_weights, 400, "path_not_allowed"),
    "a pipe": (make_a_pipe, 400, "not_a_file"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_adapter_is_refused_by_its_fault_and_nothing_of_it_is_loaded(
    server: Live, client: openai.OpenAI, allowed: Path, session_backbone: Backbone, base: str, fault: str
) -> None:
    damage, status, expected = FAULTS[fault]
    place = allowed / fault.replace(" ", "-")
    put(place, session_backbone)
    if fault == "a B that is missing":
        configured(place, target_modules="all-linear")
    before = server.parts.engine.loaded  # type: ignore[attr-defined]
    damage(place)
    answer = load(server, "damaged", place.name)
    assert (answer.status_code, code(answer)) == (status, expected), answer.text
    assert str(allowed) not in answer.text and "/tmp" not in answer.text
    assert server.parts.engine.loaded == before  # type: ignore[attr-defined]
    assert "damaged" not in {card.id for card in client.models.list()} and write(client, base)


def test_a_path_with_nul_is_told_so(server: Live) -> None:
    answer = load(server, "damaged", "plain\0")
    assert answer.status_code == 400 and "no character NUL" in answer.text


@pytest.mark.parametrize(
    ("path", "status", "expected"),
    [
        ("../outside", 400, "path_not_allowed"),
        ("plain/../../outside", 400, "path_not_allowed"),
        ("/etc", 400, "path_not_allowed"),
        ("way-out", 400, "path_not_allowed"),
        ("way-out/inner", 400, "path_not_allowed"),
        ("never", 404, "adapter_not_found"),
        (".", 404, "adapter_not_found"),
        ("law@9", 404, "release_not_found"),
        ("never@1", 404, "release_not_found"),
        ("law@candidate", 404, "adapter_not_found"),
    ],
)
def test_no_path_leads_out_of_the_allowed_directory(server: Live, allowed: Path, path: str, status: int, expected: str) -> None:
    if not (allowed / "way-out").is_symlink():
        (allowed / "way-out").symlink_to(allowed.parent)
    answer = load(server, "strange", path)
    assert (answer.status_code, code(answer)) == (status, expected), answer.text
    assert str(allowed) not in answer.text


def test_no_directory_is_the_model_of_a_completion(server: Live, client: openai.OpenAI, allowed: Path) -> None:
    # vLLM's resolver of directories loads whatever path a request names as its model.
    before = server.parts.engine.loaded  # type: ignore[attr-defined]
    for model in ("plain", str(allowed / "plain"), f"../{allowed.name}/plain"):
        with pytest.raises(openai.NotFoundError):
            write(client, model)
    assert server.parts.engine.loaded == before  # type: ignore[attr-defined]


def test_an_absolute_path_inside_the_allowed_directory_is_taken(server: Live, allowed: Path) -> None:
    assert load(server, "absolute", str(allowed / "plain")).status_code == 200
    assert unload(server, "absolute").status_code == 200


def test_an_adapter_that_says_it_is_of_another_backbone_is_refused(
    server: Live, allowed: Path, session_backbone: Backbone
) -> None:
    write_release(allowed / "foreign", session_backbone, random_lora(session_backbone, 3), fingerprint="f" * 64)
    assert code(load(server, "foreign", "foreign")) == "backbone_mismatch"


def test_what_is_no_plain_lora_is_loaded_by_its_release_alone(server: Live, allowed: Path, session_backbone: Backbone) -> None:
    write_release(allowed / "thoughts", session_backbone, random_thoughts(session_backbone, 4))
    assert code(load(server, "thoughts", "thoughts")) == "adapter_not_found"


@pytest.mark.parametrize("name", ["", "a/b", "a@1", " a", "x" * 200, "a\nb"])
def test_a_name_that_could_not_be_asked_for_is_refused(server: Live, name: str) -> None:
    assert load(server, name, "plain").status_code == 400


def test_a_name_that_was_never_loaded_cannot_be_unloaded(server: Live) -> None:
    answer = unload(server, "law")
    assert (answer.status_code, code(answer)) == (404, "adapter_not_found")


def test_a_server_that_is_open_to_everybody_loads_nothing_over_http(tmp_path: Path, backbone_directory: Path) -> None:
    store_at(tmp_path)
    with live(small(backbone_directory, tmp_path, open=True)) as server:
        assert [load(server, "mine", "plain").status_code, unload(server, "mine").status_code] == [403, 403]


@pytest.mark.parametrize("stated", ["meta-llama/Llama-3.2-1B", "/home/somebody/model", "", None, ["smollm2-135m"]], ids=repr)
def test_without_a_manifest_a_hubs_id_or_a_path_proves_nothing(
    stated: object, tmp_path: Path, session_backbone: Backbone
) -> None:
    random_lora(session_backbone, 9).save(tmp_path)
    configured(tmp_path, base_model_name_or_path=stated)
    assert checked_profile(tmp_path, session_backbone, Limits(2**20, MAX_RANK), "plain").adapters


def test_the_two_built_in_backbones_are_told_apart_though_their_shapes_are_equal(
    tmp_path: Path, session_backbone: Backbone
) -> None:
    served = replace(session_backbone, name=REASONER)
    random_lora(session_backbone, 9).save(tmp_path)
    configured(tmp_path, base_model_name_or_path=REASONER)
    assert checked_profile(tmp_path, served, Limits(2**20, MAX_RANK), "plain").adapters
    configured(tmp_path, base_model_name_or_path=RAW)
    with pytest.raises(ApiError, match="'plain' was fitted on 'smollm2-135m' by its adapter_config.json, but this backbone is"):
        checked_profile(tmp_path, served, Limits(2**20, MAX_RANK), "plain")
