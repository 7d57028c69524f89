"""Bad data gets a message that says what was got and what was wanted, and the stream stays as it was."""

from __future__ import annotations

import numpy as np
import pytest

from edgemem.bundle import Bundle
from edgemem.contract import InputSpec
from edgemem.dtypes import decode_bfloat16, encode_bfloat16
from edgemem.errors import InputError
from edgemem.runtimes import Session
from edgemem.runtimes.inputs import step_array, step_writer
from edgemem.runtimes.ort.engine import OrtSession

STEP = [
    (11, 1, "token id 11 is outside the vocabulary: ids run from 0 to 10"),
    (-1, 1, "token id -1 is outside"),
    (10**30, 1, "token id 10+ is outside"),
    (np.array([3, 11]), 2, r"token id 11 \(stream 1, time step 0 of 1\)"),
    (1.0, 1, "dtype float64, wanted integer token ids"),
    (True, 1, "dtype bool"),
    ("a", 1, "Encode text to token ids first"),
    (None, 1, "dtype object"),
    ([1, 2, 3], 1, r"step takes one time step, got 3 .*\n.*feed\(\)"),
    ([[1, 2], [3, 4]], 2, r"step takes one time step, got 2"),
    (1, 2, r"shape \[\]: step of a stream with batch 2 takes \[2\] or \[2, 1\]"),
    ([1, 2, 3], 2, r"shape \[3\]: step of a stream with batch 2"),
    ([[[1]]], 1, r"shape \[1, 1, 1\]"),
    ([], 1, r"shape \[0\]"),
    ([[1, 2], [3]], 2, "cannot be read as one array"),
    (np.array([2**64 - 1], np.uint64), 1, "is outside the vocabulary"),
]
FEED = [
    ([1, 2, 11], 1, r"token id 11 \(stream 0, time step 2 of 3\)"),
    ([[1, 2], [3, -4]], 2, r"token id -4 \(stream 1, time step 1 of 2\)"),
    ([], 1, "feed needs 1 time step or more"),
    (np.zeros((2, 0), np.int64), 2, "feed needs 1 time step or more"),
    ([1, 2], 2, r"shape \[2\]: feed of a stream with batch 2 takes \[2, T\].\n.*own row"),
    ([[1, 2]], 2, r"shape \[1, 2\]"),
    (5, 1, r"shape \[\]: feed of a stream with batch 1 takes \[T\] or \[1, T\]"),
    ([0.5], 1, "dtype float64"),
]


@pytest.mark.parametrize(("x", "batch", "message"), STEP)
def test_step_refuses(session: Session, x: object, batch: int, message: str) -> None:
    stream = session.stream(batch)
    before = stream.snapshot()
    with pytest.raises(InputError, match=message):
        stream.step(x)
    assert stream.snapshot() == before


@pytest.mark.parametrize(("x", "batch", "message"), FEED)
def test_feed_refuses(session: Session, x: object, batch: int, message: str) -> None:
    stream = session.stream(batch)
    before = stream.snapshot()
    with pytest.raises(InputError, match=message):
        stream.feed(x)
    assert stream.snapshot() == before


def test_a_bad_token_late_in_a_long_chunk_changes_nothing(session: Session) -> None:
    stream = session.stream()
    before = stream.snapshot()
    with pytest.raises(InputError, match="time step 99 of 100"):
        stream.feed([*range(9)] * 11 + [99])
    assert stream.snapshot() == before


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros(3), r"shape \[3\]: step .* takes \[2\] or \[1, 2\] or \[1, 1, 2\]"),
        (np.zeros((4, 2)), "step takes one time step, got 4"),
        (np.zeros((1, 3, 2)), "step takes one time step, got 3"),
        (np.zeros(2, complex), "dtype complex128, wanted real numbers"),
        (["a", "b"], "wanted real numbers"),
        (1.0, r"shape \[\]"),
    ],
)
def test_features_of_another_shape_or_dtype_are_refused(features_bundle: Bundle, x: object, message: str) -> None:
    with OrtSession(features_bundle, threads=1, device="cpu") as session, pytest.raises(InputError, match=message):
        session.stream().step(x)


@pytest.mark.parametrize("value", [300, -129, 2**40])
def test_a_whole_number_that_does_not_fit_is_not_wrapped(value: int) -> None:
    spec = InputSpec("level", (1,), "int8")
    with pytest.raises(InputError, match=f"level holds {value}, which does not fit in int8"):
        step_array(spec, [value], 1)
    assert step_array(spec, [-128], 1).tolist() == [[[-128]]]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("x", [1e39, 10**39, np.float64(-1e39)])
def test_a_number_that_is_too_large_becomes_infinity_without_a_warning(dtype: str, x: float) -> None:
    with np.errstate(over="raise"):
        array = step_array(InputSpec("level", (1,), dtype), [float(x)], 1)
    assert np.isinf(decode_bfloat16(array) if dtype == "bfloat16" else array).all()


@pytest.mark.parametrize("x", [3, np.int32(3), [3], [[3]], np.uint8([3]), np.array(3)])
def test_every_spelling_of_one_token_is_the_same_step(session: Session, x: object) -> None:
    np.testing.assert_array_equal(session.stream().step(x), session.stream().step(3))


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "bfloat16"])
@pytest.mark.parametrize("batch", [1, 2])
def test_every_spelling_of_real_values_is_written_as_the_same_step(dtype: str, batch: int) -> None:
    spec = InputSpec("level", (3,), dtype)
    values = np.arange(batch * 3).reshape(batch, 1, 3) - 1
    wanted = step_array(spec, values, batch)
    target = np.zeros_like(wanted)
    write = step_writer(spec, target, batch)
    plain = values.astype(wanted.dtype) if dtype != "bfloat16" else values
    spellings = [plain, plain[:, 0], plain.tolist(), np.repeat(plain, 2, axis=-1)[..., ::2]]
    for x in (*spellings, *([plain[0], plain[0, 0]] if batch == 1 else [])):
        target.fill(9)
        write(x)
        np.testing.assert_array_equal(target, wanted)
    with pytest.raises(InputError):
        write(plain[..., :2])


@pytest.mark.parametrize("batch", [0, -1, 1.5, "2"])
def test_a_stream_needs_a_batch_of_one_or_more(session: Session, batch: object) -> None:
    with pytest.raises(InputError, match="batch of 1 or more"):
        session.stream(batch)  # type: ignore[arg-type]


def test_outputs_is_one_of_three_words(session: Session) -> None:
    with pytest.raises(InputError, match="last, all, none"):
        session.stream().feed([1], outputs="first")  # type: ignore[arg-type]


def test_bfloat16_bits_are_those_of_torch() -> None:
    torch = pytest.importorskip("torch")
    values = np.concatenate(
        [
            np.random.default_rng(0).normal(size=10000).astype(np.float32) * np.float32(1e3),
            np.float32([0, -0.0, np.inf, -np.inf, 3.4e38, 1e-40, 1 + 2**-8, 1 + 3 * 2**-8]),
        ]
    )
    bits = torch.from_numpy(values).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    np.testing.assert_array_equal(encode_bfloat16(values), bits)
    np.testing.assert_array_equal(encode_bfloat16(decode_bfloat16(bits)), bits)
    assert np.isnan(decode_bfloat16(encode_bfloat16(np.float32([np.nan])))).all()
