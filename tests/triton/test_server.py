"""A real server streams bundles: many sequences, one that is killed, and another that takes over (``make triton``)."""

from __future__ import annotations

import concurrent.futures
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgemem
from edgemem.bundle import Bundle
from edgemem.client import connect
from edgemem.triton.config import Limits
from edgemem.triton.repository import FLAVOURS, write_repository
from tests.runtimes import tiny
from tests.triton.server import Server, is_here, make_importable

grpc = pytest.importorskip("tritonclient.grpc", reason="tritonclient is not installed: make triton")
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not is_here(), reason="there is no Triton server here: make triton"),
]
SEQUENCES, STEPS, CALLERS, IDLE_S = 1000, 6, 8, 2
KEPT, TRAVELLING = "tokens", "tokens_with_state"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny.save_bundle(tmp_path_factory.mktemp("triton") / "tokens", tiny.TOKENS, tiny.tokens_model())


@pytest.fixture(scope="module")
def repository(bundle: Bundle) -> Path:
    out = bundle.path.parent / "models"
    write_repository(bundle, out, flavours=FLAVOURS, limits=Limits(streams=32, batch=16, idle_s=IDLE_S))
    make_importable(out)
    return out


@pytest.fixture
def servers(repository: Path, tmp_path: Path) -> Iterator[list[Server]]:
    both = [Server(repository, [KEPT, TRAVELLING], tmp_path / f"{index}.log") for index in range(2)]
    yield both
    for server in both:
        server.kill()


class Caller:
    def __init__(self, server: Server) -> None:
        self.client = grpc.InferenceServerClient(server.url)

    def __call__(self, model: str, tokens: Any, snapshot: Any = None, wants_snapshot: bool = False, **more: Any) -> Any:
        """Logits ``[1, T, V]``; with ``wants_snapshot`` the snapshot too."""
        given = {"tokens": (np.asarray(tokens, np.int64).reshape(1, -1), "INT64")}
        if snapshot is not None:
            given["snapshot"] = (snapshot, "UINT8")
        inputs = []
        for name, (value, dtype) in given.items():
            inputs.append(grpc.InferInput(name, value.shape, dtype))
            inputs[-1].set_data_from_numpy(value)
        names = ["logits", "snapshot"] if wants_snapshot else ["logits"]
        found = self.client.infer(model, inputs, outputs=[grpc.InferRequestedOutput(n) for n in names], **more)
        return [found.as_numpy(name) for name in names] if wants_snapshot else found.as_numpy("logits")


def alone(bundle: Bundle, tokens: Any) -> Any:
    with edgemem.open(bundle.path, "onnxruntime", device="cpu", threads=1) as session:
        stream = session.stream()
        return np.stack([stream.step(int(token))[0].copy() for token in tokens])


def test_every_configuration_is_parsed_by_the_clients_own_messages(repository: Path) -> None:
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    for folder in repository.iterdir():
        config = text_format.Parse((folder / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())
        assert config.name == folder.name
        states = [state.input_name for state in config.sequence_batching.state]
        assert bool(states) == (config.backend != "python" and not folder.name.endswith("with_state"))


def test_a_thousand_sequences_at_once_each_get_what_they_get_alone(servers: list[Server], bundle: Bundle) -> None:
    history = np.random.default_rng(0).integers(0, tiny.VOCAB, (SEQUENCES, STEPS))

    def share(first: int) -> None:
        call = Caller(servers[0])
        mine = range(first, SEQUENCES, CALLERS)
        for at in range(0, len(mine), 3):  # three interleaved
            for step in range(STEPS):
                for index in mine[at : at + 3]:
                    ends = {"sequence_start": step == 0, "sequence_end": step == STEPS - 1}
                    logits = call(KEPT, history[index, step], sequence_id=index + 1, **ends)
                    wanted[index, step] = logits[0, 0]

    wanted = np.empty((SEQUENCES, STEPS, tiny.WIDTH + 2), np.float32)
    with concurrent.futures.ThreadPoolExecutor(CALLERS) as pool:
        list(pool.map(share, range(CALLERS)))
    for index in range(0, SEQUENCES, 50):
        np.testing.assert_array_equal(wanted[index], alone(bundle, history[index]))
    formula = np.stack([tiny.tokens_outputs(row.tolist()) for row in history])
    np.testing.assert_allclose(wanted, formula, rtol=1e-4, atol=1e-4)


def test_a_server_is_killed_and_another_goes_on_from_the_state_in_the_request(
    servers: list[Server], bundle: Bundle
) -> None:
    tokens = np.random.default_rng(1).integers(0, tiny.VOCAB, 40)
    found, snapshot = [], None
    for at, token in enumerate(tokens):
        if at == 23:
            servers[0].kill()
        call = Caller(servers[at >= 23])
        logits, snapshot = call(TRAVELLING, token, snapshot, wants_snapshot=True)
        found.append(logits[0, 0])
    np.testing.assert_array_equal(np.stack(found), alone(bundle, tokens))


def test_a_sequence_moves_to_another_server_by_its_snapshot(servers: list[Server], bundle: Bundle) -> None:
    tokens = np.random.default_rng(2).integers(0, tiny.VOCAB, 20)
    first, second = Caller(servers[0]), Caller(servers[1])
    _, snapshot = first(KEPT, tokens[:12], wants_snapshot=True, sequence_id=7, sequence_start=True)
    rest = second(KEPT, tokens[12:], snapshot, sequence_id=9, sequence_start=True, sequence_end=True)
    np.testing.assert_allclose(rest[0], alone(bundle, tokens)[12:], rtol=1e-5, atol=1e-5)


def test_the_client_moves_a_stream_by_itself_when_its_server_is_killed(servers: list[Server], bundle: Bundle) -> None:
    tokens = np.random.default_rng(3).integers(0, tiny.VOCAB, 60)
    addresses = [f"grpc://{server.url}" for server in servers]
    with connect(addresses, "a stream", model=KEPT, snapshot_every=8) as stream:
        found = [stream.step(token) for token in tokens[:29]]
        servers[0].kill()
        found += [stream.step(token) for token in tokens[29:50]]
        time.sleep(2 * IDLE_S)  # dropped by the server as idle, and begun again from the snapshot
        found += [stream.step(token) for token in tokens[50:]]
        assert stream.resumed == 2
    np.testing.assert_array_equal(np.stack(found), alone(bundle, tokens))


def test_an_idle_sequence_is_dropped_and_said_so(servers: list[Server]) -> None:
    call = Caller(servers[0])
    call(KEPT, 1, sequence_id=5, sequence_start=True)
    time.sleep(2 * IDLE_S)
    with pytest.raises(grpc.InferenceServerException, match=r"START flag|not known here"):
        call(KEPT, 2, sequence_id=5)
    assert call(KEPT, 3, sequence_id=5, sequence_start=True).shape == (1, 1, tiny.WIDTH + 2)


def test_more_sequences_than_slots_follow_each_other(servers: list[Server]) -> None:
    call = Caller(servers[0])
    for sequence in range(1, 200):  # none is ended: each is idle when its slot is wanted
        call(KEPT, 1, sequence_id=sequence, sequence_start=True)
        if sequence % 32 == 0:
            time.sleep(2 * IDLE_S)


def test_a_snapshot_of_another_model_and_a_wrong_token_are_errors_of_that_request_alone(servers: list[Server]) -> None:
    call = Caller(servers[0])
    wrong = np.zeros((1, 40), np.uint8)
    with pytest.raises(grpc.InferenceServerException, match="snapshot"):
        call(TRAVELLING, 1, wrong)
    call(KEPT, 1, sequence_id=3, sequence_start=True)
    with pytest.raises(grpc.InferenceServerException, match=str(tiny.VOCAB)):
        call(KEPT, tiny.VOCAB, sequence_id=3)
    call(KEPT, 2, sequence_id=3, sequence_end=True)
