"""JSON files that name their format and version: one way to write them, to check them and to read their values.

Every error names the file, what was found, what was wanted, and the way out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from edgemem.errors import EdgememError
from edgemem.files import read_file, write_atomic
from edgemem.leftovers import recover
from edgemem.reading import MOST_JSON_BYTES, parse_json

T = TypeVar("T")
_SHOWN_CHARACTERS = 60


@dataclass(frozen=True)
class JsonFormat:
    """One kind of JSON file.

    Attributes:
        name: Value of its ``format`` entry, such as ``"edgemem.bundle"``.
        what: The kind in words, with an article: ``"an edgemem manifest"``.
        error: Raised for every file that cannot be used.
        way_out: What to do about such a file, as the middle of a sentence: ``"export the model again"``.
        versions: Versions that this edgemem reads; it writes the last one. Empty: the format has no version.
        version_key: Name of the entry that holds the version.
        digest_since: The first version whose files contain a SHA-256 of themselves, which finds every accidental
            change; ``None``: none does.
    """

    name: str
    what: str
    error: type[EdgememError]
    way_out: str
    versions: tuple[int | str, ...] = (1,)
    version_key: str = "version"
    digest_since: int | None = None

    def stamp(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """``values`` after the format's name and its newest version."""
        version = {self.version_key: self.versions[-1]} if self.versions else {}
        return {"format": self.name, **version, **values}

    def check(self, data: Any, where: str) -> Fields:
        """The values of ``data``, if it is of this format and of a version known here.

        Args:
            data: What was read from JSON.
            where: The file's name, for messages.

        Raises:
            EdgememError: It is not; the class is :attr:`error`.
        """
        fields = Fields(data, where, self)
        if (found := fields.values.get("format")) != self.name:
            raise self.refusal(f'{where} is not {self.what}: its "format" is {shown(found)}, wanted "{self.name}".')
        self.check_version(fields.values, where)
        return fields

    def check_version(self, data: Mapping[str, Any], where: str) -> None:
        """Refuse a version that is not known here.

        Raises:
            EdgememError: It is not known; the class is :attr:`error`.
        """
        found = data.get(self.version_key)
        if self.versions and (isinstance(found, bool) or found not in self.versions):
            *others, newest = map(str, self.versions)
            known = f"versions {', '.join(others)} and {newest}" if others else f"version {newest}"
            raise self.error(
                f"{where} is {self.what} of version {shown(found)}, this edgemem reads {known}.",
                hint=f"Install {_writer(data)} wrote it, or {self.way_out}",
            )

    def load(self, path: Path) -> Fields:
        """Read and check a file.

        Raises:
            EdgememError: It cannot be read, or :meth:`check` refuses it; the class is :attr:`error`.
        """
        try:
            content = _content(path)
        except OSError as error:
            raise self.refusal(f"{path} cannot be read: {error}") from error
        return self.read(content, str(path))

    def read(self, content: bytes, where: str) -> Fields:
        """Read and check a file's content; ``where`` is its name.

        Raises:
            EdgememError: As :meth:`load`.
        """
        try:
            data = parse_json(content)
        except ValueError as error:
            raise self.refusal(f"{where} cannot be read: {error}") from error
        fields = self.check(data, where)
        # A version without a digest that has one was of another version.
        if self.digest_since is not None and (data[self.version_key] >= self.digest_since or "digest" in data):
            fields.digest = data.pop("digest", None)
            if not isinstance(fields.digest, str) or _digest(content, fields.digest) != fields.digest:
                raise self.refusal(f"{where} was changed after it was written: it does not match its own digest.")
        return fields

    def write(self, path: Path, data: Mapping[str, Any]) -> None:
        """Write what :meth:`stamp` made; readers see the old file or the new one, never a part.

        Raises:
            EdgememError: The file cannot be written.
        """
        write_atomic(path, self.encode(data))

    def encode(self, data: Mapping[str, Any]) -> bytes:
        """The file's content for what :meth:`stamp` made."""
        if self.digest_since is None:
            return _encoded(data)
        content = _encoded(self.stamp({"digest": ""} | dict(data) | {"digest": ""}))
        return content.replace(_entry(""), _entry(_digest(content, "")), 1)

    def is_at(self, path: Path) -> bool:
        """Whether ``path`` is a JSON file of this format, of any version and whatever else it holds."""
        try:
            data = parse_json(_content(path))
        except (OSError, ValueError):
            return False
        return isinstance(data, dict) and data.get("format") == self.name

    def refusal(self, message: str) -> EdgememError:
        """The error to raise for a file, with the way out."""
        return self.error(message, hint=self.hint)

    @property
    def hint(self) -> str:
        """The way out, as a sentence."""
        return self.way_out[:1].upper() + self.way_out[1:]


class Fields:
    """The values of a JSON object, each checked as it is read.

    Args:
        data: What was read from JSON.
        where: What it is called in messages: a file, and the place in it.
        format: The file's format, which decides the class and the way out of errors.

    Raises:
        EdgememError: ``data`` is not an object, or later: a value is missing or not of the wanted kind.
    """

    def __init__(self, data: Any, where: str, format: JsonFormat) -> None:
        self.where, self.format = where, format
        self.digest: str | None = None
        if not isinstance(data, dict):
            raise format.refusal(f"{where} is malformed: it is {shown(data)}, wanted an object.")
        self.values: dict[str, Any] = data

    def only(self, *known: str) -> Fields:
        """The same values, if all their names are known.

        Raises:
            EdgememError: There is another name: a later version, or a misspelling, whose meaning would be lost.
        """
        if unknown := sorted(set(self.values) - set(known)):
            raise self.format.refusal(
                f"{self.where} is malformed: it has {shown(unknown[0])}, which is not known here."
            )
        return self

    def with_defaults(self, defaults: Mapping[str, Any]) -> Fields:
        """The same values, plus those of ``defaults`` whose names are missing."""
        return Fields({**defaults, **self.values}, self.where, self.format)

    def take(self, name: str, kind: type[T], wanted: str) -> T:
        """The value called ``name``, which must be of type ``kind``."""
        if name not in self.values:
            raise self.format.refusal(f"{self.where} is malformed: it has no {name!r}.")
        value = self.values[name]
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise self.wrong(name, wanted)
        return value

    def wrong(self, name: str, wanted: str) -> EdgememError:
        """The error to raise for a value that has the right type but makes no sense."""
        found = shown(self.values.get(name))
        return self.format.refusal(f"{self.where} is malformed: {name} is {found}, wanted {wanted}.")

    def text(self, name: str) -> str:
        """A string."""
        return self.take(name, str, "text")

    def text_or_none(self, name: str) -> str | None:
        """A string or null."""
        return None if self.values.get(name, "") is None else self.take(name, str, "text or null")

    def integer(self, name: str, least: int = 0) -> int:
        """An integer of ``least`` or more."""
        value = self.take(name, int, f"an integer of {least} or more")
        if value < least:
            raise self.wrong(name, f"an integer of {least} or more")
        return value

    def integer_or_none(self, name: str, least: int = 0) -> int | None:
        """An integer of ``least`` or more, or null."""
        return None if self.values.get(name, 0) is None else self.integer(name, least)

    def flag(self, name: str) -> bool:
        """True or false."""
        return self.take(name, bool, "true or false")

    def items(self, name: str, kind: type[T], wanted: str) -> tuple[T, ...]:
        """A list whose items are all of type ``kind``."""
        value = self.take(name, list, wanted)
        if not all(isinstance(item, kind) and (kind is bool or not isinstance(item, bool)) for item in value):
            raise self.wrong(name, wanted)
        return tuple(value)

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of strings."""
        return self.items(name, str, "a list of texts")

    def mapping(self, name: str, kind: type[T], wanted: str) -> dict[str, T]:
        """An object whose values are all of type ``kind``, as a new dict."""
        value = self.take(name, dict, wanted)
        if not all(isinstance(item, kind) for item in value.values()):
            raise self.wrong(name, wanted)
        return dict(value)

    def object(self, name: str) -> Fields:
        """An object."""
        return Fields(self.take(name, dict, "an object"), f"{self.where}: {name}", self.format)

    def objects(self, name: str) -> list[Fields]:
        """A list of objects."""
        value = self.take(name, list, "a list of objects")
        return [Fields(item, f"{self.where}: {name}[{index}]", self.format) for index, item in enumerate(value)]


def _writer(data: Mapping[str, Any]) -> str:
    """The edgemem that wrote a file, as the beginning of a clause."""
    versions = data.get("versions")
    version = versions.get("edgemem") if isinstance(versions, dict) else data.get("edgemem")
    return f"edgemem {version}, which" if isinstance(version, str) else "the edgemem that"


def shown(value: Any) -> str:
    """A value for a message, cut short where it is long.

    >>> shown("x" * 100)[:5], shown({"a": 1})
    ("'xxxx", "{'a': 1}")
    """
    try:
        text = repr(value)
    except ValueError:  # Python does not write integers of thousands of digits
        text = "a number of thousands of digits"
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"


def _content(path: Path) -> bytes:
    """What a file holds, after whoever was killed while it replaced the folder is made up for."""
    try:
        return read_file(path, MOST_JSON_BYTES)
    except FileNotFoundError:
        if path.parent.exists() or not recover(path.parent):
            raise
        return read_file(path, MOST_JSON_BYTES)


def _encoded(data: Mapping[str, Any]) -> bytes:
    return f"{json.dumps(data, indent=1, ensure_ascii=False)}\n".encode()


def _entry(digest: str) -> bytes:
    return f'"digest": "{digest}"'.encode(errors="replace")


def _digest(content: bytes, digest: str) -> str:
    """SHA-256, in hexadecimal, of a file's content in which the digest's own value is left out."""
    return hashlib.sha256(content.replace(_entry(digest), _entry(""), 1)).hexdigest()


def read_json(path: Path, *, loose: bool = False) -> Any:
    """What a JSON file holds; see :func:`~edgemem.reading.parse_json`.

    Raises:
        OSError: The file cannot be read.
        ValueError: It does not hold such JSON.
    """
    return parse_json(read_file(path, MOST_JSON_BYTES), loose=loose)
