"""Opening: every bundle and machine that cannot work is told so at once, and only the engine asked for is loaded."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest

import edgemem
from edgemem.bundle import Bundle, GraphFile, Manifest, write_bundle
from edgemem.errors import BundleError, ContractError, EdgememError, RuntimeUnavailableError
from tests.runtimes import tiny


def opened(path: Path, **options: Any) -> edgemem.Session:
    return edgemem.open(path, **{"threads": 1, "device": "cpu", **options})


@pytest.fixture
def copy(tokens_bundle: Bundle, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tokens_bundle.path, tmp_path / "copy"))


def test_auto_is_onnxruntime_on_the_cpu_where_there_is_no_gpu(tokens_bundle: Bundle) -> None:
    import onnxruntime

    with edgemem.open(tokens_bundle.path) as session:
        assert session.runtime == "onnxruntime"
        if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            assert session.device == "cpu"
        assert session.bundle.path == tokens_bundle.path
        assert session.fingerprint == tokens_bundle.fingerprint


def test_a_missing_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="does not exist"):
        opened(tmp_path / "none")


def test_a_truncated_graph_is_refused(copy: Path) -> None:
    graph = copy / "model0.onnx"
    graph.write_bytes(graph.read_bytes()[:-10])
    with pytest.raises(BundleError, match="the manifest lists"):
        opened(copy)


def test_a_tampered_graph_is_refused(copy: Path) -> None:
    graph = copy / "model0.onnx"
    data = bytearray(graph.read_bytes())
    data[-1] ^= 1
    graph.write_bytes(data)
    with pytest.raises(BundleError, match="SHA-256"):
        opened(copy)


def test_a_foreign_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps({"format": "something else"}))
    with pytest.raises(BundleError, match="not an edgemem manifest"):
        opened(tmp_path)


def saved(path: Path, model: onnx.ModelProto, **options: Any) -> Path:
    return tiny.save_bundle(path, options.pop("contract", tiny.TOKENS), model, **options).path


def test_a_graph_that_onnxruntime_is_too_old_for_is_refused_with_a_hint(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"(?s)cannot load .*model0.onnx.*\nInstall a newer onnxruntime"):
        opened(saved(tmp_path / "b", tiny.tokens_model(opset=99)))
    model = tiny.tokens_model()
    model.ir_version = 99
    with pytest.raises(BundleError, match="Install a newer onnxruntime"):
        opened(saved(tmp_path / "c", model))


def test_a_file_that_is_no_graph_is_refused(tmp_path: Path) -> None:
    with write_bundle(tmp_path / "b") as writer:
        (writer.folder / "model.onnx").write_bytes(b"\x12\x05hello")  # a protocol buffer without a graph
        writer.finish(Manifest(contract=tiny.TOKENS, graphs=(GraphFile("model.onnx", 1, 4),)))
    with pytest.raises(BundleError, match="cannot load"):
        opened(tmp_path / "b")


def test_a_bundle_with_no_graph_for_one_step_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="wanted at least one graph that takes one time step"):
        opened(saved(tmp_path / "b", tiny.tokens_model(), graphs=[(2, 4)]))


def rename(model: onnx.ModelProto, old: str, new: str) -> None:
    for value in [*model.graph.input, *model.graph.output]:
        value.name = new if value.name == old else value.name
    for node in model.graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
        node.output[:] = [new if name == old else name for name in node.output]


def without_output(model: onnx.ModelProto, name: str) -> None:
    kept = [value for value in model.graph.output if value.name != name]
    del model.graph.output[:]
    model.graph.output.extend(kept)


def unused_input(model: onnx.ModelProto, name: str) -> None:
    model.graph.input.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["B", 3]))


def reshaped(model: onnx.ModelProto, name: str, axis: int, size: int | str) -> None:
    value = next(value for value in [*model.graph.input, *model.graph.output] if value.name == name)
    dimension = value.type.tensor_type.shape.dim[axis]
    dimension.Clear()
    if isinstance(size, int):
        dimension.dim_value = size
    else:
        dimension.dim_param = size


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (
            lambda m: rename(m, "past.1.count.n", "past.1.count.m"),
            r"inputs lack \['past.1.count.n'\] and add \['past.1",
        ),
        (lambda m: without_output(m, "append.0.window.v"), r"outputs lack \['append.0.window.v'\]"),
        (lambda m: unused_input(m, "past.9.extra.x"), r"add \['past.9.extra.x'\]"),
        (
            lambda m: reshaped(m, "past.0.window.k", 2, "W"),
            r"'past.0.window.k' has shape .*, the contract has \[batch, 2, 4",
        ),
        (lambda m: reshaped(m, "tokens", 0, 1), r"input 'tokens' has shape \[1, any\]"),
        (lambda m: m.metadata_props.clear(), "has no edgemem.contract"),
        (lambda m: m.metadata_props.__getitem__(0).__setattr__("value", "{"), "is not JSON"),
    ],
    ids=["renamed", "dropped", "added", "unfixed", "fixed", "bare", "broken"],
)
def test_a_graph_that_breaks_the_contract_is_refused(tmp_path: Path, break_it: Any, message: str) -> None:
    model = tiny.tokens_model()
    break_it(model)
    with pytest.raises(ContractError, match=message):
        opened(saved(tmp_path / "b", model))


def test_a_graph_of_another_contract_is_refused(tmp_path: Path) -> None:
    other = replace(tiny.TOKENS, max_chunk=3)
    with pytest.raises(ContractError, match="has another contract"):
        opened(saved(tmp_path / "b", tiny.tokens_model(), contract=other))


def test_a_state_of_another_dtype_is_refused(tmp_path: Path) -> None:
    states = tuple(replace(s, dtype="int32") if s.name == "1.count.n" else s for s in tiny.TOKENS)
    contract = replace(tiny.TOKENS, states=states)
    model = tiny.tokens_model()
    onnx.helper.set_model_props(model, {"edgemem.contract": json.dumps(contract.to_json())})
    with pytest.raises(ContractError, match=r"input 'past.1.count.n' is int64, the contract has int32"):
        opened(saved(tmp_path / "b", model, contract=contract))


def test_a_graph_that_puts_out_more_than_it_says_fails_and_writes_nowhere(tmp_path: Path) -> None:
    model = tiny.tokens_model()
    node = next(node for node in model.graph.node if "present.0.decayed.m" in node.output)
    node.output[0] = "inner"
    nodes = [
        ("Shape", ["tokens"], "batch and time", {}),
        ("Tile", ["inner", "batch and time"], "longer", {}),  # its size is not known before the run
        ("Concat", ["longer", "inner"], "present.0.decayed.m", {"axis": 1}),
    ]
    model.graph.node.extend(onnx.helper.make_node(op, ins, [out], **more) for op, ins, out, more in nodes)
    reshaped(model, "present.0.decayed.m", 1, "any")
    with opened(saved(tmp_path / "b", model)) as session:
        stream = session.stream()
        before = stream.snapshot()
        for call in (lambda: stream.step(1), lambda: stream.feed([1, 2, 3])):
            with pytest.raises(EdgememError, match="ONNX Runtime failed at position 0"):
                call()
        assert stream.snapshot() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"runtime": "tflite"}, "no runtime 'tflite': there are auto, onnxruntime"),
        ({"device": "tpu"}, "no device 'tpu': there are auto, cpu, cuda"),
        ({"threads": 0}, "threads must be 1 or more, got 0"),
    ],
)
def test_options_that_mean_nothing_are_refused(tokens_bundle: Bundle, options: dict[str, Any], message: str) -> None:
    with pytest.raises(RuntimeUnavailableError, match=message):
        opened(tokens_bundle.path, **options)


def test_cuda_where_there_is_none_is_refused_with_the_package_to_install(
    tokens_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(RuntimeUnavailableError, match=r"(?s)no CUDAExecutionProvider.*edgemem-toolkit\[device-gpu\]"):
        opened(tokens_bundle.path, device="cuda")


def test_a_provider_that_does_not_start_is_an_error_for_cuda_and_the_cpu_for_auto(
    tokens_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    from tests.runtimes.stand_in_cuda import StandIn

    class Fallen(onnxruntime.InferenceSession):  # type: ignore[misc]
        """What onnxruntime-gpu gives where its libraries do not load: a session on the CPU, without an error."""

        def __init__(self, path: str, options: Any, providers: list[Any], **more: Any) -> None:
            super().__init__(path, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    monkeypatch.setattr(onnxruntime, "InferenceSession", Fallen)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", StandIn())
    with pytest.raises(RuntimeUnavailableError, match="could not start CUDAExecutionProvider"):
        opened(tokens_bundle.path, device="cuda")
    with opened(tokens_bundle.path, device="auto") as session:
        assert session.device == "cpu"
        assert session.stream().step(1).shape == (1, tiny.WIDTH + 2)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", StandIn(devices=0))
    with opened(tokens_bundle.path, device="auto") as session:
        assert session.device == "cpu"


PROBE = """
import sys
sys.modules.update(dict.fromkeys({absent!r}))
import edgemem, edgemem.runtimes
engines = {{"torch", "onnx", "onnxruntime", "onnx_ir", "onnxscript", "cuda"}}
print(sorted(engines & {{name for name, module in sys.modules.items() if module}}))
session = edgemem.open(sys.argv[1], threads=1)
stream = session.stream(2)
stream.feed([[1, 2, 3], [4, 5, 6]])
stream.step([1, 2])
stream.fork([1])
stream.restore(stream.snapshot())
stream.reset({reset!r})
print(sorted(engines & {{name for name, module in sys.modules.items() if module}}))
"""


def probe(bundle: Bundle, absent: list[str], reset: int | None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROBE.format(absent=absent, reset=reset), str(bundle.path)],
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("kind", ["tokens_bundle", "growing_bundle"])
def test_the_device_path_imports_neither_torch_nor_onnx(kind: str, request: pytest.FixtureRequest) -> None:
    reset = 1 if kind == "tokens_bundle" else None
    done = probe(request.getfixturevalue(kind), ["torch", "onnx", "onnx_ir", "onnxscript"], reset)
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["[]", "['onnxruntime']"]


def test_without_onnxruntime_the_message_names_the_extra(
    tokens_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RuntimeUnavailableError, match=r'(?s)onnxruntime.*pip install "edgemem-toolkit\[device\]"'):
        opened(tokens_bundle.path)
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(RuntimeUnavailableError, match=r'(?s)onnxruntime.*pip install "edgemem-toolkit\[device\]"'):
        opened(tokens_bundle.path)
