"""``edgemem inspect``."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgemem.bundle import GraphFile, Manifest, open_bundle, write_bundle
from edgemem.cli.description import CONTEXTS, describe, kind_of_state, state_bytes_by_context
from edgemem.contract import Contract, InputSpec, OutputSpec, StateSpec, initial_bytes
from edgemem.decoder_config import DecoderConfig
from edgemem.generation_defaults import GenerationDefaults
from edgemem.manifest import SourceInfo
from tests.handmade import RECITER, SUMMER, SUMMER_GRAPH, write_graph, write_token_reciter

MODEL = DecoderConfig(
    d_model=999, layers=2, heads=8, kv_heads=4, head_dim=16, vocab_size=256, memory=[{"type": "window", "window": 256}]
)


def contract_of(*states: StateSpec) -> Contract:
    return Contract((InputSpec("tokens", (), "int64", 256),), (OutputSpec("logits", (256,)),), states, max_chunk=8)


HYBRID = contract_of(
    *(StateSpec(f"{layer}.window.{tensor}", (4, 256, 16), update="append") for layer in "01" for tensor in "kv"),
    *(StateSpec(f"{layer}.cumulative.mean", (4, 32)) for layer in "01"),
    StateSpec("0.clock.count", (), "int64"),
)


def test_everything_in_the_contract_and_the_manifest_is_shown(reciter, invoke):
    result = invoke("inspect", reciter)
    assert (result.exit_code, result.stderr) == (0, "")
    bundle = open_bundle(reciter)
    shown = ["factory, reciter", "UTF-8 bytes", "tokens int64 [batch, time], ids 0 to 255", "model.onnx", "1 to 16"]
    shown += ["logits float32 [batch, time, 256]", "0.sum.total", "[batch, 1]", "replace", bundle.fingerprint]
    shown += [sha for sha, _ in bundle.manifest.files.values()]
    for text in shown:
        assert text in result.stdout, text


def test_whether_the_manifest_has_a_digest_is_shown(summer, invoke):
    old = Path(__file__).parents[1] / "data" / "version1" / "tokens"
    assert re.search("manifest's digest +none: version 1", invoke("inspect", old).stdout)
    assert json.loads(invoke("inspect", old, "--json").stdout)["manifest_digest"] is None
    digest = json.loads((summer / "manifest.json").read_text())["digest"]
    assert re.search(f"manifest's digest +{digest}", invoke("inspect", summer).stdout)


def test_the_chat_template_and_the_defaults_for_generating_text_are_shown(tmp_path, invoke):
    files = {"tokenizer.json": "{}", "chat_template.jinja": "{{ bos_token }}"}
    defaults = GenerationDefaults((2, 7), temperature=0.6, ignored=("num_beams",))
    bundle = write_token_reciter(
        tmp_path / "bundle", [1], 9, files, special_tokens={"bos_token": "<s>"}, generation=defaults
    )
    shown = invoke("inspect", bundle).stdout
    for line in ("chat template +chat_template.jinja", "eos_token_ids +2, 7", "temperature +0.6", "ignored +num_beams"):
        assert re.search(line, shown), line
    facts = json.loads(invoke("inspect", bundle, "--json").stdout)
    assert facts["chat_template"] == "chat_template.jinja"
    assert facts["special_tokens"] == {"bos_token": "<s>"}
    assert facts["generation"] == {"eos_token_ids": [2, 7], "temperature": 0.6, "ignored": ["num_beams"]}


def test_the_sample_rate_of_audio_is_shown(tmp_path, invoke):
    contract = replace(SUMMER, input_specs=(replace(SUMMER.input, sample_rate_hz=16_000),))
    bundle = write_graph(tmp_path / "audio", SUMMER_GRAPH, contract, {})
    assert "features float32 [batch, time, 2], 16,000 Hz" in invoke("inspect", bundle).stdout
    assert json.loads(invoke("inspect", bundle, "--json").stdout)["inputs"][0]["sample_rate_hz"] == 16_000


def test_json_agrees_with_the_bundle(summer, invoke):
    facts = json.loads(invoke("inspect", summer, "--json").stdout)
    size = (summer / "model.onnx").stat().st_size
    assert facts["totals"] == {"state_bytes": 8, "weights_bytes": 0, "graph_bytes": size, "bundle_bytes": size}
    given = {"name": "features", "dtype": "float32", "shape": ["batch", "time", 2]}
    assert facts["inputs"] == [{**given, "role": "data", "takes": 1, "vocab_size": None, "sample_rate_hz": None}]
    assert facts["outputs"] == [{"name": "sums", "dtype": "float32", "shape": ["batch", "time", 2], "gives": 1}]
    assert facts["states"] == [
        {
            "name": "0.sum.total",
            "shape": ["batch", 2],
            "dtype": "float32",
            "update": "replace",
            "initial": 0.0,
            "bytes": 8,
        }
    ]
    assert facts["fingerprint"] == open_bundle(summer).fingerprint
    assert facts["max_chunk"] == SUMMER.max_chunk


def test_what_the_export_measured_and_two_graphs_and_random_weights_are_shown(tmp_path, invoke):
    with write_bundle(tmp_path / "bundle") as writer:
        for name in ("step.onnx", "chunk.onnx"):
            onnx.save(onnx.ModelProto(), writer.folder / name)
        (writer.folder / "weights.safetensors").write_bytes(bytes(3 << 20))
        graphs = (GraphFile("step.onnx", 1, 1), GraphFile("chunk.onnx", 2, 8))
        verification = {"largest_difference": 1.25e-06, "steps": 600, "far": {"1000": 2.5e-07, "2000": 3e-07}}
        source = SourceInfo("config", "tiny.json", random_weights=True, stored_dtype="bfloat16")
        writer.finish(Manifest(RECITER, graphs, source=source, verification=verification, versions={"torch": "2.13.0"}))
    lines = [line.split() for line in invoke("inspect", tmp_path / "bundle").stdout.splitlines()]
    for line in (
        ["largest_difference", "1.25e-06"],
        ["steps", "600"],
        ["far", "1000:", "2.5e-07,", "2000:", "3e-07"],
        ["torch", "2.13.0"],
        ["source", "config,", "tiny.json,", "random", "weights,", "stored", "in", "bfloat16"],
        ["weights", "3", "MiB"],
    ):
        assert line in lines
    shown = {line[0]: line[2:-1] for line in lines if line and line[0].endswith(".onnx")}
    assert shown == {"step.onnx": ["T", "=", "1"], "chunk.onnx": ["T", "=", "2", "to", "8"]}


def test_every_input_and_output_and_the_axes_of_states_are_shown(tmp_path, invoke):
    contract = Contract(
        input_specs=(
            InputSpec("samples", (), takes=512),
            InputSpec("speaker", (16,), role="held"),
            InputSpec("rate", (), "int64", role="fixed", value=16000),
        ),
        output_specs=(OutputSpec("speech", (1,)), OutputSpec("energy", ())),
        states=(StateSpec("conv", (4, 8), batch_axis=1, initial=initial_bytes(np.ones((4, 8)), "float32")),),
        position="none",
    )
    with write_bundle(tmp_path / "bundle") as writer:
        onnx.save(onnx.ModelProto(), writer.folder / "model.onnx")
        writer.finish(Manifest(contract, (GraphFile("model.onnx", 1, 256),)))
    facts = json.loads(invoke("inspect", tmp_path / "bundle", "--json").stdout)
    assert [(t["name"], t["role"], t["shape"]) for t in facts["inputs"]] == [
        ("samples", "data", ["batch", "512 * time"]),
        ("speaker", "held", ["batch", 16]),
        ("rate", "fixed", []),
    ]
    assert [(t["name"], t["shape"]) for t in facts["outputs"]] == [
        ("speech", ["batch", "time", 1]),
        ("energy", ["batch", "time"]),
    ]
    assert facts["states"][0]["shape"] == [4, "batch", 8]
    shown = " ".join(invoke("inspect", tmp_path / "bundle").stdout.split())
    assert "samples float32 [batch, 512 * time]; speaker float32 [batch, 16], held; rate int64 [], fixed" in shown
    assert "conv [4, batch, 8] float32 replace a tensor 128" in shown


def test_state_bytes_are_constant_for_fixed_memories_and_grow_for_a_kv_cache():
    memory = state_bytes_by_context(HYBRID, MODEL)
    assert memory["kinds"] == {
        "window": [4 * 4 * 256 * 16 * 4] * len(CONTEXTS),
        "cumulative": [2 * 4 * 32 * 4] * len(CONTEXTS),
        "clock": [8] * len(CONTEXTS),
    }
    assert memory["total"] == [HYBRID.state_bytes] * len(CONTEXTS)
    per_step = 2 * 2 * 4 * 16 * 4  # keys and values, layers, heads, width, bytes
    assert memory["kv_cache"] == [per_step * context for context in CONTEXTS]


def test_the_kv_cache_has_the_dtype_of_the_window():
    states = [StateSpec(state.name, state.shape, "float16", state.update) for state in HYBRID]
    halved = state_bytes_by_context(contract_of(*states), MODEL)["kv_cache"]
    assert [2 * size for size in halved] == state_bytes_by_context(HYBRID, MODEL)["kv_cache"]


def test_the_kv_cache_of_layers_that_share_is_that_of_one():
    shared = replace(MODEL, share_with=[None, *[0] * (MODEL.layers - 1)])
    whole, halved = (state_bytes_by_context(HYBRID, model)["kv_cache"] for model in (MODEL, shared))
    assert [MODEL.layers * size for size in halved] == whole
    assert MODEL.layers > 1


def test_the_growing_cache_of_a_model_is_as_large_as_the_kv_cache_beside_it():
    states = [StateSpec(f"{layer}.full.{tensor}", (4, None, 16)) for layer in "01" for tensor in "kv"]
    memory = state_bytes_by_context(contract_of(*states), MODEL)
    assert memory["kinds"]["full"] == memory["total"] == memory["kv_cache"]


@pytest.mark.parametrize("model", [replace(MODEL, kv_heads=None, heads=4), replace(MODEL, head_dim=None, d_model=128)])
def test_sizes_that_a_configuration_leaves_open_are_derived(model):
    assert state_bytes_by_context(HYBRID, model)["kv_cache"] == state_bytes_by_context(HYBRID, MODEL)["kv_cache"]


def test_without_a_decoders_configuration_the_reason_is_given():
    memory = state_bytes_by_context(HYBRID, None)
    assert memory["kv_cache"] is None
    assert memory["kv_cache_skipped"]


@pytest.mark.parametrize(
    ("name", "kind"),
    [("0.window.k", "window"), ("3.a.b.c", "a.b"), ("lstm.h", "lstm"), ("position", "position")],
)
def test_states_are_grouped_by_the_memory_in_their_name(name, kind):
    assert kind_of_state(name) == kind


def test_a_damaged_bundle_is_an_error(invoke, tmp_path, summer):
    (tmp_path / "manifest.json").write_bytes((summer / "manifest.json").read_bytes())
    (tmp_path / "model.onnx").write_bytes((summer / "model.onnx").read_bytes()[:-1] + b"?")
    for arguments in ((), ("--json",)):
        result = invoke("inspect", tmp_path, *arguments)
        assert (result.exit_code, result.stdout) == (1, "")
        assert "SHA-256" in result.stderr


def test_describe_holds_plain_json_values(summer):
    facts = describe(open_bundle(summer))
    assert json.loads(json.dumps(facts)) == facts
