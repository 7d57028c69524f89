"""Which files an ONNX graph refers to, read from its bytes: a device needs no onnx package."""

from __future__ import annotations

from collections.abc import Iterator

# Message → number of a field → message in that field; the numbers are those of onnx.proto, which never change.
_MESSAGES: dict[str, dict[int, str]] = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
_INTEGER, _LENGTH_DELIMITED = 0, 2
_LAST_BYTE, _MOST_BITS = 0x80, 70  # smaller bytes end an integer
_FIXED_BYTES = {1: 8, 5: 4}
_KEY, _VALUE = 1, 2


def external_files(model: bytes) -> set[str]:
    """The files, relative to the graph's folder, that hold data of tensors anywhere in a serialised ONNX model.

    Raises:
        ValueError: ``model`` is not a protocol buffer.
    """
    found: set[str] = set()
    waiting = [("model", 0, len(model))]
    try:
        while waiting:
            message, start, end = waiting.pop()
            inner = _MESSAGES.get(message, {})
            if message == "entry":
                entry = {number: model[first:last] for number, first, last in _fields(model, start, end)}
                if entry.get(_KEY) == b"location":
                    found.add(entry.get(_VALUE, b"").decode())
            else:
                waiting += [(inner[n], first, last) for n, first, last in _fields(model, start, end) if n in inner]
    except IndexError:
        raise ValueError("a field is cut short") from None
    return found


def _fields(data: bytes, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Number, start and end of each field of a message that has a length: texts, bytes and messages."""
    while at < end:
        tag, at = (data[at], at + 1) if data[at] < _LAST_BYTE else _varint(data, at)
        kind = tag & 7
        if kind == _LENGTH_DELIMITED:
            size, at = (data[at], at + 1) if data[at] < _LAST_BYTE else _varint(data, at)
            if at + size > end:
                raise ValueError("a field is longer than the message that contains it")
            yield tag >> 3, at, at + size
            at += size
        elif kind in _FIXED_BYTES:
            at += _FIXED_BYTES[kind]
        elif kind == _INTEGER:
            _, at = _varint(data, at)
        else:
            raise ValueError(f"a field is of the unknown kind {kind}")
    if at != end:
        raise IndexError(at)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """An integer of 7 bits a byte, lowest first, and the place after it."""
    value, shift = data[at] & 0x7F, 7
    while data[at] >= _LAST_BYTE and shift < _MOST_BITS:
        at += 1
        value |= (data[at] & 0x7F) << shift
        shift += 7
    return value, at + 1
