"""A bundle is held to recorded inputs and outputs of the shipped model; nothing but the engine is needed."""

from __future__ import annotations

import numpy as np
import pytest
from click.testing import CliRunner

import edgemem
from edgemem.cli import main
from edgemem.errors import EdgememError, VerificationError
from edgemem.precision import Precision
from edgemem.runtimes.recorded import read_recording, replay, write_recording
from tests.handmade import SUMMER, write_summer

ROWS = np.random.default_rng(0).standard_normal((2, 40, 2)).astype(np.float32)
SUMS = np.cumsum(ROWS, axis=1, dtype=np.float64).astype(np.float32)


@pytest.fixture(scope="module")
def summer(tmp_path_factory):
    return write_summer(tmp_path_factory.mktemp("recorded") / "summer")


@pytest.fixture
def recording(tmp_path):
    path = tmp_path / "io.npz"
    write_recording(path, {"features": ROWS, "sums": SUMS})
    return path


def test_the_recording_is_replayed_in_one_call_and_in_steps(summer, recording):
    with edgemem.open(summer) as session:
        found = replay(session, read_recording(recording, SUMMER), Precision())
    assert found.steps == 40
    assert set(found.errors) == {"one call", "stepping"}
    assert all(0 <= error < 1e-5 for error in found.errors.values())


@pytest.mark.parametrize("scale", [1.0, 1e-6])
def test_one_wrong_item_is_found_whatever_its_scale(summer, scale):
    wrong = SUMS * np.float32(scale)
    wrong[1, 17, 0] += np.float32(0.01 * scale)
    with edgemem.open(summer) as session, pytest.raises(VerificationError, match="item 17 of sums differs"):
        replay(session, {"features": ROWS * np.float32(scale), "sums": wrong}, Precision())


def test_fewer_outputs_than_the_bundle_gives_are_refused(summer):
    with edgemem.open(summer) as session, pytest.raises(VerificationError, match=r"gives 40 items of sums, .* has 39"):
        replay(session, {"features": ROWS, "sums": SUMS[:, :39]}, Precision())


def test_a_recording_without_an_array_names_it(tmp_path):
    write_recording(tmp_path / "io.npz", {"features": ROWS, "sum": SUMS})
    with pytest.raises(EdgememError, match="no array 'sums'; it has features, sum"):
        read_recording(tmp_path / "io.npz", SUMMER)
    (tmp_path / "text.npz").write_text("features")
    with pytest.raises(EdgememError, match="is not an"):
        read_recording(tmp_path / "text.npz", SUMMER)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"features": ROWS[0], "sums": SUMS[0]}, r"features is float32 of shape \[40, 2\], wanted numbers \[B, N, 2\]"),
        ({"features": np.float32(1), "sums": SUMS}, r"features is float32 of shape \[\]"),
        ({"features": ROWS[:, :0], "sums": SUMS[:, :0]}, r"features is float32 of shape \[2, 0, 2\]"),
        ({"features": ROWS, "sums": SUMS[:1]}, r"sums is float32 of shape \[1, 40, 2\], wanted numbers \[2, M, 2\]"),
        ({"features": ROWS, "sums": np.full(SUMS.shape, "x")}, r"sums is <U1 of shape"),
    ],
    ids=["no batch", "a number", "no steps", "fewer streams", "text"],
)
def test_arrays_that_do_not_belong_together_are_refused_by_name(tmp_path, arrays, message):
    write_recording(tmp_path / "io.npz", arrays)
    with pytest.raises(EdgememError, match=message):
        read_recording(tmp_path / "io.npz", SUMMER)


def test_the_command_needs_no_torch(summer, recording, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    result = CliRunner().invoke(main, ["check", str(summer), "--recorded", str(recording)])
    assert result.exit_code == 0, result.output
    assert "Equal to io.npz within 1e-04 of each channel's spread" in result.output
