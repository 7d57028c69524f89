"""The torch module itself behind the same interface: the reference for other runtimes. Simple, not fast."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from edgemem.bundle import WEIGHTS, Bundle
from edgemem.contract import POSITION, Contract, StateSpec, initial_state
from edgemem.dtypes import decode_bfloat16, numpy_dtype
from edgemem.errors import BundleError, EdgememError, RuntimeUnavailableError
from edgemem.protocol import takes_output_indices
from edgemem.runtimes.memory import Array
from edgemem.runtimes.session import Session, Stream


def open_session(bundle: Bundle, *, threads: int | None, device: str, guard: bool) -> TorchSession:
    """Rebuild the bundle's decoder with its weights; see :func:`edgemem.open`.

    Raises:
        BundleError: The bundle holds a user's own module, of which it knows the graph alone.
    """
    from edgemem.models.checkpoint import load_weights
    from edgemem.models.decoder import Decoder
    from edgemem.streaming.sealed import Sealed

    if bundle.manifest.model is None:
        raise BundleError(
            f"{bundle.path} holds the graph of a module of your own, which the torch runtime cannot rebuild.",
            hint="Use runtime='onnxruntime', or TorchSession(contract, module) with the live module.",
        )
    module: nn.Module = load_weights(Decoder(bundle.manifest.model), bundle.file(WEIGHTS))
    if bundle.contract.position == "none":
        module = Sealed(module)
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
    """

    runtime = "torch"

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
        super().__init__(contract, bundle, device="cuda" if device == "cuda" else "cpu", guard=guard)
        if threads is not None:
            torch.set_num_threads(threads)
        self.module = module.to(self.device).eval()
        self.picks_outputs = takes_output_indices(module)

    def _new_stream(self, batch: int, initial: bool) -> Stream:
        return TorchStream(self, batch)


class TorchStream(Stream):
    """A stream over torch tensors."""

    _session: TorchSession

    def __init__(self, session: TorchSession, batch: int) -> None:
        shape = (batch, 1, *session.contract.input.shape)
        dtype = numpy_dtype(session.contract.input.dtype)
        super().__init__(session, batch, np.zeros(batch, np.int64), np.zeros(shape, dtype))
        self._module: nn.Module | None = session.module
        self._past: dict[str, Tensor] = {}
        self._new: dict[str, Tensor] = {}
        for state in session.contract:
            self._write(state, initial_state(state, batch))

    def _compute(self, data: Array, every: bool) -> Array:
        if self._module is None:
            raise EdgememError("the session is closed.", hint="Open the bundle again.")
        session, contract = self._session, self._contract
        state = dict(self._past)
        if contract.position == "input":
            state[POSITION] = torch.from_numpy(self._positions.copy()).to(session.device)
        x = _to_torch(data, contract.input.dtype).to(session.device)
        with torch.inference_mode():
            if session.picks_outputs and not every:
                output, new = self._module(x, state, torch.tensor([x.shape[1] - 1], device=session.device))
            else:
                output, new = self._module(x, state)
        self._new = {spec.name: new[spec.name] for spec in contract}
        values = _to_numpy(output if every else output[:, -1:])
        return decode_bfloat16(values) if contract.output.dtype == "bfloat16" else values

    def _compute_step(self) -> Array:
        output = self._compute(self._step_input, True)[:, 0]
        output.flags.writeable = False
        return output

    def _compute_chunk(self, data: Array, every: bool) -> Array:
        return self._compute(data, every)

    def _new_state(self, time: int) -> Iterator[tuple[StateSpec, Array]]:
        for state in self._contract:
            yield state, _to_numpy(self._new[state.name])

    def _commit(self, time: int) -> None:
        with torch.inference_mode():
            for state in self._contract:
                new = self._new[state.name]
                if state.update == "append":
                    ring = self._past[state.name]  # [B, H, W, D]
                    slots = (self._positions[:, np.newaxis] + np.arange(time)) % ring.shape[2]  # [B, T]
                    rows = torch.arange(self.batch)[:, np.newaxis]
                    ring[rows, :, torch.from_numpy(slots)] = new.transpose(1, 2)
                else:
                    self._past[state.name] = new
        self._new = {}

    def _read(self, state: StateSpec) -> Array:
        return _to_numpy(self._past[state.name]).copy()

    def _write(self, state: StateSpec, value: Array) -> None:
        self._past[state.name] = _to_torch(np.array(value), state.dtype).to(self._session.device)

    def _close(self) -> None:
        self._module = None


def _to_torch(array: Array, dtype: str) -> Tensor:
    tensor = torch.from_numpy(np.ascontiguousarray(array).view(np.int16) if dtype == "bfloat16" else array)
    return tensor.view(torch.bfloat16) if dtype == "bfloat16" else tensor


def _to_numpy(tensor: Tensor) -> Array:
    """A numpy array of the tensor's values; bfloat16 as its bits in uint16."""
    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.contiguous().view(torch.int16)
        return np.asarray(tensor.numpy()).view(np.uint16)
    return np.asarray(tensor.numpy())
