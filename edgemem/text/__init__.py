"""Text in and out of models of tokens: tokenizers, chat templates, sampling, generation and scores.

>>> tokenizer = ByteTokenizer()
>>> tokenizer.encode("tea").tolist()
[116, 101, 97]

Nothing here imports an engine or torch. The packages ``tokenizers`` and ``jinja2`` are imported when they are needed.
"""

from __future__ import annotations

from edgemem.text.chat import Conversation
from edgemem.text.chat_template import ChatTemplate, open_chat_template
from edgemem.text.detokenizer import Detokenizer
from edgemem.text.generate import Generation, Piece, generate
from edgemem.text.sampling import Sampler
from edgemem.text.scoring import Score, score_text
from edgemem.text.stop_text import StopText
from edgemem.text.tokenizer import ByteTokenizer, JsonTokenizer, Tokenizer, open_tokenizer

__all__ = [
    "ByteTokenizer",
    "ChatTemplate",
    "Conversation",
    "Detokenizer",
    "Generation",
    "JsonTokenizer",
    "Piece",
    "Sampler",
    "Score",
    "StopText",
    "Tokenizer",
    "generate",
    "open_chat_template",
    "open_tokenizer",
    "score_text",
]
