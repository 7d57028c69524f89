"""What must hold on a real GPU: run with ``pytest tests/gpu -m gpu`` (needs no network)."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import edgemem
from edgemem.bundle import Bundle
from edgemem.runtimes import Session
from tests.gpu.conftest import STAND_IN, Gpu, free_bytes

pytest.importorskip("onnx", reason="the tiny models are made with onnx")
from tests.runtimes import tiny

pytestmark = pytest.mark.gpu
STEPS = 1_000
ALL_KINDS = pytest.mark.parametrize("kind", [tiny.KINDS[0], tiny.KINDS[1]], ids=lambda kind: kind.name)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny.save_bundle(tmp_path_factory.mktemp("gpu") / "tokens", tiny.TOKENS, tiny.tokens_model())


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Exports a case of :mod:`tests.runtimes.decoders`, once."""
    pytest.importorskip("torch", reason="these models are made with torch")
    from tests.runtimes.decoders import CASES, exported

    made: dict[str, Any] = {}
    folder = tmp_path_factory.mktemp("models")

    def get(name: str) -> tuple[Any, Bundle]:
        case = CASES[name]
        if name not in made:
            made[name] = exported(case, folder)
        return case, made[name]

    return get


# Numbers.


@ALL_KINDS
def test_steps_and_chunks_give_what_the_formula_says(any_gpu: Gpu, tmp_path: Path, kind: tiny.Kind) -> None:
    bundle = tiny.save_bundle(tmp_path / "b", tiny.TOKENS, tiny.tokens_model(), kind.graphs)
    history = [(7 * i + 3) % tiny.VOCAB for i in range(40)]
    wanted = tiny.tokens_outputs(history)
    with any_gpu.open(bundle) as session:
        assert session.device == "cuda"
        stream = session.stream()
        stepped = np.stack([stream.step(token)[0].copy() for token in history])
        np.testing.assert_allclose(stepped, wanted, atol=1e-4, rtol=1e-4)
        for length in (1, 2, 3, 4, 5, 9, 40):
            stream.reset()
            parts = [stream.feed(history[i : i + length], "all") for i in range(0, 40, length)]
            np.testing.assert_allclose(np.concatenate(parts, 1)[0], wanted, atol=1e-4, rtol=1e-4)


def test_rows_of_a_batch_stand_at_their_own_positions(any_gpu: Gpu, bundle: Bundle) -> None:
    with any_gpu.open(bundle) as session:
        stream = session.stream(2)
        stream.feed([[1, 2, 3, 4, 5, 6, 7]] * 2)
        stream.reset([1])
        for i in range(9):
            got = stream.step([i, i])
        np.testing.assert_allclose(
            got,
            [tiny.tokens_outputs([*range(1, 8), *range(9)])[-1], tiny.tokens_outputs(range(9))[-1]],
            atol=1e-4,
            rtol=1e-4,
        )


@pytest.mark.parametrize("name", ["tokens", "sealed", "float16"])
def test_memories_and_precisions_give_what_torch_gives(any_gpu: Gpu, models: Any, name: str) -> None:
    case, bundle = models(name)
    from tests.runtimes.decoders import VOCAB, near

    rng = np.random.default_rng(0)
    with any_gpu.open(bundle) as session, edgemem.open(bundle.path, "torch") as torch:
        ours, theirs = session.stream(2), torch.stream(2)
        for length in (3, 1, 7, 1, 1, 9):
            x = rng.integers(0, VOCAB, (2, length))
            near(case, ours.feed(x, "all"), theirs.feed(x, "all"))
        for _ in range(30):
            x = rng.integers(0, VOCAB, 2)
            near(case, ours.step(x), theirs.step(x))
        ours.restore(theirs.snapshot())
        assert ours.snapshot() == theirs.snapshot()


@pytest.mark.parametrize("name", ["tiny", "tokens", "float16"])
def test_a_thousand_steps_with_graphs_are_bit_equal_to_a_thousand_without(
    recording_gpu: Gpu, bundle: Bundle, models: Any, name: str
) -> None:
    if (recording_gpu.runtime, name) == ("onnxruntime", "tiny"):
        pytest.skip("ONNX Runtime counts on the host, which no recording can hold")
    used = bundle if name == "tiny" else models(name)[1]
    with recording_gpu.open(used) as graphs, recording_gpu.open(used, cuda_graphs=False) as plain:
        a, b = graphs.stream(), plain.stream()
        for i in range(STEPS):
            token = (7 * i + 3) % tiny.VOCAB
            np.testing.assert_array_equal(a.step(token), b.step(token), f"step {i}")
        assert a.snapshot() == b.snapshot()
        assert graphs.engine.cuda_graphs, "the engine was not captured"  # type: ignore[attr-defined]


def test_the_step_after_a_snapshot_is_bit_equal(any_gpu: Gpu, bundle: Bundle) -> None:
    with any_gpu.open(bundle) as session:
        stream, other = session.stream(), session.stream()
        for steps in (0, 1, 2, 7, 30):
            for i in range(steps):
                stream.step(i % tiny.VOCAB)
            other.restore(stream.snapshot())
            fork = stream.fork()
            wanted = stream.step(3).copy()
            np.testing.assert_array_equal(other.step(3), wanted)
            np.testing.assert_array_equal(fork.step(3), wanted)
            assert other.snapshot() == stream.snapshot() == fork.snapshot()


def test_opening_streams_disturbs_no_other_thread(recording_gpu: Gpu, models: Any) -> None:
    """A recording takes what is put into the stream meanwhile, from wherever it comes."""
    _, bundle = models("tokens")
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, tiny.VOCAB, 300).tolist()
    with recording_gpu.open(bundle) as session, ThreadPoolExecutor(3) as pool:

        def run(opens: bool) -> list[np.ndarray]:
            stream, outputs = session.stream(), []
            for index, token in enumerate(tokens):
                if opens and index % 10 == 0:
                    session.stream().step(token)
                outputs.append(stream.step(token).copy())
            return outputs

        wanted = run(False)
        for got in pool.map(run, (False, True, False)):
            np.testing.assert_array_equal(got, wanted)


def test_chunks_between_steps_leave_a_recorded_step_as_it_is(recording_gpu: Gpu, models: Any) -> None:
    """The engine's scratch memory serves chunks and recorded steps in turn."""
    _, bundle = models("tokens")
    rng = np.random.default_rng(0)
    with recording_gpu.open(bundle) as graphs, recording_gpu.open(bundle, cuda_graphs=False) as plain:
        a, b = graphs.stream(), plain.stream()
        for _ in range(60):
            chunk = rng.integers(0, tiny.VOCAB, int(rng.integers(2, 40)))
            np.testing.assert_array_equal(a.feed(chunk), b.feed(chunk))
            for token in rng.integers(0, tiny.VOCAB, 3).tolist():
                np.testing.assert_array_equal(a.step(token), b.step(token))


def test_streams_run_in_threads(any_gpu: Gpu, bundle: Bundle) -> None:
    histories = [[(i * k + k) % tiny.VOCAB for i in range(200)] for k in range(1, 5)]
    with any_gpu.open(bundle) as session, ThreadPoolExecutor(4) as pool:

        def run(history: list[int]) -> np.ndarray:
            stream = session.stream()
            first = stream.feed(history[:50], "all")
            assert first is not None
            return np.concatenate([first[0], np.stack([stream.step(token)[0].copy() for token in history[50:]])])

        for history, got in zip(histories, pool.map(run, histories), strict=True):
            np.testing.assert_allclose(got, tiny.tokens_outputs(history), atol=1e-4, rtol=1e-4)


def test_streams_of_a_pool_compute_what_each_computes_alone(any_gpu: Gpu, bundle: Bundle) -> None:
    histories: list[list[int]] = [[], [], [], []]
    last: list[Any] = [None] * 4
    rng = np.random.default_rng(0)
    with any_gpu.open(bundle, max_batch=4) as session, session.pool(4) as pool:
        streams = [pool.open() for _ in range(4)]
        for turn in range(200):
            chosen = sorted(rng.choice(4, 1 + turn % 4, replace=False).tolist())
            tokens = rng.integers(0, tiny.VOCAB, len(chosen)).tolist()
            outputs = pool.step([streams[i] for i in chosen], tokens)
            for i, token, output in zip(chosen, tokens, outputs, strict=True):
                histories[i].append(token)
                last[i] = output.copy()
            if turn % 50 == 49:  # one is parked, and goes on in another slot
                parked = streams[turn % 4].snapshot()
                streams[turn % 4].close()
                streams[turn % 4] = pool.open(restore=parked)
        for history, output in zip(histories, last, strict=True):
            np.testing.assert_allclose(output, tiny.tokens_outputs(history)[-1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("k", [1, 2])
def test_the_device_picks_the_largest_outputs(gpu: Gpu, bundle: Bundle, k: int) -> None:
    with gpu.open(bundle, top_k=2) as session:
        stream, other = session.stream(2), session.stream(2)
        for i in range(20):
            values, indices = stream.step_top([i % 11, (2 * i) % 11], k)
            logits = other.step([i % 11, (2 * i) % 11])
            np.testing.assert_array_equal(values, -np.sort(-logits, axis=1)[:, :k])
            np.testing.assert_array_equal(np.take_along_axis(logits, indices, 1), values)


# Memory.


def test_after_the_first_step_no_device_memory_is_taken(any_gpu: Gpu, bundle: Bundle) -> None:
    with any_gpu.open(bundle) as session:
        stream = session.stream()
        stream.step(1)
        stream.feed([1] * 11)
        stream.restore(stream.snapshot())
        before = free_bytes()
        for i in range(STEPS):
            stream.step(i % tiny.VOCAB)
        for i in range(100):
            stream.feed([2] * (1 + i % 9))
            stream.restore(stream.snapshot())
        assert free_bytes() >= before


def test_what_a_session_took_comes_back(gpu: Gpu, bundle: Bundle) -> None:
    def use() -> None:
        with gpu.open(bundle) as session:
            streams = [session.stream() for _ in range(4)]
            for stream in streams:
                stream.feed([1, 2, 3, 4, 5])
                stream.fork().step(1)

    use()
    use()
    before = free_bytes()
    for _ in range(5):
        use()
    assert free_bytes() >= before - (2 << 20)  # the driver's own bookkeeping; a stream of each round would be more


def test_kernels_that_one_start_compiled_serve_the_next(gpu: Gpu, bundle: Bundle) -> None:
    if gpu.runtime != "tensorrt-rtx":
        pytest.skip("an engine of classic TensorRT holds the kernels themselves")

    def use() -> np.ndarray:
        with gpu.open(bundle) as session:
            return session.stream().step(3).copy()

    first = use()
    kept = list(Path(os.environ["XDG_CACHE_HOME"]).glob("edgemem/engines/*.kernels"))
    assert kept
    np.testing.assert_array_equal(use(), first)


# The command line.


@pytest.fixture(params=["tensorrt", "tensorrt-rtx", "onnxruntime"])
def runtime(request: pytest.FixtureRequest, cache: Path) -> str:
    from tests.gpu.conftest import skip_unless_it_works

    if STAND_IN:
        pytest.skip("nothing stands in for the compiler")
    skip_unless_it_works(request.param)
    return str(request.param)


def test_run_writes_what_the_cpu_writes(runtime: str, models: Any) -> None:
    from edgemem.cli import main

    _, bundle = models("tokens")

    def run(*options: str) -> Any:
        arguments = [
            "run",
            str(bundle.path),
            "--prompt-ids",
            "1,2,3,4,5,6,7",
            "--max-tokens",
            "50",
            "--temperature",
            "0",
        ]
        done = CliRunner().invoke(main, [*arguments, "--json", *options])
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)

    assert (
        run("--runtime", runtime, "--device", "cuda")["ids"]
        == run("--runtime", "onnxruntime", "--device", "cpu")["ids"]
    )


def test_bench_measures(runtime: str, models: Any, tmp_path: Path) -> None:
    from edgemem.cli import main

    _, bundle = models("tokens")
    out = tmp_path / "bench.json"
    arguments = ["bench", str(bundle.path), "--runtime", runtime, "--device", "cuda", "--quick", "--json", str(out)]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    found = json.loads(out.read_text())
    (median,) = (p["value_ms"] for p in found["steps"]["latency"]["percentiles"] if p["percent"] == 50)
    assert 0 < found["gpu_time"]["gpu_ms"] <= 2 * median
    assert (found["gpu_time"]["graph_ms"] is not None) == (runtime != "tensorrt-rtx")


def test_a_graph_makes_steps_faster(recording_gpu: Gpu, models: Any, record_property: Any) -> None:
    """Side by side in turns; the ratio is in the report (``--junitxml``) and printed with ``-s``."""
    import time

    if STAND_IN:
        pytest.skip("a stand-in has no speed")
    _, bundle = models("tokens")

    def turn(session: Session) -> float:
        stream = session.stream()
        for i in range(50):
            stream.step(i % tiny.VOCAB)
        began = time.perf_counter()
        for i in range(300):
            stream.step(i % tiny.VOCAB)
        return time.perf_counter() - began

    with recording_gpu.open(bundle) as graphs, recording_gpu.open(bundle, cuda_graphs=False) as plain:
        ratios = [turn(plain) / turn(graphs) for _ in range(7)]
    ratio = float(np.median(ratios))
    record_property("without_graphs_over_with", ratio)
    print(f"\n{recording_gpu.runtime}: a step without graphs takes {ratio:.2f} times as long as with")
    assert ratio > 1
