"""Conversations: the tokens that each new message adds to what the model has read.

A model with a fixed-size memory reads every token once. So each message of the user feeds only the text that the chat
template writes after the last reply. To find that text, the template is rendered with the last exchange and the new
message; what is kept of a conversation therefore does not grow with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemem.errors import BundleError, SnapshotError
from edgemem.text.chat_template import ChatTemplate, Message
from edgemem.text.tokenizer import Tokenizer

# Marks where a reply is in the rendered text: private-use characters, which no template trims.
_REPLY = "\ue000edgemem reply\ue001"

# What a snapshot's note contains of a conversation.
_NOTED = {
    "system": (str, type(None)),
    "user": (str, type(None)),
    "reply": (str,),
    "end": (int, type(None)),
    "overrun": (str,),
}


@dataclass
class Conversation:
    """What is needed to continue a conversation, besides the stream's state.

    Attributes:
        template: The model's chat template.
        tokenizer: The model's tokenizer.
        system: The system message, or ``None``.
        user: The user's last message; ``None`` before the first.
        reply: The model's last reply.
        end: The token that ended the reply, which the stream has not read; ``None`` if the reply was cut short.
        overrun: Text that the model generated after the reply: a stop text.
        unread: Tokens that the stream has not read yet, and must read first.
        notice: Why the model's past differs from what the template would write now; ``None`` if it does not.
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
        """The control token that the template puts after a reply, if there is one: the model ends its turn with it."""
        user: Message = {"role": "user", "content": "a"}
        messages = [user, {"role": "assistant", "content": _REPLY}]
        # First with another message, because some templates leave out the end of the last reply.
        for more, reply_follows in (((user,), True), ((), False)):
            rest = self.template.render([*messages, *more], reply_follows=reply_follows).partition(_REPLY)[2].lstrip()
            first = self.tokenizer.encode(rest, special_tokens=False)[:1].tolist()
            if first and self.tokenizer.is_control(first[0]):
                return frozenset(first)
        return frozenset()

    def say(self, message: str, *, fresh: bool = True) -> NDArray[np.int64]:
        """The tokens ``[N]`` to feed for the user's next message. The reply follows them.

        Args:
            message: The user's message.
            fresh: For the first message: whether the stream is at its start.

        Raises:
            InputError: The template rejects the message, or the tokenizer cannot represent it.
            BundleError: The template fails, or writes nothing.
        """
        if self.user is None:
            text = self.template.render(self._messages(message), reply_follows=True)
            if not fresh:
                text = text.removeprefix(self.template.bos_token)
            ids = self.tokenizer.encode(text, start=fresh, special_tokens=False)
        else:
            ids = self._after_reply(self._text_after_reply(self.user, message))
        ids = np.concatenate((np.array(self.unread, dtype=np.int64), ids))
        if ids.size == 0:
            raise BundleError(
                "the chat template writes nothing for this message, so there is nothing for the model to read.",
                hint="Export the model again with a chat template that writes the messages.",
            )
        self.user, self.reply, self.end, self.overrun = message, "", None, ""
        self.unread = tuple(ids.tolist())
        return ids

    def beginning(self, tokens: NDArray[np.int64]) -> int:
        """How many tokens of a first message, as :meth:`say` gave them, come from the system message alone.

        At most all but the last: a reply needs a token to follow.
        """
        if self.system is None:
            return 0
        text = self.template.render(self._messages("\ue000"), reply_follows=True)
        other = self.tokenizer.encode(text, special_tokens=False)
        size = min(len(tokens) - 1, len(other))
        same = tokens[:size] == other[:size]
        return size if same.all() else int(same.argmin())

    def answered(self, reply: str, *, end: int | None = None, overrun: str = "", unread: Sequence[int] = ()) -> None:
        """Record the reply, complete or not.

        Args:
            reply: Its text.
            end: The token that ended it, which the stream has not read.
            overrun: Text generated after it.
            unread: Tokens that the stream has not read: the rest of a message that was cut short, or the last drawn.
        """
        self.reply, self.end, self.overrun, self.unread = reply, end, overrun, tuple(unread)

    def reset(self) -> None:
        """Forget everything except the system message."""
        self.user, self.notice = None, None
        self.answered("")

    def to_json(self) -> dict[str, Any]:
        """What a snapshot needs to continue the conversation, as plain JSON values."""
        return {name: getattr(self, name) for name in _NOTED}

    def restore(self, data: Any, unread: Sequence[int]) -> None:
        """Restore what :meth:`to_json` wrote, and the tokens that the stream has not read.

        Raises:
            SnapshotError: The data is malformed.
        """
        for name, kinds in _NOTED.items():
            if not isinstance(data, dict) or name not in data or type(data[name]) not in kinds:
                raise SnapshotError(f"the snapshot's conversation is malformed: it has no valid {name!r}.")
        for name in _NOTED:
            setattr(self, name, data[name])
        self.unread = tuple(unread)

    def _messages(self, *contents: str) -> list[Message]:
        """The system message, then alternating messages of the user and the assistant."""
        roles = ("user", "assistant", "user")
        system: list[Message] = [] if self.system is None else [{"role": "system", "content": self.system}]
        return system + [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]

    def _text_after_reply(self, user: str, message: str) -> str:
        """What the template writes after the last reply when ``message`` follows it."""
        marked = self.template.render(self._messages(user, _REPLY, message), reply_follows=True)
        _, found, rest = marked.partition(_REPLY)
        if not found:
            self.notice = "the chat template does not repeat replies, so each message is fed as a new conversation."
            alone = [{"role": "user", "content": message}]
            return self.template.render(alone, reply_follows=True).removeprefix(self.template.bos_token)
        read = self.template.render(self._messages(user), reply_follows=True)
        written = self.template.render(self._messages(user, self.reply, message), reply_follows=True)
        # Many templates trim white space around a reply, which does not matter.
        if "".join(written.split()) != "".join((read + self.reply + rest).split()):
            self.notice = (
                "the chat template rewrites earlier turns when a new one begins; the model remembers the original ones."
            )
        return rest

    def _after_reply(self, rest: str) -> NDArray[np.int64]:
        """Tokens of the text after the reply. The model may have generated its beginning itself."""
        if self.overrun and rest.startswith(self.overrun):
            return self.tokenizer.encode(rest.removeprefix(self.overrun), start=False)
        if self.end is not None:
            ids = self.tokenizer.encode(rest.lstrip(), start=False)
            if ids[:1].tolist() == [self.end]:
                return ids
        # An end that the template does not write here is left out: the model did not see it in training either.
        return self.tokenizer.encode(rest, start=False)
