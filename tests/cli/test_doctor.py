"""``edgemem doctor``."""

import json
import sys
from pathlib import Path

import onnx
import onnx.parser
import pytest

from edgemem import extras
from edgemem.bundle import open_bundle
from edgemem.cli import doctor_command, trial
from edgemem.cli.doctor_command import Row, examine, run_apart
from edgemem.cli.trial import ONE_OP, Finding, run_trial
from edgemem.contract import METADATA_KEY, Contract, InputSpec, OutputSpec, StateSpec
from edgemem.machine import facts
from edgemem.runtimes import Runtime, known_runtimes, native
from edgemem.runtimes.registry import find_runtime

ONE_OP_GRAPH = """
<ir_version: 8, opset_import: ["" : 17]>
one_op (float[batch, 1, 3] features, float[batch, 1, 3] "past.sum")
    => (float[batch, 1, 3] total, float[batch, 1, 3] "present.sum")
{
    total = Add(features, "past.sum")
    "present.sum" = Add(features, "past.sum")
}
"""


def test_the_bundle_of_one_operator_holds_what_its_source_says():
    bundle = open_bundle(ONE_OP)
    assert bundle.contract == Contract(
        input_specs=(InputSpec("features", (3,)),),
        output_specs=(OutputSpec("total", (3,)),),
        states=(StateSpec("sum", (1, 3)),),
        max_chunk=1,
        position="none",
    )
    (graph,) = bundle.manifest.graphs
    model = onnx.load(ONE_OP / graph.file)
    (kept,) = model.metadata_props
    assert kept.key == METADATA_KEY
    model.ClearField("metadata_props")
    assert model == onnx.parser.parse_model(ONE_OP_GRAPH)


def test_a_runtime_that_works_is_reported_with_its_version_whatever_lies_in_the_current_folder(tmp_path, monkeypatch):
    import onnxruntime

    for name in ("numpy", "onnxruntime", "json", "edgemem"):
        (tmp_path / f"{name}.py").write_text("open('was_run', 'w')")
    monkeypatch.chdir(tmp_path)
    row = examine(find_runtime("onnxruntime"), "cpu")
    assert row == Row("onnxruntime", "cpu", True, onnxruntime.__version__, "ran on cpu")
    assert row.name == "onnxruntime on cpu"
    assert not (tmp_path / "was_run").exists()


def test_the_torch_runtime_gets_the_operator_as_a_module():
    import torch

    assert run_trial(find_runtime("torch"), "cpu") == Finding(True, torch.__version__, "ran on cpu")


def test_wrong_outputs_are_a_failure(monkeypatch):
    from edgemem.runtimes.session import Stream

    step = Stream.step
    monkeypatch.setattr(Stream, "step", lambda stream, x: step(stream, x) * 2)
    found = run_trial(find_runtime("onnxruntime"), "cpu")
    assert not found.works
    assert "expected" in found.detail


@pytest.mark.parametrize("error", [ZeroDivisionError("odd"), MemoryError()])
def test_whatever_an_engine_raises_is_the_finding(monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(trial, "_open", fail)
    found = run_trial(find_runtime("onnxruntime"), "cpu")
    assert (found.works, found.detail) == (False, f"{type(error).__name__}: {error}")


def test_a_package_that_is_not_installed_is_not_tried_and_its_installation_is_named(monkeypatch):
    monkeypatch.setattr(doctor_command, "run_apart", lambda *_: pytest.fail("was run"))
    monkeypatch.setattr(Runtime, "installed", False)
    row = examine(Runtime("x", "onnxruntime", "onnxruntime:open"), "auto")
    assert (row.works, row.detail, row.name) == (False, "not installed", "x")
    assert row.hint == 'pip install "edgemem-toolkit[device]"'


def test_a_runtime_that_is_there_and_does_not_work_explains_why():
    row = examine(find_runtime("onnxruntime"), "cuda")
    assert row.works or ("cuda" in row.detail.lower() and row.hint)


@pytest.mark.parametrize(
    ("code", "detail"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "its process crashed (SIGSEGV)"),
        ("import os; os.abort()", "its process crashed (SIGABRT)"),
        ("raise SystemExit(3)", "its process ended with exit code 3"),
        ("print('{')", "its process ended with exit code 0"),
        ("print('{\"other\": 1}')", "its process ended with exit code 0"),
        ("import time; time.sleep(60)", "no answer within 0.5 s"),
    ],
)
def test_an_engine_that_crashes_or_hangs_is_reported_and_ends_nothing_else(code, detail):
    finding, _ = run_apart((sys.executable, "-c", code), 0.5 if "sleep" in code else 30)
    assert (finding.works, finding.detail) == (False, detail)


def test_what_an_engine_prints_does_no_harm():
    code = (
        "import sys, json; print('banner', 1); print('\\x1b[31m[E] no libcudart\\x1b[0m', file=sys.stderr)\n"
        "print(json.dumps({'works': True, 'version': '1', 'detail': 'd'})); print('bye')"
    )
    finding, log = run_apart((sys.executable, "-c", code), 30)
    assert (finding.works, finding.version, finding.detail, log) == (True, "1", "d", "[E] no libcudart")


def row(works: bool, runtime: str = "engine") -> Row:
    return Row(runtime, "auto", works, "1.0", "detail", "" if works else "pip install engine", "log")


@pytest.mark.parametrize(
    ("rows", "code"),
    [([row(True)], 0), ([row(False)], 1), ([row(False), row(True, "other")], 0)],
)
def test_the_exit_code_tells_whether_any_runtime_works(monkeypatch, invoke, rows, code):
    found = {row.runtime: row for row in rows}
    runtimes = {name: Runtime(name, "numpy", "numpy:array") for name in found}
    monkeypatch.setattr(doctor_command, "known_runtimes", lambda: runtimes)
    monkeypatch.setattr(doctor_command, "examine", lambda runtime, device: found[runtime.name])
    plain = invoke("doctor")
    assert plain.exit_code == code
    assert ("pip install engine" in plain.stdout) == any(not row.works for row in rows)
    assert ("No runtime" in plain.stderr) == (code == 1)
    printed = json.loads(invoke("doctor", "--json").stdout)
    assert printed["works"] == (code == 0)
    assert [entry["works"] for entry in printed["runtimes"]] == [row.works for row in rows]


def test_every_runtime_is_tried_on_every_device_that_it_can_run_on(monkeypatch, invoke):
    tried = []

    def examine(runtime, device):
        tried.append((runtime.name, device))
        return row(True, runtime.name)

    monkeypatch.setattr(doctor_command, "examine", examine)
    invoke("doctor")
    assert tried == [(runtime.name, device) for runtime in known_runtimes().values() for device in runtime.devices]
    assert {("onnxruntime", "cpu"), ("onnxruntime", "cuda"), ("tensorrt-rtx", "cuda"), ("torch", "cpu")} <= set(tried)


def test_the_machine_is_described(monkeypatch, invoke):
    monkeypatch.setattr(doctor_command, "known_runtimes", lambda: {})
    monkeypatch.setattr(facts, "board", lambda: "NVIDIA Jetson Orin Nano")
    machine = json.loads(invoke("doctor", "--json").stdout)["machine"]
    assert machine["python"] == ".".join(map(str, sys.version_info[:3]))
    assert machine["board"] == "NVIDIA Jetson Orin Nano"
    assert 1 <= machine["usable_cores"] <= machine["cores"]
    assert machine["memory_bytes"] > 1 << 28
    plain = invoke("doctor")
    assert "NVIDIA Jetson Orin Nano" in plain.stdout


def test_gpus_are_those_that_nvidia_smi_reports(monkeypatch, tmp_path):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA X, 8192 MiB, 570.1'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert doctor_command.gpus() == ["NVIDIA X, 8192 MiB, 570.1"]
    tool.write_text("#!/bin/sh\necho 'no driver'\nexit 9\n")
    assert doctor_command.gpus() == []
    monkeypatch.setenv("PATH", "")
    assert doctor_command.gpus() == []


def test_it_says_which_native_operators_run_or_why_none_do_and_what_that_costs(monkeypatch):
    monkeypatch.setattr(doctor_command.native, "find", lambda: native.Found(Path("library.so"), "avx2", ""))
    assert doctor_command.machine_facts()["native_operators"] == "avx2"
    monkeypatch.setattr(doctor_command.native, "find", lambda: native.Found(None, "", "no compiler was found"))
    assert doctor_command.machine_facts()["native_operators"] == (
        "none: no compiler was found. Without them a step on the CPU takes up to twice as long."
    )


@pytest.fixture
def without_trials(monkeypatch):
    hint = 'pip uninstall onnxruntime; pip install "edgemem-toolkit[device-gpu]"'
    long = Row("onnxruntime-tensorrt", "cuda", False, "1.32.0", "this ONNX Runtime has no such provider, " * 4, hint)
    monkeypatch.setattr(doctor_command, "_trials", lambda: [(find_runtime("onnxruntime"), "cpu")])
    monkeypatch.setattr(doctor_command, "examine", lambda *_: long)


@pytest.mark.usefixtures("without_trials")
def test_everything_fits_80_columns(monkeypatch, invoke):
    monkeypatch.setattr(doctor_command, "foreign_version", lambda: "0.1.3")
    monkeypatch.setattr(extras, "is_installed", lambda module: module == "onnxruntime")  # so that many are missing
    lines = invoke("doctor").stdout.splitlines()
    assert [line for line in lines if len(line.rstrip()) > 80] == []
    assert any("this ONNX Runtime has no such provider" in line for line in lines)


@pytest.mark.usefixtures("without_trials")
def test_every_capability_is_listed_with_the_extra_that_brings_it(monkeypatch, invoke):
    monkeypatch.setattr(extras, "is_installed", lambda module: module not in ("soxr", "matplotlib", "jinja2"))
    printed = " ".join(invoke("doctor").stdout.split())
    assert "audio files, other rates no [audio] soxr" in printed
    assert "pages of bench no [report] all of it" in printed
    assert "export, adopt, check yes [export]" in printed
    shown = json.loads(invoke("doctor", "--json").stdout)["capabilities"]
    assert [each["missing"] for each in shown if each["extra"] == "audio"] == [["soxr"]]


@pytest.mark.usefixtures("without_trials")
def test_another_projects_package_is_named_with_the_way_out(monkeypatch, invoke):
    monkeypatch.setattr(doctor_command, "foreign_version", lambda: "0.1.3")
    printed = invoke("doctor").stdout
    assert "edgemem 0.1.3 is installed" in printed
    assert "pip uninstall edgemem\n" in printed
    assert json.loads(invoke("doctor", "--json").stdout)["machine"]["foreign_package"] == "0.1.3"
    monkeypatch.setattr(doctor_command, "foreign_version", lambda: None)
    assert "Warning" not in invoke("doctor").stdout
