"""How a model's authors recommend to generate text: what the manifest keeps of ``generation_config.json``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from edgemem.errors import ConfigError

# Settings that edgemem does not have, each with the values that change nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "repetition_penalty": (1.0,),
    "encoder_repetition_penalty": (1.0,),
    "no_repeat_ngram_size": (0,),
    "typical_p": (1.0,),
    "epsilon_cutoff": (0.0,),
    "eta_cutoff": (0.0,),
    "num_beams": (1,),
    "penalty_alpha": (0.0,),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "bad_words_ids": ([],),
    "force_words_ids": ([],),
    "sequence_bias": ({}, []),
    "suppress_tokens": ([],),
    "begin_suppress_tokens": ([],),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "guidance_scale": (1.0,),
    "stop_strings": ([],),
}


_MOST = 1 << 63  # of every number


@dataclass(frozen=True)
class GenerationDefaults:
    """What to do if the user names nothing; ``None`` if the model's authors recommend nothing either.

    Attributes:
        eos_token_ids: Tokens that end the text.
        bos_token_id: The token that begins a text, which is fed if the prompt is empty.
        do_sample: ``False`` is greedy: the most probable token, at any temperature.
        temperature: See :class:`edgemem.text.Sampler`.
        top_k: See there; 0 keeps all.
        top_p: See there.
        min_p: See there.
        max_new_tokens: Most tokens of one text.
        ignored: Settings that would change the text, but that edgemem does not have.
    """

    eos_token_ids: tuple[int, ...] = ()
    bos_token_id: int | None = None
    do_sample: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    max_new_tokens: int | None = None
    ignored: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The settings that are set, as plain JSON values."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in values.items()
            if value is not None and value != ()
        }

    @classmethod
    def from_json(cls, data: Any, where: str) -> GenerationDefaults:
        """Read what :meth:`to_json` wrote.

        Raises:
            ConfigError: A value is of the wrong type or out of range; the message begins with ``where``.
        """
        if not isinstance(data, dict):
            raise ConfigError(f"{where} is {type(data).__name__}, wanted an object.")
        if unknown := sorted(set(data) - {field.name for field in fields(cls)}):
            raise ConfigError(f"{where} contains the unknown setting {unknown[0]!r}.")
        ignored = data.get("ignored", [])
        if not isinstance(ignored, list) or not all(isinstance(name, str) for name in ignored):
            raise ConfigError(f"{where}: ignored is {ignored!r}, wanted a list of names.")
        return cls(
            eos_token_ids=_token_ids(data.get("eos_token_ids"), f"{where}: eos_token_ids"),
            bos_token_id=_whole(data, "bos_token_id", where),
            do_sample=_flag(data, "do_sample", where),
            temperature=_number(data, "temperature", where, lambda value: value >= 0, "0 or more"),
            top_k=_whole(data, "top_k", where),
            top_p=_number(data, "top_p", where, lambda value: 0 < value <= 1, "above 0 and at most 1"),
            min_p=_number(data, "min_p", where, lambda value: 0 <= value <= 1, "from 0 to 1"),
            max_new_tokens=_whole(data, "max_new_tokens", where, least=1),
            ignored=tuple(ignored),
        )

    @classmethod
    def from_hugging_face(cls, data: Mapping[str, Any], where: str) -> GenerationDefaults:
        """Read the object of a ``generation_config.json``.

        Raises:
            ConfigError: A value is of the wrong type or out of range; the message begins with ``where``.
        """
        kept = {field.name for field in fields(cls)} - {"eos_token_ids", "ignored"}
        read = {name: data[name] for name in kept if data.get(name) is not None}
        eos = _token_ids(data.get("eos_token_id"), f"{where}: eos_token_id")
        return cls.from_json({**read, "eos_token_ids": list(eos), "ignored": _ignored(data)}, where)


def _ignored(data: Mapping[str, Any]) -> list[str]:
    """Names of the settings in ``data`` that would change the text, but that edgemem does not have."""
    return [
        name
        for name, neutral in _NEUTRAL.items()
        if data.get(name) is not None and not any(data[name] == value for value in neutral)
    ]


def _token_ids(value: Any, where: str) -> tuple[int, ...]:
    listed = [] if value is None else value if isinstance(value, list) else [value]
    for token in listed:
        if type(token) is not int or not 0 <= token < _MOST:
            raise ConfigError(f"{where} is {value!r}, wanted one token id or a list of them.")
    return tuple(dict.fromkeys(listed))


def _whole(data: Mapping[str, Any], name: str, where: str, least: int = 0) -> int | None:
    value = data.get(name)
    if value is not None and (type(value) is not int or not least <= value < _MOST):
        raise ConfigError(f"{where}: {name} is {value!r}, wanted a whole number of {least} or more.")
    return value


def _flag(data: Mapping[str, Any], name: str, where: str) -> bool | None:
    value = data.get(name)
    if value is not None and not isinstance(value, bool):
        raise ConfigError(f"{where}: {name} is {value!r}, wanted true or false.")
    return value


def _number(data: Mapping[str, Any], name: str, where: str, fits: Callable[[float], bool], wanted: str) -> float | None:
    value = data.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not -_MOST < value < _MOST or not fits(value):
        raise ConfigError(f"{where}: {name} is {value!r}, wanted a number {wanted}.")
    return float(value)
