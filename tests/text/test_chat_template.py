"""Templates render as in transformers."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import cast

import pytest

from edgemem.bundle import Bundle, open_bundle
from edgemem.errors import BundleError, InputError, MissingDependencyError
from edgemem.text import chat_template
from edgemem.text.chat_template import ChatTemplate, open_chat_template
from tests.handmade import write_token_reciter
from tests.text import chat_templates
from tests.text.chat_templates import FAITHFUL, assistant, user
from tests.text.conftest import SPECIAL

SYSTEM = {"role": "system", "content": "Say 'tea' <often> & loudly."}
EXCHANGES = [
    [user("the tea")],
    [user("  the <b>naïve</b> tea\n"), assistant("tea & 東京\n\n"), user('"the"')],
    [SYSTEM, user("the"), assistant("tea"), user("🚋"), assistant("é")],
]


@pytest.mark.parametrize("style", FAITHFUL)
@pytest.mark.parametrize("messages", EXCHANGES)
@pytest.mark.parametrize("reply_follows", [True, False])
def test_a_template_renders_as_in_transformers(tokenizers, style, messages, reply_follows):
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


def test_the_error_about_a_missing_package_names_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MissingDependencyError, match=r'pip install "edgemem-toolkit\[device\]"'):
        ChatTemplate("", {})


def test_a_bundle_without_a_template_has_none(tmp_path):
    def bundle(*files: str) -> Bundle:
        manifest = SimpleNamespace(files=dict.fromkeys(files), special_tokens=SPECIAL)
        read = lambda name, most_bytes: (tmp_path / name).read_bytes()  # noqa: E731
        return cast(Bundle, SimpleNamespace(manifest=manifest, file=tmp_path.joinpath, read=read))

    assert open_chat_template(bundle("tokenizer.json")) is None
    (tmp_path / "chat_template.jinja").write_text("{{ bos_token }}é", encoding="utf-8")
    template = open_chat_template(bundle("chat_template.jinja"))
    assert template is not None
    assert template.render([], reply_follows=False) == "<s>é"
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(BundleError, match="cannot be read"):
        open_chat_template(bundle("chat_template.jinja"))


ENDLESS = "{% for i in range(99999) %}" * 3 + "{% endfor %}" * 3


def test_a_template_that_does_not_end_is_stopped(monkeypatch):
    monkeypatch.setattr(chat_template, "_MOST_SECONDS", 0.05)
    with pytest.raises(BundleError, match=r"takes more than 0\.05 seconds"):
        ChatTemplate(ENDLESS, {}).render([], reply_follows=False)


def test_a_template_that_fills_the_memory_by_and_by_is_stopped(monkeypatch):
    monkeypatch.setattr(chat_template, "_MOST_GROWTH", 16 << 20)
    doubling = (
        "{% set x = namespace(text='a' * 999999) %}{% for i in range(99) %}{% set x.text = x.text ~ 'a' * 999999 %}"
    )
    with pytest.raises(BundleError, match="takes more than 16 MiB"):
        ChatTemplate(doubling + "{% for j in range(9999) %}{% endfor %}{% endfor %}", {}).render(
            [], reply_follows=False
        )


@pytest.mark.parametrize(
    "width",
    [
        "'a'.ljust(10000000)",
        "'a'.zfill(10000000)",
        "'a'|center(10000000)",
        "'%999999999d' % 1",
        "'%.999999999f' % 1",
        "'%(a)999999999d' % {'a': 1}",
        "'%*d' % (999999999, 1)",
        "'%999999999d'|format(1)",
        "'%*d'|format(999999999, 1)",
        "'{:999999999}'.format(1)",
        "'{:{}}'.format(1, 999999999)",
        "'{a:{b}}'.format(a=1, b=999999999)",
    ],
)
def test_a_width_that_fills_the_memory_is_refused(width):
    with pytest.raises(BundleError, match="is too large"):
        ChatTemplate("{{ " + width + " }}", {}).render([], reply_follows=False)


@pytest.mark.parametrize(
    "product", ["10 ** 10 ** 10", "'a' * 10000000", "[1] * 2000000", "9 ** 9", "9999999 * 9999999"]
)
def test_a_product_that_fills_the_memory_is_refused(product):
    with pytest.raises(BundleError, match="is too large"):
        ChatTemplate("{{ " + product + " }}", {}).render([], reply_follows=False)


def test_formats_of_any_number_are_computed():
    template = ChatTemplate(
        "{{ '%5d' % 1e9 }}{{ '%s'|format(1234567890) }}{{ '{:>4}|{}'.format(7, 1234567890) }}{{ 7 % 4 }}", {}
    )
    assert template.render([], reply_follows=False) == "10000000001234567890   7|12345678903"


def test_small_products_are_computed():
    template = ChatTemplate("{{ '-' * 3 }}{{ 2 * 1.5 }}{{ 3 * [1] }}", {})
    assert template.render([], reply_follows=False) == "---3.0[1, 1, 1]"


def test_a_template_is_read_as_it_was_hashed_and_is_not_larger_than_any_template(tmp_path):
    bundle = open_bundle(write_token_reciter(tmp_path / "b", [1], 9, {"chat_template.jinja": "{{ bos_token }}"}))
    assert open_chat_template(bundle) is not None
    (bundle.path / "chat_template.jinja").write_text("{{ eos_token }}")
    with pytest.raises(BundleError, match=r"SHA-256 of chat_template\.jinja differs"):
        open_chat_template(bundle)
    files = {"chat_template.jinja": " " * (2 << 20)}
    with pytest.raises(BundleError, match="at most 1,048,576 are allowed"):
        open_chat_template(open_bundle(write_token_reciter(tmp_path / "large", [1], 9, files)))


def test_chat_imports_no_torch():
    code = "import sys, edgemem.text as c; c.ChatTemplate('', {}); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
