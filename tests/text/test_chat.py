"""What a conversation feeds, turn by turn, is what transformers renders of the whole conversation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgemem.errors import BundleError, InputError, SnapshotError
from edgemem.text import JsonTokenizer
from edgemem.text.chat import Conversation
from edgemem.text.chat_template import ChatTemplate
from tests.text import chat_templates
from tests.text.chat_templates import FAITHFUL, assistant, user
from tests.text.conftest import COMPLETE, SPECIAL

Talk = Callable[..., tuple[list[int], Conversation]]


@pytest.fixture(scope="module")
def talk(tokenizers: dict[str, tuple[JsonTokenizer, Any]]) -> Talk:
    """Holds a conversation whose replies are given, and gives every token that the model reads in it."""

    def hold(name: str, source: str, turns: list[str], system: str | None = None) -> tuple[list[int], Conversation]:
        ours, theirs = tokenizers[name]
        conversation = Conversation(ChatTemplate(source, SPECIAL), ours, system)
        ends = conversation.turn_ends()
        read: list[int] = []
        for number, text in enumerate(turns):
            if number % 2 == 0:
                read += conversation.say(text, fresh=not read).tolist()
            else:
                # A model draws what it was trained on: the reply as it stands in the rendered text.
                whole = theirs.apply_chat_template(
                    [*([{"role": "system", "content": system}] if system else []), *alternating(turns[: number + 1])],
                    chat_template=source,
                    tokenize=False,
                )
                rest = theirs.encode(whole, add_special_tokens=False)[len(read) :]
                end = next((place for place, token in enumerate(rest) if token in ends), None)
                drawn = rest[: len(rest) if end is None else end]
                read += drawn
                conversation.answered(ours.decode(drawn), end=None if end is None else rest[end])
        return read, conversation

    return hold


def alternating(turns: list[str]) -> list[dict[str, str]]:
    return [user(text) if number % 2 == 0 else assistant(text) for number, text in enumerate(turns)]


@pytest.mark.parametrize("name", COMPLETE)
@pytest.mark.parametrize("style", sorted(set(FAITHFUL) - {"plain"}))
@pytest.mark.parametrize("system", [None, "Be tea."])
def test_what_is_fed_turn_by_turn_is_the_conversation_rendered_at_once(tokenizers, talk, name, style, system):
    turns = ["the tea", "tea the tea", "東京?", "é", "the\nthe", "tea", "sea"]
    if style == "no system":
        system = None
    read, conversation = talk(name, FAITHFUL[style], turns, system)
    messages = [*([{"role": "system", "content": system}] if system else []), *alternating(turns)]
    theirs = tokenizers[name][1].apply_chat_template(
        messages, chat_template=FAITHFUL[style], add_generation_prompt=True, return_dict=False
    )
    assert read == theirs
    assert conversation.notice is None


WORDS = st.text(st.sampled_from("theas .東🚋"), min_size=1, max_size=8).map(str.strip).filter(bool)


@pytest.mark.parametrize("style", ["chatml", "headers"])
@settings(max_examples=25)
@given(turns=st.lists(WORDS, min_size=1, max_size=9).filter(lambda turns: len(turns) % 2 == 1))
def test_what_is_fed_is_the_whole_conversation_for_any_words(tokenizers, talk, style, turns):
    read, conversation = talk("byte_level", FAITHFUL[style], turns)
    theirs = tokenizers["byte_level"][1].apply_chat_template(
        alternating(turns), chat_template=FAITHFUL[style], add_generation_prompt=True, return_dict=False
    )
    assert read == theirs
    assert conversation.notice is None


def conversation_of(tokenizers: dict[str, tuple[JsonTokenizer, Any]], source: str, **given: Any) -> Conversation:
    return Conversation(ChatTemplate(source, SPECIAL), tokenizers["byte_level"][0], **given)


def said(conversation: Conversation, tokens: Any) -> str:
    """The text of tokens, special ones too."""
    inner: Any = conversation.tokenizer
    return str(inner._tokenizer.decode(list(tokens), skip_special_tokens=False))


def answer(conversation: Conversation, reply: str, end: str | None = None) -> None:
    token = None if end is None else int(conversation.tokenizer.encode(end)[0])
    conversation.answered(reply, end=token)


@pytest.mark.parametrize(
    ("source", "end"),
    [
        (chat_templates.CHATML, "<|im_end|>"),
        (chat_templates.HEADERS, "</s>"),
        (chat_templates.NO_SYSTEM, "<|im_end|>"),
        (chat_templates.INSTRUCTIONS, "</s>"),
        (chat_templates.PLAIN, None),
        (chat_templates.FORGETS_REPLIES, None),
    ],
)
def test_the_token_after_a_reply_ends_the_models_turn(tokenizers, source, end):
    conversation = conversation_of(tokenizers, source)
    expected = set() if end is None else set(conversation.tokenizer.encode(end).tolist())
    assert conversation.turn_ends() == expected


def test_an_end_that_the_template_does_not_write_is_not_fed(tokenizers):
    conversation = conversation_of(tokenizers, chat_templates.CHATML)
    conversation.say("a")
    answer(conversation, "b", end="</s>")
    assert said(conversation, conversation.say("c")).startswith("<|im_end|>\n<|im_start|>user")


def test_a_reply_that_was_cut_short_is_closed_by_the_template_after_its_unread_tokens(tokenizers):
    conversation = conversation_of(tokenizers, chat_templates.HEADERS)
    conversation.say("a")
    conversation.answered("the te", unread=conversation.tokenizer.encode("te").tolist())
    expected = "te</s><|start|>user<|end|>\n\nc</s><|start|>assistant<|end|>\n\n"
    assert said(conversation, conversation.say("c")) == expected


def test_what_the_model_generated_of_the_template_is_not_fed_again(tokenizers):
    conversation = conversation_of(tokenizers, chat_templates.PLAIN)
    conversation.say("a")
    conversation.answered("b", overrun="\n\nUser:")
    assert said(conversation, conversation.say("c")) == " c\n\nAssistant:"


def test_a_conversation_that_continues_a_stream_does_not_feed_the_first_token_again(tokenizers):
    fresh, later = (conversation_of(tokenizers, chat_templates.HEADERS) for _ in range(2))
    assert said(fresh, fresh.say("a")).startswith("<s><|start|>user")
    assert said(later, later.say("a", fresh=False)).startswith("<|start|>user")


def test_a_template_that_rewrites_the_past_causes_a_notice_and_the_new_turn_is_fed(tokenizers):
    thinking = conversation_of(tokenizers, chat_templates.FORGETS_THOUGHTS)
    thinking.say("a")
    answer(thinking, "b", end="<|im_end|>")
    thinking.say("c")
    assert thinking.notice is None
    answer(thinking, "<think>hm</think> d", end="<|im_end|>")
    expected = "<|im_end|>\n<|im_start|>user\ne<|im_end|>\n<|im_start|>assistant\n"
    assert said(thinking, thinking.say("e")) == expected
    assert "rewrites earlier turns" in (thinking.notice or "")

    moving = conversation_of(tokenizers, chat_templates.SYSTEM_LAST, system="tea")
    assert said(moving, moving.say("a")) == "<s>[INST]tea a[/INST]"
    answer(moving, "b", end="</s>")
    assert said(moving, moving.say("c")) == "</s>[INST]tea c[/INST]"
    assert "rewrites earlier turns" in (moving.notice or "")


def test_a_template_without_replies_feeds_each_message_as_a_new_conversation(tokenizers):
    conversation = conversation_of(tokenizers, chat_templates.FORGETS_REPLIES)
    assert said(conversation, conversation.say("a")) == "<s>[INST]a[/INST]"
    answer(conversation, "b", end="</s>")
    assert said(conversation, conversation.say("c")) == "[INST]c[/INST]"
    assert "each message is fed as a new conversation" in (conversation.notice or "")


def test_a_template_that_writes_nothing_is_a_bundle_error(tokenizers):
    conversation = Conversation(ChatTemplate("", SPECIAL), tokenizers["byte_level"][0])
    with pytest.raises(BundleError, match="the chat template writes nothing"):
        conversation.say("tea?")
    assert conversation.user is None


def test_a_rejected_message_leaves_the_conversation_as_it_was(tokenizers):
    conversation = conversation_of(
        tokenizers, "{% if messages[-1].content == 'x' %}{{ raise_exception('no x') }}{% endif %}a"
    )
    with pytest.raises(InputError, match="no x"):
        conversation.say("x")
    assert conversation.user is None
    assert said(conversation, conversation.say("y")) == "a"


def test_what_is_kept_does_not_grow_with_the_conversation(tokenizers):
    conversation = conversation_of(tokenizers, chat_templates.CHATML, system="tea")
    sizes = set()
    for _ in range(50):
        conversation.say("the tea")
        answer(conversation, "tea", end="<|im_end|>")
        sizes.add(len(str(conversation.to_json())))
    assert len(sizes) == 1


def test_a_conversation_continues_from_its_json(tokenizers):
    one, two = (conversation_of(tokenizers, chat_templates.CHATML, system=text) for text in ("tea", None))
    one.say("a")
    answer(one, "b", end="<|im_end|>")
    two.restore(one.to_json(), one.unread)
    assert two == Conversation(two.template, two.tokenizer, "tea", "a", "b", one.end)
    assert two.say("c").tolist() == one.say("c").tolist()


@pytest.mark.parametrize("data", [None, [], {}, {"system": 1}, {"system": None, "user": "a", "reply": None}])
def test_malformed_json_is_a_snapshot_error(tokenizers, data):
    with pytest.raises(SnapshotError, match="malformed"):
        conversation_of(tokenizers, "").restore(data, ())


def test_reset_forgets_everything_except_the_system_message(tokenizers):
    conversation = conversation_of(tokenizers, chat_templates.CHATML, system="tea")
    first = conversation.say("a").tolist()
    answer(conversation, "b", end="<|im_end|>")
    conversation.say("a")
    conversation.reset()
    assert conversation.say("a").tolist() == first
