"""edgemem beside its peers: the logits agree before anything is measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from edgemem.bench.measure import silent
from tests.benchmarks.conftest import loaded


@pytest.fixture(scope="module")
def peers(figures: ModuleType) -> ModuleType:
    loaded("gguf_files")
    return loaded("peers")


@pytest.mark.long
def test_a_step_is_measured_beside_genai(peers: ModuleType, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime_genai")
    setting = replace(peers.SETTINGS[0], prompt=20)
    figure, *_ = peers.compared(peers.checkpoint(tmp_path / "checkpoint", "llama"), tmp_path, setting, 2, silent)
    assert figure.key == "llama_f32_over_genai"
    assert figure.value > 0


def test_every_figure_has_a_setting_of_its_own(peers: ModuleType) -> None:
    assert len({setting.name for setting in peers.SETTINGS}) == len(peers.SETTINGS)
