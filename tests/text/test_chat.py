"""Templates are held to transformers' own rendering of them, conversations to its rendering of the whole."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgemem.bundle import Bundle
from edgemem.errors import BundleError, InputError, MissingDependencyError, SnapshotError
from edgemem.text import JsonTokenizer
from edgemem.text.chat import Conversation
from edgemem.text.chat_template import ChatTemplate, open_chat_template
from tests.text import chat_templates
from tests.text.chat_templates import FAITHFUL
from tests.text.tiny_tokenizers import MADE

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
# Tokenizers that give back any text; the others cannot say the templates' line breaks.
WHOLE = ("byte_level", "metaspace", "prepended", "unmarked")


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[JsonTokenizer, Any]]:
    """Ours and transformers' of each family."""
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tokenizers")
    both = {}
    for name in WHOLE:
        MADE[name]().save(str(folder / f"{name}.json"))
        theirs = PreTrainedTokenizerFast(tokenizer_file=str(folder / f"{name}.json"), **SPECIAL)
        both[name] = (JsonTokenizer(folder / f"{name}.json"), theirs)
    return both


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


SYSTEM = {"role": "system", "content": "Say 'tea' <often> & loudly."}
EXCHANGES = [
    [user("the tea")],
    [user("  the <b>naïve</b> tea\n"), assistant("tea & 東京\n\n"), user('"the"')],
    [SYSTEM, user("the"), assistant("tea"), user("🚋"), assistant("é")],
]


@pytest.mark.parametrize("style", FAITHFUL)
@pytest.mark.parametrize("messages", EXCHANGES)
@pytest.mark.parametrize("reply_follows", [True, False])
def test_a_template_gives_the_text_that_transformers_gives(tokenizers, style, messages, reply_follows):
    template = ChatTemplate(FAITHFUL[style], SPECIAL)
    if style == "no system" and messages[0] is SYSTEM:
        with pytest.raises(InputError, match="System role not supported"):
            template.render(messages, reply_follows=reply_follows)
        return
    expected = tokenizers["byte_level"][1].apply_chat_template(
        messages, chat_template=FAITHFUL[style], tokenize=False, add_generation_prompt=reply_follows
    )
    assert template.render(messages, reply_follows=reply_follows) == expected


def test_a_rejection_shows_the_templates_message_and_a_hint():
    template = ChatTemplate(chat_templates.NO_SYSTEM, SPECIAL, "bundle/chat_template.jinja")
    with pytest.raises(
        InputError, match=r"bundle/chat_template\.jinja rejects .*System role not supported\n.*--system"
    ):
        template.render([SYSTEM, user("a")], reply_follows=True)
    with pytest.raises(InputError, match=r"Roles must alternate[^\n]*$"):
        template.render([user("a"), user("b")], reply_follows=True)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("a\n{% if %}", "here, line 2: "),
        ("{{ 'a' }", "here, line 1: "),
        ("{% nonsense %}", "here, line 1: .*nonsense"),
        ("{{ messages | nonsense }}", "here.*nonsense"),
    ],
)
def test_a_malformed_template_is_an_error_at_once(source, message):
    with pytest.raises(BundleError, match=message):
        ChatTemplate(source, {}, "here")


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.nothing.at_all }}",
        "{{ messages[0]['content'] + 1 }}",
        "{{ messages[0].content.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ range(10 ** 9) | list }}",
        "{% include 'other' %}",
        "{{ 1 // 0 }}",
        "{{ strftime_now(1) }}",
        "{{ messages | tojson(indent=messages) }}",
    ],
)
def test_a_template_that_fails_or_leaves_the_sandbox_is_a_bundle_error(source):
    with pytest.raises(BundleError, match="here fails"):
        print(ChatTemplate(source, {}, "here").render([user("a")], reply_follows=True))


def test_without_the_package_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MissingDependencyError, match=r'pip install "edgemem\[text\]"'):
        ChatTemplate("", {})


def test_a_bundle_without_a_template_has_none(tmp_path):
    def bundle(*files: str) -> Bundle:
        manifest = SimpleNamespace(files=dict.fromkeys(files), special_tokens=SPECIAL)
        return cast(Bundle, SimpleNamespace(manifest=manifest, file=tmp_path.joinpath))

    assert open_chat_template(bundle("tokenizer.json")) is None
    (tmp_path / "chat_template.jinja").write_text("{{ bos_token }}é", encoding="utf-8")
    template = open_chat_template(bundle("chat_template.jinja"))
    assert template is not None
    assert template.render([], reply_follows=False) == "<s>é"
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(BundleError, match="cannot be read"):
        open_chat_template(bundle("chat_template.jinja"))


def test_chat_imports_no_torch():
    code = "import sys, edgemem.text as c; c.ChatTemplate('', {}); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


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
                behind = theirs.encode(whole, add_special_tokens=False)[len(read) :]
                end = next((place for place, token in enumerate(behind) if token in ends), None)
                drawn = behind[: len(behind) if end is None else end]
                read += drawn
                conversation.answered(ours.decode(drawn), end=None if end is None else behind[end])
        return read, conversation

    return hold


def alternating(turns: list[str]) -> list[dict[str, str]]:
    return [user(text) if number % 2 == 0 else assistant(text) for number, text in enumerate(turns)]


@pytest.mark.parametrize("name", WHOLE)
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
def test_so_it_is_for_any_words(tokenizers, talk, style, turns):
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
def test_the_token_behind_a_reply_ends_the_models_turn(tokenizers, source, end):
    conversation = conversation_of(tokenizers, source)
    expected = set() if end is None else set(conversation.tokenizer.encode(end).tolist())
    assert conversation.turn_ends() == expected


def test_an_end_that_the_template_does_not_write_is_not_fed(tokenizers):
    conversation = conversation_of(tokenizers, chat_templates.CHATML)
    conversation.say("a")
    answer(conversation, "b", end="</s>")
    assert said(conversation, conversation.say("c")).startswith("<|im_end|>\n<|im_start|>user")


def test_a_reply_cut_short_is_closed_as_the_template_closes_it_after_what_was_left_to_read(tokenizers):
    conversation = conversation_of(tokenizers, chat_templates.HEADERS)
    conversation.say("a")
    conversation.answered("the te", unread=conversation.tokenizer.encode("te").tolist())
    expected = "te</s><|start|>user<|end|>\n\nc</s><|start|>assistant<|end|>\n\n"
    assert said(conversation, conversation.say("c")) == expected


def test_what_the_model_drew_of_the_template_itself_is_not_fed_again(tokenizers):
    conversation = conversation_of(tokenizers, chat_templates.PLAIN)
    conversation.say("a")
    conversation.answered("b", overrun="\n\nUser:")
    assert said(conversation, conversation.say("c")) == " c\n\nAssistant:"


def test_a_conversation_on_top_of_a_state_does_not_begin_the_stream_again(tokenizers):
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


def test_a_template_that_leaves_replies_out_gets_each_message_by_itself(tokenizers):
    conversation = conversation_of(tokenizers, chat_templates.FORGETS_REPLIES)
    assert said(conversation, conversation.say("a")) == "<s>[INST]a[/INST]"
    answer(conversation, "b", end="</s>")
    assert said(conversation, conversation.say("c")) == "[INST]c[/INST]"
    assert "each message is fed as a new conversation" in (conversation.notice or "")


def test_a_refused_message_leaves_the_conversation_as_it_was(tokenizers):
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


def test_a_conversation_goes_on_from_what_was_kept_of_it(tokenizers):
    one, two = (conversation_of(tokenizers, chat_templates.CHATML, system=text) for text in ("tea", None))
    one.say("a")
    answer(one, "b", end="<|im_end|>")
    two.restore(one.to_json(), one.unread)
    assert two == Conversation(two.template, two.tokenizer, "tea", "a", "b", one.end)
    assert two.say("c").tolist() == one.say("c").tolist()


@pytest.mark.parametrize("data", [None, [], {}, {"system": 1}, {"system": None, "user": "a", "reply": None}])
def test_a_malformed_memory_is_a_snapshot_error(tokenizers, data):
    with pytest.raises(SnapshotError, match="malformed"):
        conversation_of(tokenizers, "").restore(data, ())


def test_reset_forgets_all_but_the_system(tokenizers):
    conversation = conversation_of(tokenizers, chat_templates.CHATML, system="tea")
    first = conversation.say("a").tolist()
    answer(conversation, "b", end="<|im_end|>")
    conversation.say("a")
    conversation.reset()
    assert conversation.say("a").tolist() == first
