"""``edgemem doctor``."""

import json
import sys

import numpy as np
import onnx
import onnx.parser
import onnx.reference
import pytest

from edgemem.cli import doctor_command
from edgemem.cli.doctor_command import Row, examine, run_apart
from edgemem.cli.probes import PROBES, Probe, one_op_model
from edgemem.machine import facts

PROBE = {probe.name: probe for probe in PROBES}


def test_the_one_op_model_is_what_its_generator_writes():
    text = '<ir_version: 8, opset_import: ["" : 17]> one_op (float[3] x) => (float[3] y) { y = Add(x, x) }'
    assert onnx.load_from_string(one_op_model()) == onnx.parser.parse_model(text)
    x = np.array([1, 2, 3], dtype=np.float32)
    np.testing.assert_array_equal(onnx.reference.ReferenceEvaluator(one_op_model()).run(None, {"x": x})[0], x + x)


def test_an_engine_that_works_is_shown_to_work_with_its_version():
    import onnxruntime

    row = examine(PROBE["onnxruntime CPU"])
    assert row == Row(
        "onnxruntime CPU",
        True,
        onnxruntime.__version__,
        "CPUExecutionProvider",
        "--runtime onnxruntime --device cpu",
        None,
    )


def test_a_module_that_is_not_there_is_not_run_and_its_installation_is_named():
    probe = Probe("x", "no_such_module_here", "", "pip install x", lambda: pytest.fail("was run"))
    row = examine(probe)
    assert (row.works, row.detail, row.install) == (False, "not installed", "pip install x")


def test_an_engine_that_is_there_and_does_not_work_says_why():
    import onnxruntime

    row = examine(PROBE["onnxruntime CUDA"])
    built_for_cuda = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    assert row.works or "CUDAExecutionProvider" in row.detail
    assert built_for_cuda == (row.install is None)


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
def test_an_engine_that_crashes_or_hangs_is_a_row_and_not_the_end(code, detail):
    finding, _ = run_apart((sys.executable, "-c", code), 0.5 if "sleep" in code else 30)
    assert (finding.works, finding.detail) == (False, detail)


def test_what_an_engine_prints_does_not_get_in_the_way():
    code = (
        "import sys, json; print('banner', 1); print('\\x1b[31m[E] no libcudart\\x1b[0m', file=sys.stderr)\n"
        "print(json.dumps({'works': True, 'version': '1', 'detail': 'd'})); print('bye')"
    )
    finding, log = run_apart((sys.executable, "-c", code), 30)
    assert (finding.works, finding.version, finding.detail, log) == (True, "1", "d", "[E] no libcudart")


def row(works: bool, used_by: str) -> Row:
    return Row("engine", works, "1.0", "detail", used_by, None if works else "pip install engine", "log")


@pytest.mark.parametrize(
    ("rows", "code"),
    [
        ([row(True, "--runtime engine")], 0),
        ([row(False, "--runtime engine")], 1),
        ([row(False, "--runtime engine"), row(True, "--runtime engine")], 0),
        ([row(True, "")], 1),  # edgemem does not drive it
    ],
)
def test_the_exit_code_says_whether_edgemem_can_run_anything(monkeypatch, invoke, rows, code):
    found = iter(rows * 2)
    monkeypatch.setattr(doctor_command, "PROBES", rows)
    monkeypatch.setattr(doctor_command, "examine", lambda probe: next(found))
    plain = invoke("doctor")
    assert plain.exit_code == code
    assert ("pip install engine" in plain.stdout) == any(not row.works for row in rows)
    assert ("No runtime" in plain.stderr) == (code == 1)
    said = json.loads(invoke("doctor", "--json").stdout)
    assert said["works"] == (code == 0)
    assert [entry["works"] for entry in said["runtimes"]] == [row.works for row in rows]


def test_the_machine_is_described(monkeypatch, invoke):
    monkeypatch.setattr(doctor_command, "PROBES", (PROBE["onnxruntime CPU"],))
    monkeypatch.setattr(facts, "board", lambda: "NVIDIA Jetson Orin Nano")
    machine = json.loads(invoke("doctor", "--json").stdout)["machine"]
    assert machine["python"] == ".".join(map(str, sys.version_info[:3]))
    assert machine["board"] == "NVIDIA Jetson Orin Nano"
    assert 1 <= machine["usable_cores"] <= machine["cores"]
    assert machine["memory_bytes"] > 1 << 28
    plain = invoke("doctor")
    assert "NVIDIA Jetson Orin Nano" in plain.stdout


def test_on_a_jetson_tensorrt_comes_with_the_system(monkeypatch):
    missing = Probe("tensorrt", "no_such_module_here", "", "pip install x", lambda: "")
    assert examine(missing).install == "pip install x"
    monkeypatch.setattr(facts, "board", lambda: "NVIDIA Jetson Orin Nano")
    assert "apt install" in (examine(missing).install or "")


def test_gpus_are_those_that_the_drivers_tool_reports(monkeypatch, tmp_path):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA X, 8192 MiB, 570.1'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert doctor_command.gpus() == ["NVIDIA X, 8192 MiB, 570.1"]
    tool.write_text("#!/bin/sh\necho 'no driver'\nexit 9\n")
    assert doctor_command.gpus() == []
    monkeypatch.setenv("PATH", "")
    assert doctor_command.gpus() == []
