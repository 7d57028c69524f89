"""What ``edgemem run`` writes into a snapshot besides the state, to continue where it stopped."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgemem.text.chat import Conversation

from edgemem.reading import parse_json

CONTEXT = 32
"""Tokens that a note keeps as context: more than a detokenizer looks back."""


@dataclass(frozen=True)
class Note:
    """The note of a snapshot.

    Attributes:
        pending: Tokens that the stream has not read yet, and must read first.
        context: The last few tokens before them. The text of the next token may depend on them.
        audio: How much audio was read and answered, and the segment that has begun.
        conversation: What :meth:`edgemem.text.Conversation.to_json` returned, if there was a conversation.
    """

    pending: tuple[int, ...] = ()
    context: tuple[int, ...] = ()
    conversation: Any = None
    audio: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, conversation: Conversation) -> Note:
        """What is needed to continue a conversation."""
        return cls(conversation.unread, conversation=conversation.to_json())

    def write(self) -> str:
        """The note as text, which is empty if the note is."""
        facts = {
            "pending": self.pending,
            "context": self.context,
            "conversation": self.conversation,
            "audio": self.audio,
        }
        written = {name: value for name, value in facts.items() if value not in ((), None, {})}
        return json.dumps(written) if written else ""

    @classmethod
    def read(cls, text: str) -> Note:
        """Read what :meth:`write` wrote. A note of another program is ignored."""
        try:
            facts = parse_json(text)
            pending, context = (tuple(facts.get(name, ())) for name in ("pending", "context"))
            audio = _audio(facts.get("audio"))
        except (ValueError, TypeError, AttributeError):
            return cls()
        if not all(type(token) is int for token in (*pending, *context)):
            return cls()
        return cls(pending, context, facts.get("conversation"), audio)


def _audio(facts: Any) -> dict[str, Any]:
    if not isinstance(facts, dict):
        return {}
    now, *between, end = segmenter = facts.get("segmenter", [0] * 6)
    is_known = len(segmenter) == 6 and all(each is None or type(each) is int for each in between)
    counts = (facts.get("fed"), facts.get("given"), now, end)
    return facts if is_known and all(type(count) is int for count in counts) else {}
