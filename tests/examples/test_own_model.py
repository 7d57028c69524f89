"""A module of one's own is exported and streamed like any other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from own_model import create

import edgemem
from edgemem.cli import main


@pytest.fixture
def bundle(in_examples: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "own"
    result = CliRunner().invoke(main, ["export", "own_model:create", "--out", str(folder)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return folder


def test_the_exported_gru_streams_what_torch_computes(bundle: Path) -> None:
    with edgemem.open(bundle) as session:
        stream = session.stream()
        rows = np.random.default_rng(0).standard_normal((40, *session.contract.input.shape)).astype(np.float32)
        fed = stream.feed(rows[:17], outputs="all")
        assert fed is not None
        stepped = np.stack([stream.step(row)[0].copy() for row in rows[17:]])
    torch.manual_seed(0)  # as an export does before it calls the factory
    model = create().eval()
    start = {"gru.hidden": torch.zeros(1, model.gru.num_layers, model.gru.hidden_size)}
    with torch.inference_mode():
        whole = model(torch.from_numpy(rows)[None], start)[0][0].numpy()
    np.testing.assert_allclose(np.concatenate([fed[0], stepped]), whole, atol=1e-5)


def test_the_exported_gru_runs_on_a_csv_file(bundle: Path, tmp_path: Path) -> None:
    rows = tmp_path / "samples.csv"
    np.savetxt(rows, np.zeros((5, 6)), delimiter=",")
    result = CliRunner().invoke(main, ["run", str(bundle), str(rows)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert len(result.stdout.splitlines()) == 5
