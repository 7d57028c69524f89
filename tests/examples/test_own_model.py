"""Your own modules are exported and streamed like any other."""

from __future__ import annotations

import inspect
from pathlib import Path

import numpy as np
import own_model
import pytest
import torch
from click.testing import CliRunner

import edgemem
from edgemem.cli import main
from edgemem.export import ExportOptions, export_bundle, load_source
from edgemem.protocol import initial_tensors

FACTORIES = ["lstm", "gru", "convolutions", "state_space"]


@pytest.fixture(scope="module", params=FACTORIES)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp("own") / request.param
    arguments = ["export", f"own_model:{request.param}", "--out", str(folder), "--steps", "80"]
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return request.param, folder


def test_an_exported_module_streams_what_torch_computes(exported: tuple[str, Path]) -> None:
    name, bundle = exported
    rows = np.random.default_rng(0).standard_normal((90, 6)).astype(np.float32)
    with edgemem.open(bundle) as session:
        stream = session.stream()
        fed = stream.feed(rows[:50], outputs="all")
        assert fed is not None
        stepped = np.stack([stream.step(row)[0].copy() for row in rows[50:]])
    torch.manual_seed(0)  # as an export does before it calls the factory
    adapter = getattr(own_model, name)().eval()
    with torch.inference_mode():
        whole = adapter(torch.from_numpy(rows)[None], initial_tensors(adapter.contract(), 1))[0][0].numpy()
    np.testing.assert_allclose(np.concatenate([fed[0], stepped]), whole, atol=1e-5)


def test_an_exported_module_runs_on_a_csv_file(exported: tuple[str, Path], tmp_path: Path) -> None:
    rows = tmp_path / "samples.csv"
    np.savetxt(rows, np.ones((5, 6)), delimiter=",")
    result = CliRunner().invoke(main, ["run", str(exported[1]), str(rows)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    predictions = np.array([line.split(",") for line in result.stdout.splitlines()], dtype=np.float64)
    assert predictions.shape == (5, 3)
    assert len(np.unique(predictions, axis=0)) == 5


def test_the_state_space_model_computes_the_recurrence_of_its_docstring() -> None:
    module = own_model.SensorStateSpace()
    x = torch.randn(2, 20, 6, generator=torch.Generator().manual_seed(0))
    h = torch.randn(2, 32, generator=torch.Generator().manual_seed(1))
    outputs, last = module(x, h)
    wanted, decay = [], torch.exp(-module.log_rate.exp())
    for step in module.into(x).unbind(dim=1):
        h = decay * h + step
        wanted.append(module.head(torch.tanh(h)))
    torch.testing.assert_close(outputs, torch.stack(wanted, dim=1))
    torch.testing.assert_close(last, h)


def test_the_encoder_streams_what_torch_computes_from_samples_in_any_pieces(tmp_path: Path) -> None:
    bundle = export_bundle(load_source("own_model:encoder"), tmp_path / "encoder", ExportOptions(steps=20))
    torch.manual_seed(0)  # as an export does before it calls the factory
    module = own_model.SensorEncoder().eval()
    samples = np.random.default_rng(0).standard_normal((90, 6)).astype(np.float32)
    with torch.inference_mode():
        x = {"imu": torch.from_numpy(samples[None, :88]), "place": torch.tensor([2])}
        wanted = {name: value[0].numpy() for name, value in module(x)[0].items()}
    with edgemem.open(bundle.path) as session:
        stream = session.stream(held={"place": 2})
        found = [stream.feed(part, outputs="all") for part in np.split(samples, [1, 10, 15, 60])]
    for name, value in wanted.items():
        np.testing.assert_allclose(np.concatenate([part[name][0] for part in found]), value, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "factory"),
    [
        ("SensorLSTM", "lstm"),
        ("SensorGRU", "gru"),
        ("SensorConvolutions", "convolutions"),
        ("SensorEncoder", "encoder"),
    ],
)
def test_an_ordinary_module_needs_a_dozen_lines_at_most(kind: str, factory: str) -> None:
    asked = [getattr(own_model, factory)]
    asked += [m for name, m in vars(getattr(own_model, kind)).items() if name in ("forward", "initial_state")]
    code = [line for part in asked for line in inspect.getsource(part).splitlines() if line.strip()]
    assert len([line for line in code if not line.strip().startswith('"""')]) <= 12
