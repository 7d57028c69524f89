"""``edgemem run`` drives plain models, and says so of others."""

from __future__ import annotations

from tests.runtimes import test_rates, tiny


def test_a_model_of_several_items_a_step_is_refused_with_a_way_out(tmp_path, invoke):
    contract, model = test_rates.two_tensor_model()
    bundle = tiny.save_bundle(tmp_path / "two", contract, model)
    result = invoke("run", str(bundle.path))
    assert result.exit_code == 1
    assert "edgemem run drives models of one input" in result.stderr
    assert "4 of samples, 1 of pair" in result.stderr
    assert "docs/run.md" in result.stderr
