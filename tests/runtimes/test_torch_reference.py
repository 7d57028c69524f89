"""The torch runtime streams a module as ONNX Runtime streams its graph, and each restores the other's snapshots."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest

import edgemem
from edgemem.bundle import Bundle
from edgemem.contract import POSITION
from edgemem.errors import BundleError, EdgememError, InputError, NonFiniteError, RuntimeUnavailableError
from edgemem.runtimes import Session
from tests.runtimes import tiny

torch = pytest.importorskip("torch")

from edgemem.runtimes.torch_reference import TorchSession  # noqa: E402


class Tokens(torch.nn.Module):
    """The token model of :mod:`tests.runtimes.tiny`, one time step after the other."""

    def contract(self) -> edgemem.Contract:
        return tiny.TOKENS

    def forward(
        self, x: torch.Tensor, state: Mapping[str, torch.Tensor]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        table = torch.from_numpy(tiny.TABLE.copy())
        rings = {name: state[name].clone() for name in ("0.window.k", "0.window.v", "1.window.k")}
        new: dict[str, list[torch.Tensor]] = {name: [] for name in rings}
        decayed, count, outputs = state["0.decayed.m"], state["1.count.n"], []
        rows = torch.arange(len(x))
        for t in range(x.shape[1]):
            e = table[x[:, t]]  # [B, D]
            k = e[:, None] * torch.tensor([1.0, -2.0])[:, None]  # [B, H, D]
            entries = {"0.window.k": k, "0.window.v": k * k, "1.window.k": x[:, t, None, None].float()}
            for name, ring in rings.items():
                ring[rows, :, (state[POSITION] + t) % ring.shape[2]] = entries[name]
                new[name].append(entries[name])
            decayed, count = tiny.DECAY * decayed + e, count + 1
            window = (rings["0.window.k"] + rings["0.window.v"]).sum((1, 2))
            long = rings["1.window.k"].sum((1, 2))
            outputs.append(torch.cat([window + decayed, long, count[:, None].float()], dim=-1))
        result = {name: torch.stack(values, dim=2) for name, values in new.items()}
        return torch.stack(outputs, dim=1), {**result, "0.decayed.m": decayed, "1.count.n": count}


@pytest.fixture(scope="module")
def live() -> TorchSession:
    return TorchSession(tiny.TOKENS, Tokens())


def test_a_live_module_streams_like_its_graph(live: TorchSession, session: Session) -> None:
    rng = np.random.default_rng(0)
    a, b = live.stream(3), session.stream(3)
    for turn in range(5):
        chunk = rng.integers(0, tiny.VOCAB, (3, 5 + turn))
        np.testing.assert_allclose(a.feed(chunk, "all"), b.feed(chunk, "all"), atol=2e-5, rtol=1e-5)
        np.testing.assert_allclose(a.step(chunk[:, 0]), b.step(chunk[:, 0]), atol=2e-5, rtol=1e-5)
        a.reset(turn % 3)
        b.reset(turn % 3)
        a, b = a.fork([1, 2, 0]), b.fork([1, 2, 0])
        assert a.positions.tolist() == b.positions.tolist()
        for name, value in a.state().items():
            np.testing.assert_allclose(value, b.state()[name], atol=1e-6, rtol=1e-6, err_msg=name)


def test_a_live_module_has_the_same_semantics(live: TorchSession) -> None:
    stream = live.stream()
    stream.feed([1, 2, 3])
    fork, other = stream.fork(), live.stream()
    other.restore(stream.snapshot())
    first = stream.step(4)
    np.testing.assert_array_equal(first, fork.step(4))
    np.testing.assert_array_equal(first, other.step(4))
    with pytest.raises(InputError, match="outside the vocabulary"):
        stream.step(99)
    with pytest.raises(ValueError, match="read-only"):
        first[...] = 0
    with pytest.raises(EdgememError, match="live module"):
        _ = live.bundle


def test_a_guarded_live_module_stays_as_it_was(live: TorchSession) -> None:
    guarded = TorchSession(tiny.TOKENS, Tokens(), guard=True)
    stream = guarded.stream()
    stream.feed([1, 2, 3])
    before = stream.snapshot()
    guarded.engine.module.register_forward_hook(
        lambda m, a, out: (torch.where(torch.arange(out[0].shape[1])[:, None] == 1, torch.nan, out[0]), out[1])
    )
    with pytest.raises(NonFiniteError, match="position 4"):
        stream.feed([1, 2, 3], "all")
    assert stream.snapshot() == before


def test_a_bundle_of_a_users_own_module_cannot_be_rebuilt(tokens_bundle: Bundle) -> None:
    with pytest.raises(BundleError, match="module of your own"):
        edgemem.open(tokens_bundle.path, runtime="torch")


def test_cuda_where_torch_has_none_is_refused() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(RuntimeUnavailableError, match="torch finds no CUDA device"):
        TorchSession(tiny.TOKENS, Tokens(), device="cuda")


@pytest.fixture(scope="module", params=["tokens", "sealed"])
def decoder_bundle(request: pytest.FixtureRequest, exported: Callable[[str], Bundle]) -> Bundle:
    return exported(request.param)


def test_a_decoder_goes_from_torch_to_onnxruntime_and_back(decoder_bundle: Bundle) -> None:
    tokens = np.random.default_rng(1).integers(0, 17, (2, 60))
    with (
        edgemem.open(decoder_bundle.path, runtime="torch") as reference,
        edgemem.open(decoder_bundle.path, runtime="onnxruntime", threads=1, device="cpu") as engine,
    ):
        whole = reference.stream(2).feed(tokens, "all")
        assert whole is not None
        stream = reference.stream(2)
        done = 0
        for turn, length in enumerate([7, 1, 12, 3, 1, 17, 9]):  # each part by the other runtime, from a snapshot
            there = (engine, reference)[turn % 2].stream(2)
            there.restore(stream.snapshot())
            stream = there
            part = tokens[:, done : done + length]
            got = stream.feed(part, "all")
            assert got is not None
            np.testing.assert_allclose(got, whole[:, done : done + length], atol=1e-5)
            done += length
        assert stream.positions.tolist() == [done, done]
