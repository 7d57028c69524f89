"""From probabilities to segments: what the rules say, and that an event never has to be taken back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edgemem.audio.segments import Event, Segmenter, SegmentRules

RATE, WINDOW = 1000, 10  # a window is 10 ms
RULES = SegmentRules(threshold=0.5, min_speech_ms=30, min_silence_ms=20, pad_ms=5)
SPEECH, SILENCE, BETWEEN = 0.9, 0.1, 0.4


def events(probabilities: list[float], length: int | None = None, rules: SegmentRules = RULES) -> list[Event]:
    segmenter = Segmenter(rules, RATE, WINDOW)
    length = len(probabilities) * WINDOW if length is None else length
    whole = length // WINDOW
    return [*segmenter.feed(probabilities[:whole]), *segmenter.finish(probabilities[whole:], length)]


def segments(probabilities: list[float], length: int | None = None, rules: SegmentRules = RULES) -> list[tuple]:
    return [(event.start, event.end) for event in events(probabilities, length, rules) if event.end is not None]


def oracle(probabilities: list[float], length: int, rules: SegmentRules) -> list[tuple]:
    """The segments by their definition, with the whole recording at hand."""
    speech = [p >= rules.threshold for p in probabilities]
    silent = [p < rules.threshold - 0.15 for p in probabilities]
    found, at = [], 0
    while any(speech[at:]):
        start = at + speech[at:].index(True)
        ends = [i for i in range(start + 1, len(speech)) if silent[i] and ended(i, speech, silent, rules)]
        end = ends[0] * WINDOW if ends else length
        if end - start * WINDOW > RATE * rules.min_speech_ms / 1000:
            found.append([start * WINDOW, end])
        if not ends:
            break
        at = ends[0]
        while not (silent[at] and (at - ends[0]) * WINDOW >= RATE * rules.min_silence_ms / 1000):
            at += 1
        at += 1
    return padded(found, length, RATE * rules.pad_ms / 1000)


def ended(first: int, speech: list[bool], silent: list[bool], rules: SegmentRules) -> bool:
    """Whether the silence that begins at a window lasts long enough."""
    if any(silent[j] and not any(speech[j:first]) for j in range(max(0, first - 1), first)):
        return False  # it began before
    for i in range(first, len(speech)):
        if speech[i]:
            return False
        if silent[i] and (i - first) * WINDOW >= RATE * rules.min_silence_ms / 1000:
            return True
    return False


def padded(found: list[list[int]], length: int, pad: float) -> list[tuple]:
    raw = [tuple(pair) for pair in found]
    for index, (start, end) in enumerate(raw):
        before = start - raw[index - 1][1] if index else 2 * pad
        after = raw[index + 1][0] - end if index + 1 < len(raw) else 2 * pad
        found[index] = [
            int(max(0, start - (pad if before >= 2 * pad else before // 2))),
            int(min(length, end + (pad if after >= 2 * pad else after // 2))),
        ]
    return [tuple(pair) for pair in found]


def test_speech_between_silences_is_a_segment_widened_on_both_sides() -> None:
    assert segments([SILENCE] * 3 + [SPEECH] * 5 + [SILENCE] * 5) == [(25, 85)]


def test_speech_that_is_too_short_is_dropped() -> None:
    assert segments([SILENCE] + [SPEECH] * 3 + [SILENCE] * 5) == []
    assert segments([SILENCE] + [SPEECH] * 4 + [SILENCE] * 5) == [(5, 55)]


def test_a_short_pause_does_not_end_a_segment() -> None:
    assert segments([SPEECH] * 4 + [SILENCE] * 2 + [SPEECH] * 4 + [SILENCE] * 3) == [(0, 105)]
    assert segments([SPEECH] * 4 + [SILENCE] * 3 + [SPEECH] * 4 + [SILENCE] * 3) == [(0, 45), (65, 115)]


def test_what_lies_between_the_thresholds_neither_begins_nor_ends_a_segment() -> None:
    assert segments([BETWEEN] * 9) == []
    assert segments([SPEECH] * 2 + [BETWEEN] * 9) == [(0, 110)]


def test_speech_at_the_end_ends_with_the_recording() -> None:
    assert segments([SILENCE] + [SPEECH] * 6, length=66) == [(5, 66)]


def test_neighbours_share_a_silence_that_is_shorter_than_their_padding() -> None:
    rules = SegmentRules(min_speech_ms=0, min_silence_ms=10, pad_ms=100)
    assert segments([SPEECH] * 3 + [SILENCE] * 4 + [SPEECH] * 3, rules=rules) == [(0, 50), (50, 100)]


def test_a_segment_begins_as_soon_as_it_is_long_enough_to_stay() -> None:
    segmenter = Segmenter(RULES, RATE, WINDOW)
    assert [len(list(segmenter.feed([SPEECH]))) for _ in range(5)] == [0, 0, 0, 1, 0]
    assert list(segmenter.feed([SILENCE] * 3)) == [Event(0, 55)]


PROBABILITIES = st.lists(st.sampled_from([0.0, SILENCE, 0.35, BETWEEN, 0.5, SPEECH]), max_size=40)
ANY_RULES = st.builds(
    SegmentRules,
    st.sampled_from([0.5, 0.9]),
    *(st.sampled_from(ms) for ms in ([0, 15, 30, 50], [0, 10, 25], [0, 5, 12, 40])),
)


@settings(max_examples=200, deadline=None)
@given(probabilities=PROBABILITIES, rules=ANY_RULES, missing=st.integers(0, WINDOW - 1))
@example(probabilities=[SPEECH, SILENCE], rules=SegmentRules(0.5, 0, 0, 5), missing=6)
def test_segments_are_those_of_the_whole_recording(
    probabilities: list[float], rules: SegmentRules, missing: int
) -> None:
    length = max(0, len(probabilities) * WINDOW - missing)
    found = events(probabilities, length, rules)
    wanted = oracle(probabilities, length, rules)
    assert [(event.start, event.end) for event in found if event.end is not None] == wanted
    # every begin is followed by its own end
    assert [event.start for event in found if event.end is None] == [start for start, _ in wanted]
    assert all(end == Event(start.start, end.end) for start, end in zip(found[::2], found[1::2], strict=True))


@settings(max_examples=50, deadline=None)
@given(probabilities=PROBABILITIES, rules=ANY_RULES, cut=st.integers(0, 40))
def test_a_stream_goes_on_from_its_state(probabilities: list[float], rules: SegmentRules, cut: int) -> None:
    first = Segmenter(rules, RATE, WINDOW)
    found = list(first.feed(probabilities[:cut]))
    again = Segmenter(rules, RATE, WINDOW, first.state)
    found += again.feed(probabilities[cut:])
    found += again.finish([], len(probabilities) * WINDOW)
    assert found == events(probabilities, rules=rules)


@pytest.mark.long
def test_segments_are_those_of_the_silero_vad_package() -> None:
    """With random probabilities and rules; needs ``pip install --no-deps silero-vad``."""
    theirs = pytest.importorskip("silero_vad.utils_vad").get_speech_timestamps_from_probs
    generator = np.random.default_rng(0)
    for number in range(4000):
        rules = SegmentRules()
        if number % 2:
            speech, silence, pad = (float(generator.integers(0, most)) for most in (400, 300, 200))
            rules = SegmentRules(float(generator.choice([0.1, 0.2, 0.5, 0.8])), speech, silence, pad)
        count = int(generator.integers(1, 120))
        values = np.repeat(generator.random(count), generator.choice([1, 3, 8]))[:count]
        length = (count - 1) * 512 + int(generator.integers(1, 513))
        segmenter, whole = Segmenter(rules, 16_000, 512), length // 512
        found = [*segmenter.feed(values[:whole].tolist()), *segmenter.finish(values[whole:].tolist(), length)]
        options = {"min_speech_duration_ms": rules.min_speech_ms, "min_silence_duration_ms": rules.min_silence_ms}
        options |= {"threshold": rules.threshold, "speech_pad_ms": rules.pad_ms, "audio_length_samples": length}
        wanted = [(each["start"], each["end"]) for each in theirs(values.tolist(), **options)]
        assert [(event.start, event.end) for event in found if event.end is not None] == wanted
