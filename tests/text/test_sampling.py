import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgemem.errors import EdgememError, InputError, NonFiniteError
from edgemem.text.sampling import Sampler

# Few distinct values, so that ties are common.
LOGITS = hnp.arrays(np.float32, st.integers(1, 40), elements=st.sampled_from([-np.inf, -3.0, -1.0, 0.0, 0.5, 2.0, 7.0]))
SOME_LOGITS = LOGITS.filter(lambda logits: bool(np.isfinite(logits).any()))
TEMPERATURES = st.sampled_from([0.01, 0.3, 1.0, 2.5])


def by_hand(logits: np.ndarray, temperature: float, top_k: int | None, top_p: float) -> list[float]:
    """The definition, token by token, in plain Python."""
    largest = max(logits.tolist())
    weights = [math.exp((value - largest) / temperature) for value in logits.tolist()]
    best_first = sorted(range(len(weights)), key=lambda token: (-weights[token], token))
    kept = best_first[: top_k or None]
    if top_p < 1:
        mass = top_p * sum(weights[token] for token in kept)
        reached, nucleus = 0.0, []
        for token in kept:
            if reached >= mass:
                break
            nucleus.append(token)
            reached += weights[token]
        kept = nucleus
    total = sum(weights[token] for token in kept)
    chances = [0.0] * len(weights)
    for token in kept:
        chances[token] = weights[token] / total
    return chances


@given(SOME_LOGITS, TEMPERATURES, st.one_of(st.none(), st.integers(0, 50)))
def test_temperature_and_top_k_follow_the_definition(logits, temperature, top_k):
    found = Sampler(temperature, top_k).distribution(logits)
    np.testing.assert_allclose(found, by_hand(logits, temperature, top_k, 1.0), rtol=1e-12, atol=1e-300)


# If a partial sum equals top_p up to rounding, two ways of summing may differ by a token. Odd values avoid it.
@given(SOME_LOGITS, TEMPERATURES, st.one_of(st.none(), st.integers(1, 50)), st.sampled_from([0.0001, 0.3137, 0.9171]))
def test_top_p_keeps_the_fewest_most_probable_tokens_that_reach_it(logits, temperature, top_k, top_p):
    found = Sampler(temperature, top_k, top_p).distribution(logits)
    np.testing.assert_allclose(found, by_hand(logits, temperature, top_k, top_p), rtol=1e-12, atol=1e-300)


@given(st.integers(0, 10), st.sampled_from([0.05, 0.5123, 0.9, 0.999]), st.sampled_from([0.3, 1.0, 30.0]))
def test_the_nucleus_of_a_large_vocabulary_equals_that_of_a_full_sort(seed, top_p, temperature):
    logits = np.random.default_rng(seed).normal(size=3_000)
    found = Sampler(temperature, None, top_p).distribution(logits)
    np.testing.assert_allclose(found, by_hand(logits, temperature, None, top_p), rtol=1e-9, atol=1e-300)


@given(SOME_LOGITS, TEMPERATURES, st.sampled_from([0.0, 0.1, 0.5, 1.0]), st.sampled_from([None, 3]))
def test_min_p_drops_tokens_less_probable_than_that_share_of_the_most_probable(logits, temperature, min_p, top_k):
    found = Sampler(temperature, top_k, min_p=min_p).distribution(logits)
    chances = np.array(by_hand(logits, temperature, top_k, 1.0))
    kept = np.where(chances >= min_p * chances.max() * (1 - 1e-12), chances, 0)
    np.testing.assert_allclose(found, kept / kept.sum(), rtol=1e-12, atol=1e-300)


@given(SOME_LOGITS)
def test_temperature_0_is_greedy_and_takes_the_lowest_id_of_equals(logits):
    expected = min(token for token in range(len(logits)) if logits[token] == logits.max())
    assert Sampler(temperature=0)(logits) == expected
    assert Sampler(temperature=0).distribution(logits)[expected] == 1
    assert Sampler(temperature=1, top_k=1)(logits) == expected
    assert Sampler(temperature=1, top_p=1e-9)(logits) == expected


@given(SOME_LOGITS)
def test_top_k_of_0_none_or_the_vocabulary_keeps_every_token(logits):
    whole = Sampler().distribution(logits)
    for top_k in (0, None, len(logits), len(logits) + 5):
        np.testing.assert_array_equal(Sampler(top_k=top_k).distribution(logits), whole)


@given(SOME_LOGITS, st.integers(0, 2**32))
def test_a_token_of_probability_0_is_never_drawn(logits, seed):
    sampler = Sampler(temperature=0.7, top_k=5, top_p=0.9, seed=seed)
    chances = sampler.distribution(logits)
    assert all(chances[sampler(logits)] > 0 for _ in range(5))


def test_draws_follow_the_distribution():
    logits = np.log([0.5, 0.0625, 0.25, 0.1875])
    sampler = Sampler(seed=1)
    draws = np.bincount([sampler(logits) for _ in range(20_000)], minlength=4) / 20_000
    np.testing.assert_allclose(draws, [0.5, 0.0625, 0.25, 0.1875], atol=0.015)  # over 4 standard deviations


class HighestDraw:
    """A generator at the upper end of its range."""

    def random(self) -> float:
        return 1 - 2.0**-53


@pytest.mark.parametrize("size", [1, 3, 10, 1000])
def test_the_highest_possible_draw_is_a_token_of_probability_above_0(size):
    sampler = Sampler()
    object.__setattr__(sampler, "_generator", HighestDraw())
    logits = np.append(np.linspace(0, 1, size), -np.inf)
    assert sampler(logits) == size - 1


def test_a_seed_makes_the_draws_repeatable():
    logits = np.zeros(1000)
    first, second, other = (Sampler(seed=seed) for seed in (7, 7, 8))
    draws = [first(logits) for _ in range(20)]
    assert draws == [second(logits) for _ in range(20)]
    assert draws != [other(logits) for _ in range(20)]


def test_without_a_seed_two_samplers_differ():
    logits = np.zeros(100_000)
    one, other = Sampler(), Sampler()
    assert [one(logits) for _ in range(8)] != [other(logits) for _ in range(8)]


def test_logits_can_be_integers_and_can_be_large():
    assert Sampler(temperature=0)(np.array([1, 5, 3])) == 1
    assert Sampler(temperature=0.001, seed=0)(np.array([3e38, -3e38, 0], dtype=np.float32)) == 0
    assert Sampler(temperature=5e-324, seed=0)(np.array([1.0, 2.0])) == 1


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_p": math.nan},
        {"seed": -1},
    ],
)
def test_the_error_names_the_setting_that_is_out_of_range(options):
    (name,) = options
    with pytest.raises(InputError, match=name):
        Sampler(**options)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    ("logits", "error"),
    [
        ([], InputError),
        ([[1.0, 2.0]], InputError),
        ([1.0, math.nan], NonFiniteError),
        ([1.0, math.inf], NonFiniteError),
        ([-math.inf, -math.inf], NonFiniteError),
    ],
)
def test_logits_without_a_distribution_are_an_error(temperature, logits, error):
    with pytest.raises(EdgememError) as caught:
        Sampler(temperature)(np.array(logits))
    assert caught.type is error
