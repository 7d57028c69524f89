"""An option replaces the bundle's default, which replaces edgemem's."""

import json

import click
import pytest

from edgemem.cli.run_options import MAX_TOKENS, TEMPERATURE, SamplingOptions
from edgemem.generation_defaults import GenerationDefaults
from tests.handmade import write_token_reciter
from tests.text.tiny_tokenizers import byte_level, metaspace, with_bos

ALL = GenerationDefaults((1, 2), 0, True, 0.6, 20, 0.9, 0.1, 99)
GREEDY = ("--temperature", "0")


def settings_of(
    options: SamplingOptions, defaults: GenerationDefaults
) -> tuple[float, int | None, float, float, int | None]:
    chosen = options.resolve(defaults)
    sampler = chosen.sampler
    return sampler.temperature, sampler.top_k, sampler.top_p, sampler.min_p, chosen.max_tokens


def test_without_options_and_defaults_edgemem_decides():
    assert settings_of(SamplingOptions(), GenerationDefaults()) == (TEMPERATURE, 0, 1.0, 0.0, MAX_TOKENS)


def test_the_defaults_of_the_models_authors_are_followed():
    assert settings_of(SamplingOptions(), ALL) == (0.6, 20, 0.9, 0.1, 99)
    assert SamplingOptions().resolve(ALL).end_ids == {1, 2}


def test_options_replace_the_authors_defaults_also_with_zeros():
    assert settings_of(SamplingOptions(0, 0.0, 0, 1.0, 0.0, 3), ALL) == (0.0, 0, 1.0, 0.0, None)
    assert SamplingOptions(ignore_eos=True).resolve(ALL).end_ids == frozenset()


def test_a_greedy_default_is_followed_unless_an_option_of_sampling_is_given():
    greedy = GenerationDefaults(do_sample=False, temperature=0.7, top_p=0.9)
    assert settings_of(SamplingOptions(), greedy)[0] == 0
    assert settings_of(SamplingOptions(seed=1), greedy)[0] == 0
    assert settings_of(SamplingOptions(top_k=5), greedy) == (0.7, 5, 0.9, 0.0, MAX_TOKENS)
    assert settings_of(SamplingOptions(temperature=1.5), greedy)[0] == 1.5


@pytest.mark.parametrize("values", [{"temperature": float("nan")}, {"stop_texts": ("a", "")}, {"top_p": 0.0}])
def test_an_option_out_of_range_is_wrong_usage(values):
    with pytest.raises(click.UsageError):
        SamplingOptions(**values).resolve(ALL)


def test_a_run_ends_at_the_token_that_ends_a_text_and_does_not_show_it(tmp_path, invoke):
    made = byte_level()
    ids = made.encode("<s>the tea</s>the tea").ids
    bundle = write_token_reciter(
        tmp_path / "bundle",
        ids,
        made.get_vocab_size(),
        {"tokenizer.json": made.to_str()},
        generation=GenerationDefaults((1,), 0, do_sample=False, max_new_tokens=4),
    )
    said = json.loads(invoke("run", bundle, "--prompt-ids", "0", "--json").stdout)
    assert (said["text"], said["ended_by"], said["ids"]) == ("the tea", "eos", ids[1:4])
    cut = json.loads(invoke("run", bundle, "--prompt-ids", "0", "--ignore-eos", "--json").stdout)
    assert (cut["ended_by"], cut["ids"]) == ("max_tokens", ids[1:5])


def test_an_empty_prompt_feeds_the_token_that_begins_a_text(tmp_path, invoke):
    made = byte_level()
    files = {"tokenizer.json": made.to_str()}
    bundle = write_token_reciter(
        tmp_path / "bundle", [5], made.get_vocab_size(), files, generation=GenerationDefaults(bos_token_id=0)
    )
    said = json.loads(invoke("run", bundle, "--prompt", "", "--max-tokens", "1", *GREEDY, "--json").stdout)
    assert said["prompt_tokens"] == 1


@pytest.mark.parametrize("make", [byte_level, metaspace])
def test_text_continues_a_prompt_and_a_snapshot_without_losing_a_blank(tmp_path, invoke, make):
    made = with_bos(make())
    ids = made.encode("the tea the naïve tea 東京 tea").ids
    bundle = write_token_reciter(tmp_path / "bundle", ids, made.get_vocab_size(), {"tokenizer.json": made.to_str()})
    state = tmp_path / "state"
    text = "the"
    text += invoke("run", bundle, "--prompt", "the", "--max-tokens", "1", *GREEDY, "--snapshot", state).stdout[:-1]
    for _ in range(len(ids) - len(made.encode("the").ids) - 1):
        arguments = ("--resume", state, "--max-tokens", "1", *GREEDY, "--snapshot", state)
        text += invoke("run", bundle, *arguments).stdout[:-1]
    # A character that is cut off by the end of a run is replaced there, and complete in the run that gets its rest.
    assert text.replace("\ufffd", "") == "the tea the naïve tea 東京 tea"
