"""The torch module itself behind the same interface: the reference for other runtimes. Simple, not fast."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from torch import nn

from edgemem.bundle import WEIGHTS, Bundle
from edgemem.contract import OUTPUT_INDICES, POSITION, Contract
from edgemem.errors import BundleError, EdgememError, RuntimeUnavailableError
from edgemem.overrides import override
from edgemem.protocol import as_one, by_name, takes_output_indices
from edgemem.runtimes.engine import Call, Engine, Tensors
from edgemem.runtimes.memory import Tensor
from edgemem.runtimes.session import Session


def open_session(bundle: Bundle, *, threads: int | None, device: str, guard: bool) -> TorchSession:
    """Rebuild the bundle's decoder with its weights; see :func:`edgemem.open`.

    Raises:
        BundleError: The bundle holds a user's own module, of which it knows the graph alone.
    """
    from edgemem.models.checkpoint import load_weights
    from edgemem.models.decoder import Decoder
    from edgemem.streaming.narrow import NarrowRings
    from edgemem.streaming.sealed import Sealed

    if bundle.manifest.model is None:
        raise BundleError(
            f"{bundle.path} holds the graph of a module of your own, which the torch runtime cannot rebuild.",
            hint="Use runtime='onnxruntime', or TorchSession(contract, module) with the live module.",
        )
    with bundle.loading() as folder:
        module: nn.Module = load_weights(Decoder(bundle.manifest.model), folder / WEIGHTS)
    if bundle.contract.position == "none":
        module = Sealed(module)
    if bundle.manifest.precision.memory is not None:
        module = NarrowRings(module, bundle.manifest.precision.memory)
    return TorchSession(bundle.contract, module, bundle=bundle, threads=threads, device=device, guard=guard)


class TorchSession(Session):
    """A torch module that follows the streaming protocol (:mod:`edgemem.protocol`).

    Args:
        contract: The module's contract.
        module: The module.
        bundle: The bundle that it was rebuilt from; ``None`` for a live module.
        threads: Threads that torch may use, for the whole process; ``None`` leaves them.
        device: ``"cpu"``, ``"cuda"``, or ``"auto"``, which is the CPU: this is the reference.
        guard: See :class:`~edgemem.runtimes.session.Session`.

    Raises:
        RuntimeUnavailableError: torch finds no CUDA device.
    """

    def __init__(
        self,
        contract: Contract,
        module: nn.Module,
        *,
        bundle: Bundle | None = None,
        threads: int | None = None,
        device: str = "auto",
        guard: bool = False,
    ) -> None:
        if device == "cuda" and not torch.cuda.is_available():
            raise RuntimeUnavailableError("torch finds no CUDA device.", hint="Use device='cpu'.")
        if threads is not None:
            torch.set_num_threads(threads)
        engine = TorchEngine(contract, module, "cuda" if device == "cuda" else "cpu")
        super().__init__(contract, bundle, engine, guard=guard)

    @property
    @override
    def device(self) -> str:
        engine = self.engine
        return engine.device if isinstance(engine, TorchEngine) else super().device


class TorchEngine(Engine):
    """Calls a torch module, whose inputs and outputs lie in host memory.

    Args:
        contract: The module's contract.
        module: The module.
        device: Where torch computes; what lies in host memory is copied there and back.

    Attributes:
        device: As above.
        module: The module, in evaluation mode.
    """

    runtime: ClassVar[str] = "torch"
    title: ClassVar[str] = "torch"

    def __init__(self, contract: Contract, module: nn.Module, device: str) -> None:
        self.device = device
        self._contract = contract
        self.module = module.to(device).eval()
        self._selects = contract.output_indices and takes_output_indices(module)

    @override
    def bind(self, time: int, inputs: Tensors, outputs: Tensors) -> Call:
        contract, module, device = self._contract, self.module, self.device
        given = {name: _to_torch(tensor) for name, tensor in inputs.items()}
        targets = {name: _to_torch(tensor) for name, tensor in outputs.items()}

        def run() -> None:
            here = {name: value.to(device) for name, value in given.items()}
            state = {spec.name: here[spec.input_name] for spec in contract}
            if contract.position == "input":
                state[POSITION] = here[POSITION]
            x = as_one(contract, {spec.name: here[spec.name] for spec in contract.input_specs})
            selected = here.get(OUTPUT_INDICES)
            wanted = {OUTPUT_INDICES: selected} if self._selects else {}
            with torch.inference_mode():
                output, new = module(x, state, **wanted)
                results = by_name(contract, output)
                if selected is not None and not self._selects:
                    results = {name: value.index_select(1, selected) for name, value in results.items()}
                results |= {spec.output_name: new[spec.name] for spec in contract}
                for name, target in targets.items():
                    if results[name].shape != target.shape:
                        got, wanted_shape = list(results[name].shape), list(target.shape)
                        raise EdgememError(f"{name} came out of shape {got}, the contract has {wanted_shape}.")
                    target.copy_(results[name])

        return run


def _to_torch(tensor: Tensor) -> torch.Tensor:
    """A torch tensor over the memory of a tensor in host memory."""
    array = tensor.array
    if tensor.dtype == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)
