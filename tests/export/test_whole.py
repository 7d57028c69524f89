"""The full-sequence pass that a bundle is compared with."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from edgemem import InputSpec, OutputSpec
from edgemem.export.verify.sequences import Sequences
from edgemem.export.verify.whole import whole_sequence
from edgemem.protocol import check_protocol
from edgemem.streaming import Streaming


class Stepper(nn.Module):
    """Reads one step a call, whatever it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(3, 1)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        h, c = self.cell(x[:, 0], state)
        return h[:, None], (h, c)


def test_a_module_of_single_steps_is_run_step_by_step_over_a_sequence():
    module = Stepper().eval()
    adapter = Streaming(
        module,
        state=lambda b: (torch.zeros(b, 1), torch.zeros(b, 1)),
        inputs=InputSpec("features", (3,)),
        outputs=OutputSpec("y", (1,)),
        max_chunk=1,
    )
    check_protocol(adapter)
    x = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = whole_sequence(
            adapter, adapter.contract(), Sequences(adapter.contract(), 5, {"features": x.numpy()}, {})
        )
        state, wanted = (torch.zeros(2, 1), torch.zeros(2, 1)), []
        for step in x.unbind(dim=1):
            state = module.cell(step, state)
            wanted.append(state[0])
    np.testing.assert_allclose(found["y"][:, :, 0], torch.stack(wanted, dim=1), rtol=1e-6)
