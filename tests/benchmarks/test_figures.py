"""The table of figures: what is reached, what is not, and that its measurements run on any bundle."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
from click.testing import CliRunner

import edgemem
from edgemem.bench.measure import silent
from edgemem.bench.statistics import Interval
from edgemem.bundle import Bundle
from edgemem.decoder_config import DecoderConfig
from edgemem.export import ExportOptions, Source, export_bundle, from_config


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    config = DecoderConfig(32, 1, 2, [{"type": "window", "window": 8}, {"type": "cumulative"}], vocab_size=256)
    return export_bundle(
        from_config(config, "tiny"), tmp_path_factory.mktemp("figures") / "tiny", ExportOptions(verify=False)
    )


@pytest.mark.parametrize(
    ("value", "at_least", "reached"),
    [(1.25, False, True), (1.26, False, False), (1.25, True, True), (1.2, True, False)],
)
def test_a_figure_is_reached_at_its_target(figures: ModuleType, value: float, at_least: bool, reached: bool) -> None:
    assert figures.Figure("f", "figure", value, "×", 1.25, at_least, None, "").reached is reached


def test_the_exit_code_says_whether_all_is_reached(figures: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    interval = Interval(1.1, 1.0, 1.2, 0.95, 9)
    good = figures.Figure("floor", "floor", 1.1, "×", 1.25, False, interval, "step 5 ms")
    bad = replace(good, name="prefill", value=3.0, target=6.0, at_least=True)
    monkeypatch.setattr(figures, "measure_all", lambda effort, trained, progress: [good])
    done = CliRunner().invoke(figures.main, ["--quick"])
    assert done.exit_code == 0
    assert "1.10×" in done.stdout
    assert "1.00 to 1.20" in done.stdout
    monkeypatch.setattr(figures, "measure_all", lambda effort, trained, progress: [good, bad])
    done = CliRunner().invoke(figures.main, ["--json"])
    assert done.exit_code == 1
    assert [f["reached"] for f in json.loads(done.stdout)["figures"]] == [True, False]


def test_the_reference_model_has_25_million_parameters(figures: ModuleType) -> None:
    module = from_config(DecoderConfig.load(figures.REFERENCE), "reference").module
    assert sum(parameter.numel() for parameter in module.parameters()) == pytest.approx(25e6, rel=0.03)


@pytest.mark.long
def test_every_figure_is_measured_on_a_bundle(
    figures: ModuleType, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported: list[tuple[str, Path]] = []

    def stand_in(source: Source, out: Path, options: ExportOptions) -> Bundle:
        """An export takes ten seconds, and what int8 and int4 weights are has tests of its own."""
        assert not options.verify
        exported.append((options.weights, out))
        return bundle

    monkeypatch.setattr(figures, "export_bundle", stand_in)
    monkeypatch.setattr(figures, "before", lambda bundle, folder: bundle)
    effort = figures.Effort(
        rounds=6,
        pairs=6,
        memory_steps=1_000,
        prefill=32,
        prefill_rounds=2,
        prefill_steps=4,
        parity_steps=40,
        openings=2,
    )
    measured = [*figures.one_step(bundle, effort, tmp_path, silent), figures.overhead(bundle, effort, silent)]
    measured += [*figures.small_step(bundle, effort, tmp_path, silent), figures.opening(bundle, effort, silent)]
    with edgemem.open(bundle.path, threads=1) as session:
        measured += [figures.constancy(session, effort, silent), figures.prefill(session, effort, silent)]
        exact = figures.parity(bundle, session, effort, silent)
    measured += figures.quantised(bundle, effort, tmp_path, silent)
    measured.append(figures.memory_growth(bundle, effort, silent))
    assert exported == [
        ("int8", tmp_path / "int8"),
        ("int4", tmp_path / "int4"),
        ("int4", tmp_path / "int4_half_rings"),
    ]
    assert exact.reached
    assert exact.value > 0
    assert all(figure.value > 0 for figure in measured[:-1])
    assert len({figure.key for figure in [*measured, exact]}) == len(figures.rows([*measured, exact])) == 15


def test_the_reference_before_is_that_of_today_with_another_graph(figures: ModuleType) -> None:
    manifest = json.loads((figures.BEFORE / "manifest.json").read_text())
    assert manifest["version"] == 1
    assert manifest["files"]["weights.safetensors"]["sha256"].startswith("1c999377")
