"""Chat templates: how a checkpoint wants a conversation to be written."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence, Sized
from datetime import datetime
from typing import TYPE_CHECKING, Any

from edgemem.bundle import CHAT_TEMPLATE, Bundle
from edgemem.errors import BundleError, InputError, MissingDependencyError
from edgemem.extras import how_to_install
from edgemem.text.limits import LimitError, MemoryLimitError, limited

if TYPE_CHECKING:
    import jinja2
    from jinja2 import nodes
    from jinja2.parser import Parser

Message = Mapping[str, str]
"""``role`` (``"system"``, ``"user"``, ``"assistant"``) and ``content``."""

_MOST_TEMPLATE_BYTES = 1 << 20
_MOST_SECONDS = 10
_MOST_GROWTH = 256 << 20
_MOST_PRODUCT = 1_000_000
_WIDENING = frozenset({"center", "expandtabs", "ljust", "rjust", "zfill"})
_WIDE = re.compile(r"%(\([^()]*\))?[^%a-zA-Z()]*\d{7}|:[^{}:%]*\d{7}")
"""A format with a width or a precision of seven digits."""
_WIDTH_IS_GIVEN = re.compile(r"%(\([^()]*\))?[^%a-zA-Z()]*\*|:[^{}:]*\{")


class ChatTemplate:
    """The chat template of a checkpoint, in Jinja, rendered in a sandbox.

    Args:
        source: The template.
        special_tokens: The values of ``bos_token``, ``eos_token`` and similar names in the template.
        where: The name of the template in errors.

    Raises:
        MissingDependencyError: The ``jinja2`` package is not installed.
        BundleError: The source is not a template.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str], where: str = CHAT_TEMPLATE) -> None:
        try:
            import jinja2
        except ImportError:
            raise MissingDependencyError(
                "a chat template needs the jinja2 package.", hint=how_to_install("jinja2")
            ) from None
        self._where = where
        self._special_tokens = dict(special_tokens)
        self._now = datetime.now()
        try:
            with limited(_MOST_SECONDS, _MOST_GROWTH):
                self._template = _environment(self).from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise BundleError(f"{where}, line {error.lineno}: {error.message}.") from error
        except LimitError as error:
            raise BundleError(f"{where} takes more than {_limit(error)} to compile.") from None
        except Exception as error:  # Python compiles what Jinja makes of it, and has limits of its own
            raise BundleError(f"{where} is not a template: {type(error).__name__}: {error}") from error

    @property
    def bos_token(self) -> str:
        """Text of the token that begins a conversation; it may be empty."""
        return self._special_tokens.get("bos_token", "")

    def render(self, messages: Sequence[Message], *, reply_follows: bool) -> str:
        """The text of a conversation.

        Args:
            messages: The messages, oldest first.
            reply_follows: Whether the assistant's turn is next, so that its header is added.

        Raises:
            InputError: The template rejects the messages.
            BundleError: The template fails.
        """
        import jinja2

        try:
            # The names that templates use, with the values of transformers when there are no tools and no documents.
            with limited(_MOST_SECONDS, _MOST_GROWTH):
                return self._template.render(
                    messages=[dict(message) for message in messages],
                    tools=None,
                    documents=None,
                    add_generation_prompt=reply_follows,
                    **self._special_tokens,
                )
        except _RefusedError as error:
            raise InputError(
                f"{self._where} rejects the conversation: {error}",
                hint="If the template has no system role, leave --system out."
                if any(message["role"] == "system" for message in messages)
                else None,
            ) from error
        except jinja2.TemplateError as error:
            raise BundleError(f"{self._where} fails: {type(error).__name__}: {error}") from error
        except LimitError as error:
            raise BundleError(f"{self._where} takes more than {_limit(error)}.") from None
        # A template calls methods of strings and lists, which may raise anything.
        except Exception as error:
            raise BundleError(f"{self._where} fails: {type(error).__name__}: {error}") from error

    def now(self) -> datetime:
        """The time that the template sees: the same in every rendering, because the model reads it only once."""
        return self._now


def _limit(error: LimitError) -> str:
    """The limit that was passed."""
    return f"{_MOST_GROWTH >> 20} MiB" if isinstance(error, MemoryLimitError) else f"{_MOST_SECONDS} seconds"


class _RefusedError(Exception):
    """The template called ``raise_exception``."""


def _narrow(widen: Callable[..., Any]) -> Callable[..., Any]:
    """A method or filter that pads text, for widths that do not fill the memory."""

    @functools.wraps(widen)
    def run(*args: Any, **named: Any) -> Any:
        if any(isinstance(width, int) and width > _MOST_PRODUCT for width in (*args, *named.values())):
            raise OverflowError(f"the width given to {widen.__name__} is too large")
        return widen(*args, **named)

    return run


def _refuse_wide(form: str, *given: Any) -> None:
    """Refuse a format that pads to a width which fills the memory."""
    values = [value for one in given for value in (one.values() if isinstance(one, Mapping) else _several(one))]
    too_wide = any(isinstance(value, int) and abs(value) > _MOST_PRODUCT for value in values)
    if _WIDE.search(form) or (too_wide and _WIDTH_IS_GIVEN.search(form)):
        raise OverflowError("the width in a format is too large")


def _several(given: Any) -> Sequence[Any]:
    return given if isinstance(given, tuple | list) else (given,)


def _sandbox() -> type[jinja2.Environment]:
    """Jinja's sandbox, without products and widths that fill the memory in one call."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Environment(ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset(("*", "**", "%"))

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            if operator == "%":
                if isinstance(left, str):
                    _refuse_wide(left, right)
                return super().call_binop(context, operator, left, right)
            sizes = [len(value) if isinstance(value, Sized) else value for value in (left, right)]
            if operator == "**" or not -_MOST_PRODUCT <= sizes[0] * sizes[1] <= _MOST_PRODUCT:
                raise OverflowError(f"the result of {operator} is too large")
            return super().call_binop(context, operator, left, right)

        def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
            wrapped = super().wrap_str_format(value)
            if wrapped is None:
                return None

            def run(*args: Any, **named: Any) -> str:
                _refuse_wide(value.__self__, args, named, *args)
                return str(wrapped(*args, **named))

            return run

        def call(self, context: Any, called: Any, /, *args: Any, **named: Any) -> Any:  # type: ignore[override]
            widens = getattr(called, "__name__", "") in _WIDENING
            return super().call(context, _narrow(called) if widens else called, *args, **named)

    return Environment


def _environment(template: ChatTemplate) -> jinja2.Environment:
    """Jinja with the additions that transformers makes for templates."""
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.filters import do_format

    class Generation(Extension):
        """``{% generation %}``, which marks a reply for training and does not change the text."""

        tags = {"generation"}  # noqa: RUF012 (Jinja's interface)

        def parse(self, parser: Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)

    def tojson(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        # Jinja's own filter escapes the characters of HTML markup.
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def formatted(form: Any, *args: Any, **named: Any) -> str:
        _refuse_wide(str(form), args, named)
        return do_format(form, *args, **named)

    def raise_exception(message: str) -> None:
        raise _RefusedError(message)

    made = _sandbox()(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    made.filters |= {name: _narrow(made.filters[name]) for name in ("center", "indent")}
    made.filters |= {"format": formatted, "tojson": tojson}
    made.globals["raise_exception"] = raise_exception
    made.globals["strftime_now"] = lambda form: template.now().strftime(form)
    return made


def open_chat_template(bundle: Bundle) -> ChatTemplate | None:
    """The bundle's chat template, or ``None`` if it has none.

    Raises:
        MissingDependencyError: The ``jinja2`` package is not installed.
        BundleError: The template cannot be read.
    """
    if CHAT_TEMPLATE not in bundle.manifest.files:
        return None
    path = bundle.file(CHAT_TEMPLATE)
    try:
        source = bundle.read(CHAT_TEMPLATE, _MOST_TEMPLATE_BYTES).decode()
    except UnicodeDecodeError as error:
        raise BundleError(f"{path} cannot be read: {error}") from error
    return ChatTemplate(source, bundle.manifest.special_tokens, str(path))
