"""Commands that drive plain models say so of others."""

from __future__ import annotations

import pytest

from tests.runtimes import test_rates, tiny


@pytest.mark.parametrize("command", ["run", "bench"])
def test_a_model_of_several_items_a_step_is_refused_with_a_way_out(tmp_path, invoke, command):
    contract, model = test_rates.two_tensor_model()
    bundle = tiny.save_bundle(tmp_path / "two", contract, model)
    result = invoke(command, str(bundle.path))
    assert result.exit_code == 1
    assert f"edgemem {command} drives models of one input" in result.stderr
    assert "4 of samples, 1 of pair" in result.stderr
    assert "docs/run.md" in result.stderr
