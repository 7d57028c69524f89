"""What ``edgemem run`` writes beside the state of a snapshot, to go on where it stopped."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Note:
    """The note of a snapshot.

    Attributes:
        pending: Tokens that the stream has yet to read before anything else.
        context: The last few tokens before them, on which the text of the next may depend.
        conversation: What :meth:`edgemem.text.chat.Conversation.to_json` gave, where there was one.
    """

    pending: tuple[int, ...] = ()
    context: tuple[int, ...] = ()
    conversation: Any = None

    def write(self) -> str:
        """The note as text, which is empty where there is nothing to say."""
        facts = {"pending": self.pending, "context": self.context, "conversation": self.conversation}
        said = {name: value for name, value in facts.items() if value not in ((), None)}
        return json.dumps(said) if said else ""

    @classmethod
    def read(cls, text: str) -> Note:
        """Read what :meth:`write` wrote; a note of somebody else's is passed over."""
        try:
            facts = json.loads(text)
            pending, context = (tuple(int(token) for token in facts.get(name, ())) for name in ("pending", "context"))
            return cls(pending, context, facts.get("conversation"))
        except (ValueError, TypeError, AttributeError):
            return cls()
