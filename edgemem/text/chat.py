"""Conversations: a model's chat template, and the tokens that each new message adds to what the model has read.

A model with a fixed-size memory reads every token once. Each message of the user therefore feeds what the template
puts behind the last reply, and nothing that was fed before. To find that part the template is rendered with the last
exchange and the new message, so that what is kept of a conversation does not grow with it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgemem.bundle import CHAT_TEMPLATE, Bundle
from edgemem.errors import BundleError, InputError, MissingDependencyError, SnapshotError
from edgemem.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    import jinja2
    from jinja2 import nodes
    from jinja2.parser import Parser

# Stands for a reply whose place in the rendered text is looked for: private-use characters, which no template trims.
_REPLY = "\ue000edgemem reply\ue001"

# What a snapshot's note holds of a conversation.
_NOTED = {
    "system": (str, type(None)),
    "user": (str, type(None)),
    "reply": (str,),
    "end": (int, type(None)),
    "overrun": (str,),
}

Message = Mapping[str, str]
"""``role`` (``"system"``, ``"user"``, ``"assistant"``) and ``content``."""


class ChatTemplate:
    """A chat template in Jinja, as checkpoints carry it, rendered in a sandbox.

    Args:
        source: The template.
        special_tokens: What it finds under ``bos_token``, ``eos_token`` and their like.
        where: What errors call it.

    Raises:
        MissingDependencyError: The ``jinja2`` package is not installed.
        BundleError: It is not a template.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str], where: str = CHAT_TEMPLATE) -> None:
        try:
            import jinja2
        except ImportError:
            raise MissingDependencyError(
                "a chat template needs the jinja2 package.", hint='Install it with: pip install "edgemem[text]"'
            ) from None
        self._where = where
        self._special_tokens = dict(special_tokens)
        self._now = datetime.now()
        try:
            self._template = _environment(self).from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise BundleError(f"{where}, line {error.lineno}: {error.message}.") from error

    @property
    def bos_token(self) -> str:
        """Text of the token that begins a conversation, which may be empty."""
        return self._special_tokens.get("bos_token", "")

    def render(self, messages: Sequence[Message], *, reply_follows: bool) -> str:
        """The text of a conversation.

        Args:
            messages: The messages, the oldest first.
            reply_follows: Whether it is the assistant's turn, so that its header is added.

        Raises:
            InputError: The template refuses the messages.
            BundleError: The template fails.
        """
        import jinja2

        try:
            # Names that templates ask for, as transformers fills them where there are no tools and no documents.
            return self._template.render(
                messages=[dict(message) for message in messages],
                tools=None,
                documents=None,
                add_generation_prompt=reply_follows,
                **self._special_tokens,
            )
        except _RefusedError as error:
            raise InputError(
                f"{self._where} refuses the conversation: {error}",
                hint="A template without a system role needs --system to be left out."
                if any(message["role"] == "system" for message in messages)
                else None,
            ) from error
        except jinja2.TemplateError as error:
            raise BundleError(f"{self._where} fails: {type(error).__name__}: {error}") from error
        # A template calls methods of strings and lists, which may raise whatever they raise.
        except Exception as error:
            raise BundleError(f"{self._where} fails: {type(error).__name__}: {error}") from error

    def now(self) -> datetime:
        """The time that the template reads: one for all renderings of a conversation, as the model reads it once."""
        return self._now


class _RefusedError(Exception):
    """The template called ``raise_exception``."""


def _environment(template: ChatTemplate) -> jinja2.Environment:
    """What a template may use beside Jinja's own: what transformers lets it use."""
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """``{% generation %}``, which marks a reply for training, and changes nothing in the text."""

        tags = {"generation"}  # noqa: RUF012 (Jinja reads it so)

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
        # Jinja's own escapes what HTML would read as markup.
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def raise_exception(message: str) -> None:
        raise _RefusedError(message)

    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    made.filters["tojson"] = tojson
    made.globals["raise_exception"] = raise_exception
    made.globals["strftime_now"] = lambda form: template.now().strftime(form)
    return made


def open_chat_template(bundle: Bundle) -> ChatTemplate | None:
    """The bundle's chat template, or ``None`` where it has none.

    Raises:
        MissingDependencyError: It needs a package that is not installed.
        BundleError: It cannot be read.
    """
    if CHAT_TEMPLATE not in bundle.manifest.files:
        return None
    path = bundle.file(CHAT_TEMPLATE)
    try:
        source = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(f"{path} cannot be read: {error}") from error
    return ChatTemplate(source, bundle.manifest.special_tokens, str(path))


@dataclass
class Conversation:
    """What has to be known of a conversation to go on with it; the rest is in the stream's state.

    Attributes:
        template: The model's chat template.
        tokenizer: The model's tokenizer.
        system: What the model is told at the start, or ``None``.
        user: The last message that the user wrote; ``None`` before the first.
        reply: The text that the model answered with.
        end: The token with which the model ended the reply, drawn and not read yet; ``None`` where it was cut short.
        overrun: Text that the model has drawn behind the reply: a stop string.
        unread: Tokens that the stream has yet to read before anything else.
        notice: Why the model's past is not what the template would write now; ``None`` where it is.
    """

    template: ChatTemplate
    tokenizer: Tokenizer
    system: str | None = None
    user: str | None = None
    reply: str = ""
    end: int | None = None
    overrun: str = ""
    unread: tuple[int, ...] = ()
    notice: str | None = None

    def turn_ends(self) -> frozenset[int]:
        """The control token that the template puts behind a reply, if there is one: a model ends its turn with it."""
        user: Message = {"role": "user", "content": "a"}
        messages = [user, {"role": "assistant", "content": _REPLY}]
        # With another message, as some templates leave out the end of the last.
        for more, reply_follows in (((user,), True), ((), False)):
            behind = self.template.render([*messages, *more], reply_follows=reply_follows).partition(_REPLY)[2].lstrip()
            first = self.tokenizer.encode(behind, special_tokens=False)[:1].tolist()
            if first and self.tokenizer.is_control(first[0]):
                return frozenset(first)
        return frozenset()

    def say(self, message: str, *, fresh: bool = True) -> NDArray[np.int64]:
        """The tokens ``[N]`` to feed for the user's next message; the reply follows them.

        Args:
            message: What the user says.
            fresh: Whether the stream is at its start, where this is the first message.

        Raises:
            InputError: The template refuses the message, or the tokenizer cannot represent it.
            BundleError: The template fails.
        """
        if self.user is None:
            text = self.template.render(self._messages(message), reply_follows=True)
            if not fresh:
                text = text.removeprefix(self.template.bos_token)
            ids = self.tokenizer.encode(text, start=fresh, special_tokens=False)
        else:
            ids = self._closed(self._behind_reply(self.user, message))
        ids = np.concatenate((np.array(self.unread, dtype=np.int64), ids))
        self.user, self.reply, self.end, self.overrun = message, "", None, ""
        self.unread = tuple(ids.tolist())
        return ids

    def answered(self, reply: str, *, end: int | None = None, overrun: str = "", unread: Sequence[int] = ()) -> None:
        """Take down how the reply went, whether it was finished or cut short.

        Args:
            reply: Its text.
            end: The token that ended it, which the stream has not read.
            overrun: Text drawn behind it.
            unread: Tokens that the stream has yet to read: those of a message that was cut short, or the last drawn.
        """
        self.reply, self.end, self.overrun, self.unread = reply, end, overrun, tuple(unread)

    def reset(self) -> None:
        """Forget everything but the system's text."""
        self.user, self.notice = None, None
        self.answered("")

    def to_json(self) -> dict[str, Any]:
        """What a snapshot's note needs to go on with it, as plain JSON values."""
        return {name: getattr(self, name) for name in _NOTED}

    def restore(self, data: Any, unread: Sequence[int]) -> None:
        """Take over what :meth:`to_json` wrote, and the tokens that the stream has yet to read.

        Raises:
            SnapshotError: It is something else.
        """
        for name, kinds in _NOTED.items():
            if not isinstance(data, dict) or name not in data or type(data[name]) not in kinds:
                raise SnapshotError(f"the snapshot's conversation is malformed: it has no valid {name!r}.")
        for name in _NOTED:
            setattr(self, name, data[name])
        self.unread = tuple(unread)

    def _messages(self, *contents: str) -> list[Message]:
        """Messages of the user and the assistant by turns, behind the system's."""
        roles = ("user", "assistant", "user")
        system: list[Message] = [] if self.system is None else [{"role": "system", "content": self.system}]
        return system + [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]

    def _behind_reply(self, user: str, message: str) -> str:
        """What the template puts behind the last reply when ``message`` follows it."""
        marked = self.template.render(self._messages(user, _REPLY, message), reply_follows=True)
        _, found, behind = marked.partition(_REPLY)
        if not found:
            self.notice = "the chat template does not repeat replies: each message is fed as a conversation of its own."
            alone = [{"role": "user", "content": message}]
            return self.template.render(alone, reply_follows=True).removeprefix(self.template.bos_token)
        read = self.template.render(self._messages(user), reply_follows=True)
        written = self.template.render(self._messages(user, self.reply, message), reply_follows=True)
        # White space around a reply is trimmed by many templates, and of no consequence.
        if "".join(written.split()) != "".join((read + self.reply + behind).split()):
            self.notice = (
                "the chat template rewrites earlier turns when a new one begins; the model remembers them as they were."
            )
        return behind

    def _closed(self, behind: str) -> NDArray[np.int64]:
        """Tokens of the text behind the reply, of which the model may have drawn the beginning itself."""
        if self.overrun and behind.startswith(self.overrun):
            return self.tokenizer.encode(behind.removeprefix(self.overrun), start=False)
        if self.end is not None:
            ids = self.tokenizer.encode(behind.lstrip(), start=False)
            if ids[:1].tolist() == [self.end]:
                return ids
        # An end that the template does not have here is left out: the model never saw one in training either.
        return self.tokenizer.encode(behind, start=False)
