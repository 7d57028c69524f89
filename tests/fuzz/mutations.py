"""Mutations of files, drawn from a seed: of any bytes, and of JSON by its structure, inside other formats too."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

_DEEP = "[" * 3000 + "]" * 3000
# JSON text that takes the place of a value.
_HOSTILE = [
    *("null", "true", "false", "0", "-1", "1", "1.5", "-0.0", "1e-320", "1e400", "-1e999"),
    *("NaN", "Infinity", "-Infinity"),
    *("2147483647", "2147483648", "4294967296", "9223372036854775807", "9223372036854775808", "-9223372036854775808"),
    *("18446744073709551615", "1" + "0" * 30, "1" + "0" * 5000, '""', '"a"', '"\\u0000"', '"\\ud800"', '"\\u001b[2J"'),
    *('"../../etc/passwd"', '"/dev/zero"', '"."', '"[/]"', '"\\u202e"', json.dumps("x" * 300), json.dumps("é" * 5000)),
    *("[]", "{}", "[[]]", "[{}]", '{"": null}', "[0]", "[1, 1]", "[-1]", "[1e400]", '["a"]'),
    *(_DEEP, "[" * 200 + "]" * 200),
]  # fmt: skip
_MARK = "\ue000{}\ue001"


def mutate_bytes(rng: random.Random, data: bytes) -> bytes:
    """Flip, cut, insert, remove, repeat or overwrite."""
    changed = bytearray(data)
    at = rng.randrange(len(data) + 1)
    size = min(rng.choice((1, 1, 2, 4, 8, 64, 1000)), len(data))
    kind = rng.randrange(8)
    if kind <= 2 or not data:
        for _ in range((1, 1, rng.randrange(1, 20))[kind % 3]):
            if changed:
                changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    elif kind == 3:
        del changed[at:]
    elif kind == 4:
        changed[at:at] = rng.randbytes(size)
    elif kind == 5:
        del changed[at : at + size]
    elif kind == 6:
        changed[at:at] = data[at : at + size] * rng.choice((1, 2, 50))
    else:
        changed[at : at + size] = rng.choice((b"\0", b"\xff", b"\x7f", b"9", b'"', b"[", b"\\")) * size
    return bytes(changed)


def mutate_json(rng: random.Random, text: bytes) -> bytes:
    """Change one to three values, names or lengths of a JSON text."""
    value = [json.loads(text)]
    hostile: dict[str, str] = {}
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        parent, key = rng.choice(list(_places(value)))
        kind = rng.randrange(10)
        if kind <= 5:
            mark = _MARK.format(len(hostile))
            hostile[json.dumps(mark)] = rng.choice(_HOSTILE)
            parent[key] = mark
        elif kind == 6 and parent is not value:
            del parent[key]
        elif kind == 7:
            other, there = rng.choice(list(_places(value)))
            parent[key] = copy.deepcopy(other[there])
        elif kind == 8 and isinstance(parent, dict):
            parent[rng.choice(("x", "", f"{key}2", "\x1b[2J", "format", "x" * 300, "a/../b", "/dev/zero"))] = (
                parent.pop(key)
            )
        elif isinstance(parent, list):
            parent[key:key] = copy.deepcopy(parent[key : key + 1]) * rng.choice((1, 2, 100))
        elif type(parent[key]) is int:
            parent[key] += rng.choice((-1, 1, 2, 255, -1000, 1 << 31))
        elif isinstance(parent[key], str):
            parent[key] = mutate_bytes(rng, parent[key].encode()).decode("utf-8", "replace")
    written = json.dumps(value[0] if value else None)
    for mark, instead in hostile.items():
        written = written.replace(mark, instead)
    return written.encode()


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container and key of a JSON value."""
    waiting = [value]
    while waiting:
        outer = waiting.pop()
        for key in outer if isinstance(outer, dict) else range(len(outer)):
            yield outer, key
            if isinstance(outer[key], (dict, list)):
                waiting.append(outer[key])


def mutate_header(rng: random.Random, data: bytes) -> bytes:
    """Change the JSON at the beginning of a safetensors file, with a length that fits, or the JSON in its metadata."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    facts = header.get("__metadata__", {})
    if facts and rng.random() < 0.5:
        name = rng.choice(sorted(facts))
        change: Callable[[random.Random, bytes], bytes] = mutate_json if facts[name][:1] == "{" else mutate_bytes
        facts[name] = change(rng, facts[name].encode()).decode("utf-8", "replace")
        text = json.dumps(header).encode()
    else:
        text = mutate_json(rng, json.dumps(header).encode())
    if rng.random() < 0.1:
        length = rng.choice((0, 1, len(data), 1 << 31, (1 << 64) - 1))
        return length.to_bytes(8, "little") + text + data[8 + length :]
    return len(text).to_bytes(8, "little") + text + data[8 + int.from_bytes(data[:8], "little") :]


def mutate(rng: random.Random, name: str, data: bytes) -> bytes:
    """Change a file in a way that suits its name."""
    if name.endswith(".json") and rng.random() < 0.7:
        return mutate_json(rng, data)
    if name.endswith((".safetensors", ".edgemem")) and rng.random() < 0.5:
        return mutate_header(rng, data)
    return mutate_bytes(rng, data)
