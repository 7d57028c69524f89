"""Small decoders with many memories, to hold runtimes to torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgemem.bundle import Bundle
from edgemem.export import ExportOptions, export_bundle, from_config
from edgemem.models import DecoderConfig

VOCAB = 20
WINDOW = {"type": "window", "window": 6}


@dataclass(frozen=True)
class Case:
    """A model, how it is exported, and how near the outputs must be."""

    name: str
    memory: list[Any]
    options: dict[str, Any] = field(default_factory=dict)
    tolerance: float = 2e-4

    def config(self) -> DecoderConfig:
        """The decoder's configuration."""
        return DecoderConfig(d_model=16, layers=1, heads=4, kv_heads=2, vocab_size=VOCAB, memory=self.memory)


CASES = {
    case.name: case
    for case in (
        Case(
            "tokens",
            [
                {"type": "sinks", "slots": 2},
                WINDOW,
                {"type": "cumulative", "bias": "log_count"},
                {"type": "gated_delta"},
            ],
        ),
        Case(
            "sealed",
            [WINDOW, {"type": "compressed", "slots": 2, "rate": 3}, {"type": "moving_average", "window": 9}],
            options={"sealed": True},
        ),
        Case("float16", [WINDOW, {"type": "geometric"}], options={"dtype": "fp16"}, tolerance=2e-2),
    )
}


def exported(case: Case, folder: Path) -> Bundle:
    """The case's bundle, with weights large enough for every memory to matter to the output."""
    source = from_config(case.config(), case.name)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in source.module.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return export_bundle(source, folder / case.name, ExportOptions(verify=False, **case.options))


def near(case: Case, found: Any, wanted: Any, what: str = "") -> None:
    """Hold ``found`` to ``wanted`` as nearly as the case's precision allows."""
    np.testing.assert_allclose(found, wanted, atol=case.tolerance, rtol=case.tolerance, err_msg=what)
