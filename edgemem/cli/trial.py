"""Run the bundle of one operator with one runtime, to see whether the runtime works on this machine.

:func:`main` prints one line of JSON, in a process of its own: an engine that crashes ends only that process.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgemem.bundle import Bundle, open_bundle
from edgemem.errors import EdgememError, RuntimeUnavailableError
from edgemem.runtimes.registry import Runtime, find_runtime

if TYPE_CHECKING:
    from edgemem.runtimes import Session

ONE_OP = Path(__file__).parent / "one_op"
"""A bundle whose graph is one addition: the output is the sum of all features so far, float32 ``[3]``."""


@dataclass(frozen=True)
class Finding:
    """The result of a trial.

    Attributes:
        works: The bundle gave the right outputs.
        version: Of the engine; ``""`` if it is not known.
        detail: Where the bundle ran, or why it did not.
        hint: What to do if it did not run; ``""`` if edgemem has no advice.
    """

    works: bool
    version: str
    detail: str
    hint: str = ""


def run_trial(runtime: Runtime, device: str) -> Finding:
    """Run the bundle in this process. Whatever the engine raises is the finding."""
    try:
        with _open(runtime, open_bundle(ONE_OP), device) as session:
            _check(session)
            return Finding(True, _version(runtime), f"ran on {session.device}")
    except EdgememError as error:
        return Finding(False, _version(runtime), error.message, error.hint or "")
    except Exception as error:  # an engine may raise anything
        return Finding(False, _version(runtime), f"{type(error).__name__}: {error}")


def _open(runtime: Runtime, bundle: Bundle, device: str) -> Session:
    if runtime.name != "torch" or not runtime.installed:
        return runtime.open(bundle, threads=None, device=device, guard=False)
    # The torch runtime rebuilds decoders and reads no graph, so it gets the operator as a module.
    from torch import Tensor, nn

    from edgemem.runtimes.torch_reference import TorchSession

    class RunningSum(nn.Module):
        def forward(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
            total = x + state["sum"]
            return total, {"sum": total}

    return TorchSession(bundle.contract, RunningSum(), device=device)


def _check(session: Session) -> None:
    """Feed three steps, and compare each output with the sum.

    Raises:
        RuntimeUnavailableError: An output is wrong.
    """
    stream, total = session.stream(), np.zeros(3, np.float32)
    for step in ([1.0, -2.5, 1e6], [0.5, 0.25, -1.0], [-3.0, 8.0, 4.0]):
        total = total + np.array(step, np.float32)
        output = stream.step(np.array(step, np.float32))
        if not np.array_equal(output[0], total):
            raise RuntimeUnavailableError(f"the bundle of one operator gave {output[0]}, expected {total}.")


def _version(runtime: Runtime) -> str:
    if runtime.plugin is not None:
        return runtime.plugin.version
    module = sys.modules.get(runtime.package)
    return str(getattr(module, "__version__", "")) if module else ""


def main(name: str, device: str) -> None:
    """Print the :class:`Finding` of one runtime on one device as a line of JSON."""
    print("\n" + json.dumps(asdict(run_trial(find_runtime(name), device))), flush=True)
