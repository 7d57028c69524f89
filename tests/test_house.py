"""How the code is laid out: which package may import which, how long files and functions are, what is exported."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys

import pytest

from tests import house

LAYERS: tuple[tuple[str, ...], ...] = (
    ("errors", "extras", "leftovers", "wording"),
    ("console", "dtypes", "external_data", "files", "mappings", "overrides", "plugins", "reading", "unchanged"),
    ("audio", "versioned", "weights_file", "wire"),
    ("contract", "generation_defaults"),
    ("decoder_config", "evidence", "precision"),
    ("manifest", "measure"),
    ("bundle",),
    ("machine",),
    # These need torch.
    ("origins", "memories"),
    ("protocol",),
    ("streaming", "models"),
    # Only the torch runtime imports what needs torch.
    ("runtimes",),
    ("edgemem",),
    ("text",),
    ("adopt",),
    ("export", "triton"),
    ("bench", "client"),
    ("serve",),
    ("cli",),
    ("__main__",),
)
"""A part of edgemem may import only parts of the rows above its own. ``"edgemem"`` is ``edgemem/__init__.py``."""

# What is not as it should be yet. An entry that is no longer needed must be removed.
CYCLES_LEFT: list[set[str]] = []
IMPORTS_LEFT = set[tuple[str, str]]()
LONG_FILES: set[str] = set()
LONG_FUNCTIONS: set[str] = set()

EXPORTED = {
    "edgemem": [
        *("Bundle", "Contract", "EdgememError", "InputSpec", "OutputSpec", "Session", "StateSpec", "Stream"),
        *("open", "open_bundle"),
    ],
    "edgemem.adopt": ["AdoptOptions", "Pair", "Proposal", "adopt", "propose", "recheck"],
    "edgemem.client": ["RemoteStream", "connect"],
    "edgemem.contract": [
        *("METADATA_KEY", "OUTPUT_INDICES", "POSITION", "Axis", "BackEnd", "Contract", "FoundTensor", "Framing"),
        *("FrontEnd", "InputSpec", "OutputSpec", "OverlapAdd", "Role", "Sizes", "StateSpec", "Stft", "TensorSpec"),
        *("Times", "UpdateRule", "difference", "initial_bytes", "initial_state"),
    ],
    "edgemem.runtimes": ["DEVICES", "Runtime", "Session", "Stream", "known_runtimes", "open"],
    "edgemem.runtimes.pool": ["Outcome", "Pool", "PoolFutures", "PoolStats", "PoolStream", "parts_soon"],
    "edgemem.export": [
        *("CheckReport", "ExportOptions", "Source", "check", "discover", "export_bundle", "from_config", "from_module"),
        *("Upgrade", "growing_twin", "load_source", "source_of", "upgrade"),
    ],
    "edgemem.export.hf": ["load"],
    "edgemem.memories": [
        *("MEMORIES", "About", "Attention", "Chunk", "Clock", "Dims", "LoneSummaryWarning", "MatrixMemory", "Memory"),
        *("RecurrentMemory", "SlotMemory", "Slots", "known_memories", "register_memory"),
    ],
    "edgemem.models": ["Decoder", "DecoderConfig", "load_checkpoint", "save_checkpoint"],
    "edgemem.serve": ["Host", "ServeOptions", "build_app", "serve"],
    "edgemem.streaming": ["CausalConv1d", "Streaming"],
    "edgemem.text": [
        *("ByteTokenizer", "ChatTemplate", "Conversation", "Detokenizer", "Generation", "JsonTokenizer", "Piece"),
        *("Sampler", "Score", "StopText", "Tokenizer", "generate", "open_chat_template", "open_tokenizer"),
        "score_text",
    ],
}
DEVICE = (
    *("edgemem", "edgemem.runtimes", "edgemem.text", "edgemem.machine.facts", "edgemem.machine.huge_pages"),
    *("edgemem.runtimes.ort.engine", "edgemem.runtimes.stream", "edgemem.runtimes.cuda"),
    "edgemem.runtimes.trt.session",
    *("edgemem.cli", "edgemem.cli.run_command", "edgemem.cli.doctor_command", "edgemem.cli.inspect_command"),
    "edgemem.cli.choose_command",
    *("edgemem.cli.bench_command", "edgemem.cli.build_command"),
)
"""Modules that a device imports."""


def test_nothing_imports_in_a_circle():
    found = [sorted(cycle) for cycle in house.cycles()]
    assert sorted(found) == sorted(map(sorted, CYCLES_LEFT))


def test_imports_go_to_lower_layers_only():
    rank = {part: row for row, parts in enumerate(LAYERS) for part in parts}
    wrong = set()
    for importer, targets in house.imports().items():
        for target in targets:
            here, there = part_of(importer), part_of(target)
            assert here in rank, f"{importer}: add {here!r} to LAYERS"
            if here != there and rank[there] >= rank[here]:
                wrong.add((importer, target))
    assert wrong == IMPORTS_LEFT


def part_of(module: str) -> str:
    """The file or folder of ``edgemem/`` that a module belongs to."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else parts[0]


def test_every_layer_exists():
    assert {part for parts in LAYERS for part in parts} - {part_of(name) for name in house.modules()} <= {"dtypes"}


def test_files_are_short():
    assert set(house.long_files(400)) == LONG_FILES


def test_functions_are_short():
    assert set(house.long_functions(40)) == LONG_FUNCTIONS


@pytest.mark.parametrize("module", EXPORTED)
def test_a_package_exports_exactly_these_names(module):
    package = importlib.import_module(module)
    assert sorted(package.__all__) == sorted(EXPORTED[module])
    for name in package.__all__:
        assert hasattr(package, name), name


def test_every_package_that_exports_names_is_listed():
    packages = [name for name, path in house.modules().items() if path.name == "__init__.py"]
    exporting = {name for name in packages if "__all__" in house.modules()[name].read_text(encoding="utf-8")}
    assert exporting == set(EXPORTED)


def test_a_device_loads_neither_torch_nor_onnx():
    code = (
        "import sys, json, importlib\n"
        f"for name in {DEVICE}: importlib.import_module(name)\n"
        "heavy = {'torch', 'onnx', 'onnx_ir', 'onnxscript', 'transformers', 'matplotlib', 'edgemem.export'}\n"
        "print(json.dumps(sorted(heavy & set(sys.modules))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []


def test_the_reader_sees_an_import_in_a_function_and_not_one_for_type_checkers():
    imports = house.imports()
    assert "edgemem.models.decoder" in imports["edgemem.runtimes.torch_reference"]
    assert "edgemem.export.hf" in imports["edgemem.export.load"]
    assert not any(name.startswith("edgemem.export") for name in imports["edgemem.machine.paging"])
