"""The folder that a Triton server reads."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edgemem.bundle import Bundle, open_bundle
from edgemem.errors import ExportError
from edgemem.triton.config import Limits, Word, text
from edgemem.triton.repository import FLAVOURS, write_repository
from tests.handmade import write_summer
from tests.runtimes import tiny
from tests.runtimes.test_rates import START, two_tensor_model

TOKENS_STATE = """\
  state {
    input_name: "past.0.decayed.m"
    output_name: "present.0.decayed.m"
    data_type: TYPE_FP32
    dims: [4]
    initial_state {
      name: "past.0.decayed.m"
      data_type: TYPE_FP32
      dims: [4]
      data_file: "past.0.decayed.m"
    }
  }
"""


@pytest.fixture
def tokens(tmp_path: Path) -> Bundle:
    return tiny.save_bundle(tmp_path / "to kens", tiny.TOKENS, tiny.tokens_model())


def test_every_way_to_serve_a_bundle_is_a_model(tokens: Bundle, tmp_path: Path) -> None:
    served = write_repository(tokens, tmp_path / "models", flavours=FLAVOURS)
    names = [*("to_kens", "to_kens_with_state", "to_kens_onnx", "to_kens_onnx_with_state")]
    names += ["to_kens_tensorrt", "to_kens_tensorrt_with_state"]
    assert [model.name for model in served] == names
    assert [model.holds_state for model in served] == [True, False] * 3
    assert sorted(folder.name for folder in (tmp_path / "models").iterdir()) == sorted(names)
    for name in names:
        config = (tmp_path / "models" / name / "config.pbtxt").read_text()
        assert f'name: "{name}"' in config
    assert open_bundle(tmp_path / "models" / "to_kens" / "1" / "bundle").fingerprint == tokens.fingerprint


def test_first_values_of_states_are_declared_and_written(tokens: Bundle, tmp_path: Path) -> None:
    write_repository(tokens, tmp_path / "models", name="m", flavours=("onnxruntime",))
    config = (tmp_path / "models" / "m_onnx" / "config.pbtxt").read_text()
    assert TOKENS_STATE.replace("[4]", f"[{tiny.WIDTH}]") in config
    assert config.count("zero_data: true") == 5  # rings, counter and position
    written = np.fromfile(tmp_path / "models" / "m_onnx" / "initial_state" / "past.0.decayed.m", np.float32)
    np.testing.assert_array_equal(written, np.full(tiny.WIDTH, 0.5))


def test_first_values_have_the_order_of_the_declared_axes(tmp_path: Path) -> None:
    bundle = tiny.save_bundle(tmp_path / "two", *two_tensor_model())
    write_repository(bundle, tmp_path / "models", flavours=("onnxruntime",))
    written = np.fromfile(tmp_path / "models" / "two_onnx" / "initial_state" / "past.0.sum.s", np.float32)
    np.testing.assert_array_equal(written.reshape(START.shape), START)


def test_states_are_inputs_and_outputs_where_they_travel_and_neither_where_the_server_holds_them(
    tokens: Bundle, tmp_path: Path
) -> None:
    write_repository(tokens, tmp_path / "models", name="m", limits=Limits(batch=4))
    inside = (tmp_path / "models" / "m_onnx" / "config.pbtxt").read_text()
    travels = (tmp_path / "models" / "m_onnx_with_state" / "config.pbtxt").read_text()
    assert travels.count("input {") == 2 + len(tiny.TOKENS.states)  # tokens and the position
    assert travels.count("output {") == 2 + len(tiny.TOKENS.states)
    assert "sequence_batching" not in travels
    assert inside.count("input {") == inside.count("output {") == 1
    assert "max_batch_size: 4\n" in inside
    assert "max_batch_size: 4\n" in travels


def test_a_model_that_edgemem_wrote_is_replaced_and_no_other(tokens: Bundle, tmp_path: Path) -> None:
    write_repository(tokens, tmp_path / "models", name="m", flavours=("python",))
    write_repository(tokens, tmp_path / "models", name="m", flavours=("python",))
    theirs = tmp_path / "models" / "m" / "config.pbtxt"
    theirs.write_text('name: "m"')
    with pytest.raises(ExportError, match="edgemem did not write it"):
        write_repository(tokens, tmp_path / "models", name="m", flavours=("python",))
    assert theirs.read_text() == 'name: "m"'


def test_what_cannot_be_served_is_said(tmp_path: Path) -> None:
    growing = tiny.save_bundle(tmp_path / "growing", tiny.GROWING, tiny.growing_model())
    served = write_repository(growing, tmp_path / "models")
    assert {model.name: bool(model.missing) for model in served} == {
        "growing": True,
        "growing_with_state": False,
        "growing_onnx": True,
        "growing_onnx_with_state": True,
    }
    assert "the state grows" in served[0].missing


def test_text_is_escaped_and_words_are_not() -> None:
    assert text({"a": 'x"\\\n', "b": Word("KIND_CPU"), "c": []}) == 'a: "x\\"\\\\\\n"\nb: KIND_CPU\n'


def test_the_command_line_writes_a_repository(tmp_path: Path) -> None:
    from click.testing import CliRunner

    from edgemem.cli import main

    write_summer(tmp_path / "summer")
    arguments = ["build", str(tmp_path / "summer"), "--target", "triton", "--out", str(tmp_path / "models"), "--json"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert len(json.loads(result.stdout)["models"]) == 6
    without = CliRunner().invoke(main, arguments[:4])
    assert without.exit_code == 2
    assert "--target triton needs --out" in without.output
