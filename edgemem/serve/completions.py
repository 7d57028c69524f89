"""What OpenAI's clients ask for, checked: an option that edgemem does not have is refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemem.errors import InputError
from edgemem.serve.errors import RequestError
from edgemem.serve.host import Model
from edgemem.text import Conversation, Sampler

MAX_TOKENS = 256
MOST_TOKENS = 1_000_000
_TEMPERATURE = 0.8
_KNOWN = {
    *("model", "max_tokens", "max_completion_tokens", "temperature", "top_p", "seed", "stop", "stream"),
    *("stream_options", "user", "prompt", "messages", "conversation"),
}
_NOTHING: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "store": (False,),
    "logprobs": (False,),
    "logit_bias": ({},),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "response_format": ({"type": "text"},),
    "tools": ([],),
    "functions": ([],),
    "metadata": ({},),
    "suffix": ("",),
}
"""Options that change nothing with these values."""
_ROLES = ("system", "developer", "user", "assistant")


@dataclass(frozen=True)
class TextRequest:
    """A text that is asked for.

    Attributes:
        tokens: What the model reads first, int64 ``[N]``.
        prefix: How many of them other texts are likely to begin with.
        sampler: Draws a token.
        max_tokens: Most tokens of the text.
        stop_texts: Strings that end it.
        end_ids: Tokens that end it.
        streamed: Whether it is sent piece by piece.
        with_usage: Whether the last piece tells how many tokens there were.
        chat: Whether it is a chat's.
        conversation: The stream that the text goes on in.
        prompt: The text itself, or the user's last message: what a stream that goes on has not read yet.
        system: The system message.
    """

    tokens: NDArray[np.int64]
    prefix: int
    sampler: Sampler
    max_tokens: int
    stop_texts: tuple[str, ...]
    end_ids: frozenset[int]
    streamed: bool
    with_usage: bool
    chat: bool
    conversation: str | None
    prompt: str
    system: str | None


def parse_request(body: Mapping[str, Any], model: Model, *, chat: bool) -> TextRequest:
    """What a body of JSON asks for.

    Raises:
        RequestError: An option is unknown, of a wrong type or out of range.
        EdgememError: The text cannot be tokenised, or the template refuses it.
    """
    _refuse_unknown(body, chat)
    if not model.is_text or (chat and model.template is None):
        missing = "chat template" if model.is_text else "tokenizer"
        raise RequestError("no_text", f"the model {model.name!r} has no {missing}.", hint="Use its streams instead.")
    defaults = model.generation
    temperature = _number(body, "temperature", _or(defaults.temperature, _TEMPERATURE))
    try:
        sampler = Sampler(
            temperature,
            defaults.top_k,
            _number(body, "top_p", _or(defaults.top_p, 1.0)),
            _whole(body, "seed", None),
            _or(defaults.min_p, 0.0),
        )
    except InputError as error:
        raise RequestError("bad_option", error.message) from error
    limit = _whole(body, "max_completion_tokens", _whole(body, "max_tokens", _or(defaults.max_new_tokens, MAX_TOKENS)))
    if limit is not None and not 1 <= limit <= MOST_TOKENS:
        raise RequestError("bad_option", f"max_tokens must be from 1 to {MOST_TOKENS:,}, got {limit}.")
    conversation = body.get("conversation")
    if conversation is not None and not isinstance(conversation, str):
        raise RequestError("bad_option", "conversation is the name of a stream.")
    tokens, prefix = _chat_tokens(body, model) if chat else (_prompt_tokens(body, model), 0)
    ends = frozenset(defaults.eos_token_ids)
    if chat and model.template is not None and model.tokenizer is not None:
        ends |= Conversation(model.template, model.tokenizer).turn_ends()
    options = body.get("stream_options") or {}
    return TextRequest(
        tokens, prefix, sampler, limit or MAX_TOKENS, _stops(body), ends, _flag(body, "stream"),
        _flag(options, "include_usage"), chat, conversation, *_words(body, chat),
    )  # fmt: skip


def _words(body: Mapping[str, Any], chat: bool) -> tuple[str, str | None]:
    """The prompt or the last message, and the system message."""
    if not chat:
        return (body["prompt"] if isinstance(body["prompt"], str) else ""), None
    messages = chat_messages(body)
    if body.get("conversation") is not None and messages[-1]["role"] != "user":
        raise RequestError("bad_messages", "the last message of a conversation that goes on is the user's.")
    system = messages[0]["content"] if messages[0]["role"] == "system" else None
    return messages[-1]["content"], system


def _refuse_unknown(body: Mapping[str, Any], chat: bool) -> None:
    alien = "prompt" if chat else "messages"
    wrong = [
        name
        for name, value in body.items()
        if value is not None and (name == alien or name not in _KNOWN) and value not in _NOTHING.get(name, ())
    ]
    if wrong:
        raise RequestError(
            "unsupported_option",
            f"this server has no option {', '.join(sorted(map(repr, map(str, wrong))))[:200]}.",
            hint=f"Options: {', '.join(sorted(_KNOWN - {alien}))}.",
        )


def _prompt_tokens(body: Mapping[str, Any], model: Model) -> NDArray[np.int64]:
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], (str, list)):
        prompt = prompt[0]
    assert model.tokenizer is not None
    if isinstance(prompt, str):
        tokens = model.tokenizer.encode(prompt)
    elif isinstance(prompt, list) and all(type(token) is int and abs(token) < 1 << 62 for token in prompt):
        tokens = np.array(prompt, np.int64)
    else:
        raise RequestError("bad_prompt", "prompt is a text or a list of token ids, one prompt a request.")
    if tokens.size == 0 and model.generation.bos_token_id is not None:
        tokens = np.array([model.generation.bos_token_id], np.int64)
    if tokens.size == 0:
        raise RequestError("bad_prompt", "the prompt is empty, and the model needs 1 token or more.")
    return tokens


def chat_messages(body: Mapping[str, Any]) -> list[dict[str, str]]:
    """The messages of a chat.

    Raises:
        RequestError: They are malformed.
    """
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise RequestError("bad_messages", "messages is a list of 1 or more.")
    found = []
    for message in messages:
        role, content = (message.get("role"), message.get("content")) if isinstance(message, dict) else (None, None)
        if isinstance(content, list):  # parts, of which texts are known
            texts = [part.get("text") if isinstance(part, dict) else None for part in content]
            content = "".join(texts) if all(isinstance(text, str) for text in texts) else None  # type: ignore[arg-type]
        if role not in _ROLES or not isinstance(content, str):
            raise RequestError("bad_messages", f"a message has a role of {', '.join(_ROLES)}, and a text as content.")
        found.append({"role": "system" if role == "developer" else role, "content": content})
    return found


def _chat_tokens(body: Mapping[str, Any], model: Model) -> tuple[NDArray[np.int64], int]:
    """The tokens of a chat, and how many of them come from its system message."""
    messages = chat_messages(body)
    assert model.template is not None
    assert model.tokenizer is not None

    text = model.template.render(messages, reply_follows=True)
    tokens = model.tokenizer.encode(text, special_tokens=False)
    if tokens.size == 0:
        raise RequestError("bad_messages", "the chat template writes nothing for these messages.")
    if messages[0]["role"] != "system" or len(messages) < 2:
        return tokens, 0
    return tokens, Conversation(model.template, model.tokenizer, messages[0]["content"]).beginning(tokens)


def _or(value: Any, otherwise: Any) -> Any:
    return otherwise if value is None else value


def _number(body: Mapping[str, Any], name: str, default: float) -> float:
    value = _or(body.get(name), default)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise RequestError("bad_option", f"{name} is a number, got {str(value)[:40]!r}.")
    return float(value)


def _whole(body: Mapping[str, Any], name: str, default: int | None) -> int | None:
    value = _or(body.get(name), default)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or abs(value) >= 1 << 63):
        raise RequestError("bad_option", f"{name} is a whole number, got {str(value)[:40]!r}.")
    return value


def _flag(body: Any, name: str) -> bool:
    value = _or(body.get(name), False) if isinstance(body, dict) else None
    if not isinstance(value, bool):
        raise RequestError("bad_option", f"{name} is true or false.")
    return value


def _stops(body: Mapping[str, Any]) -> tuple[str, ...]:
    stop = _or(body.get("stop"), [])
    stops = [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, list) or len(stops) > 16 or not all(isinstance(text, str) and text for text in stops):
        raise RequestError("bad_option", "stop is a text, or a list of up to 16.")
    return tuple(stops)
