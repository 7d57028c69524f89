"""Generation from a stream. The reciting model writes RECITED again and again: byte p + 1 at position p."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import edgemem
from edgemem.errors import InputError, NonFiniteError
from edgemem.runtimes import Session
from edgemem.text import ByteTokenizer, Piece, Sampler, generate
from tests.handmade import RECITED, write_reciter

DATA = RECITED.encode()
GREEDY = Sampler(0)
PROMPT = list(b"abc")


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    folder: Path = write_reciter(tmp_path_factory.mktemp("bundles") / "reciter")
    with edgemem.open(folder, threads=1) as session:
        yield session


def recited(start: int, count: int) -> list[int]:
    """What the model writes at positions ``start`` to ``start + count - 1``."""
    return [DATA[(start + step + 1) % len(DATA)] for step in range(count)]


def tokens_of(pieces: list[Piece]) -> list[int]:
    return [piece.token for piece in pieces if piece.token is not None]


def text_of(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


class Counting:
    """A wrapper of a stream that counts its calls, and fails at the step it is told."""

    def __init__(self, stream: edgemem.Stream, fails_at: int | None = None) -> None:
        self.stream = stream
        self.fails_at = fails_at
        self.fed: list[int] = []
        self.steps = 0
        self.top_steps = 0

    def feed(self, x: Any, outputs: Any) -> NDArray[Any] | None:
        self.fed.append(len(x))
        return self.stream.feed(x, outputs)

    def step(self, x: Any) -> NDArray[Any]:
        self.steps += 1
        if self.steps == self.fails_at:
            raise NonFiniteError("step failed.")
        return self.stream.step(x)

    def step_top(self, x: Any) -> Any:
        self.top_steps += 1
        return self.stream.step_top(x)


def test_a_prompt_is_continued_and_the_stream_has_read_all_but_the_last_token(session):
    stream = session.stream()
    generation = generate(stream, PROMPT, GREEDY, max_tokens=20)
    assert (stream.position, generation.unread) == (0, PROMPT)  # nothing runs before it is iterated
    pieces = list(generation)
    assert tokens_of(pieces) == recited(2, 20)
    assert text_of(pieces) == ""
    assert generation.ended_by == "max_tokens"
    assert (generation.prompt_tokens, generation.tokens) == (3, 20)
    assert generation.unread == [generation.pending] == recited(21, 1)
    assert stream.position == 22
    assert generation.prefill_seconds > 0
    assert generation.decode_seconds > 0


@pytest.mark.parametrize("count", range(1, 40))
def test_no_piece_ends_inside_a_character_and_a_cut_one_is_replaced_at_the_end(session, count):
    pieces = list(generate(session.stream(), [0], GREEDY, ByteTokenizer().detokenizer(), max_tokens=count))
    assert tokens_of(pieces) == recited(0, count)
    assert text_of(pieces) == bytes(recited(0, count)).decode("utf-8", "replace")
    assert all("\ufffd" not in piece.text for piece in pieces if piece.token is not None)


def test_a_token_that_ends_the_text_has_no_text_and_is_not_read(session):
    stream = session.stream()
    generation = generate(stream, [0], GREEDY, ByteTokenizer().detokenizer(), end_ids={ord("n"), ord("v")})
    assert text_of(list(generation)) == "he "
    assert (generation.ended_by, generation.pending, generation.tokens) == ("eos", ord("n"), 4)
    assert stream.position == 4


@pytest.mark.parametrize("stop", ["serves", "東京", "é s", " "])
def test_the_text_ends_before_a_stop_text(session, stop):
    generation = generate(session.stream(), [0], GREEDY, ByteTokenizer().detokenizer(), stop_texts=("never", stop))
    assert text_of(list(generation)) == RECITED[1:].partition(stop)[0]
    assert (generation.ended_by, generation.stopped_at) == ("stop", stop)


@pytest.mark.parametrize("calls", range(9))
def test_a_generation_that_was_stopped_can_be_continued_from_what_is_unread(session, calls):
    """The prompt of 40 tokens takes 3 chunks, so that it is stopped in the prompt and between steps."""
    prompt = [1] * 40
    whole = tokens_of(list(generate(session.stream(), prompt, Sampler(0.01), max_tokens=20)))
    stream, left = session.stream(), calls

    def stop() -> bool:
        nonlocal left
        left -= 1
        return left < 0

    first = generate(stream, prompt, Sampler(0.01), stop=stop, chunk=16)
    drawn = tokens_of(list(first))
    assert first.ended_by == "interrupt"
    assert first.prompt_tokens == min(40, 16 * calls)
    assert len(drawn) == max(0, calls - 2)
    rest = generate(stream, first.unread, Sampler(0.01), max_tokens=20 - len(drawn))
    assert drawn + tokens_of(list(rest)) == whole


def test_text_that_was_held_back_is_given_out_when_it_is_stopped(session):
    answers = iter([False] * 4 + [True])
    detokenizer = ByteTokenizer().detokenizer()
    generation = generate(
        session.stream(), [0], GREEDY, detokenizer, stop_texts=["e never"], stop=lambda: next(answers)
    )
    assert list(generation) == [(ord("h"), "h"), (ord("e"), ""), (ord(" "), ""), (ord("n"), ""), (None, "e n")]


def test_an_error_is_raised_after_the_text_that_was_drawn_before_it(session):
    stream = Counting(session.stream(), fails_at=3)
    generation = generate(stream, [0], Sampler(0.01), ByteTokenizer().detokenizer(), stop_texts=["e never"])
    assert [next(generation) for _ in range(4)] == [(ord("h"), "h"), (ord("e"), ""), (ord(" "), ""), (None, "e ")]
    with pytest.raises(NonFiniteError, match="step failed"):
        next(generation)
    assert generation.ended_by is None
    assert generation.unread == [generation.pending] == [ord(" ")]


def test_the_prompt_is_fed_in_chunks_and_greedy_steps_fetch_only_the_largest_logit(session):
    greedy, drawn = Counting(session.stream()), Counting(session.stream())
    for stream, sampler in ((greedy, GREEDY), (drawn, Sampler(0.01))):
        assert tokens_of(list(generate(stream, [1] * 40, sampler, max_tokens=5, chunk=16))) == recited(39, 5)
        assert stream.fed == [16, 16, 8]
    assert (greedy.steps, greedy.top_steps) == (0, 4)
    assert (drawn.steps, drawn.top_steps) == (4, 0)


def test_generations_run_in_several_threads_on_streams_of_one_session(session):
    def text(seed: int) -> list[int]:
        return tokens_of(list(generate(session.stream(), [seed], Sampler(8.0, seed=seed), max_tokens=200)))

    alone = [text(seed) for seed in range(8)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(text, range(8))) == alone
    assert len({tuple(tokens) for tokens in alone}) == 8


def test_two_generations_can_take_turns(session):
    one, two = (generate(session.stream(), [0] * n, GREEDY, max_tokens=5) for n in (1, 2))
    turns = [(a.token, b.token) for a, b in zip(one, two, strict=True)]
    assert turns == list(zip(recited(0, 5), recited(1, 5), strict=True))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": []}, r"1 or more token ids, got shape \[0\]"),
        ({"prompt": [[1, 2]]}, r"one row .* got shape \[1, 2\]"),
        ({"max_tokens": 0}, "must be 1 or more, got 0"),
        ({"chunk": 0}, "must be 1 or more"),
        ({"stop_texts": ["a", ""]}, "stop text is empty"),
    ],
)
def test_wrong_arguments_are_refused_at_once(session, arguments, message):
    with pytest.raises(InputError, match=message):
        generate(session.stream(), **{"prompt": [1], "sampler": GREEDY, **arguments})


@pytest.mark.parametrize("prompt", [[256], [-1], np.array([0.5])])
def test_tokens_that_the_model_does_not_have_are_refused(session, prompt):
    stream = session.stream()
    with pytest.raises(InputError):
        next(generate(stream, prompt, GREEDY))
    assert stream.position == 0
