"""Hostile command lines: ``python -m tests.fuzz.command_lines`` runs all of them, and counts the tracebacks.

Every option of every command, as click knows them, gets every hostile value of its kind; every file that a command
reads gets hostile content. Each line runs in this process as the program does, with its standard streams, and ends with
the exit code 0, 1 or 2 and no other exception.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import struct
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from edgemem.bundle import CHAT_TEMPLATE, MANIFEST
from edgemem.cli import main, program
from tests.fuzz.files import HangError, brief, time_limit
from tests.handmade import write_reciter, write_summer, write_token_reciter
from tests.text.chat_templates import CHATML
from tests.text.tiny_tokenizers import byte_level

_LINE_SECONDS = 60
_ENDLESS = ("fifo", "/dev/zero")  # as a stream of numbers: a run waits, or goes on
_SLOW = ("export", "check", "bench", "doctor")
NUMBERS = [
    *("", " ", "0", "1", "-1", "1.5", "nan", "-nan", "inf", "-inf", "1e400", "1e-400", "9" * 5000, "-" + "9" * 5000),
    *("9223372036854775807", "9223372036854775808", "18446744073709551616", "0x10", "1_000", "１２", "²", "[/]"),
]  # fmt: skip
TEXTS = [
    *("", " ", "a", "é東", "\udcff\udc80", "\x1b[2J\x07", "[/]", "[bold]x", ":smile:", "{0}%s{% x", "x" * 20_000),
    *("1,2", "1 ,,2", "9" * 5000, "-1", "--", "sinks=4", "sinks=x,window="),
    *("sinks=" + "9" * 5000, "a:b", "os:getcwd", ":"),
]  # fmt: skip
DEEP = "[" * 100_000


@dataclass(frozen=True)
class Line:
    """A command line.

    Attributes:
        arguments: The words after ``edgemem``.
        stdin: What stdin gives.
        full: Whether stdout is a full device.
    """

    arguments: tuple[str, ...]
    stdin: bytes = b"1,2\n3,4\n"
    full: bool = False


@contextmanager
def served_at_once() -> Iterator[None]:
    """A server that starts ends as soon as it listens, instead of serving for ever."""
    import uvicorn

    plain = uvicorn.Server.on_tick

    async def end(self: uvicorn.Server, counter: int) -> bool:
        return True

    uvicorn.Server.on_tick = end  # type: ignore[method-assign]
    try:
        yield
    finally:
        uvicorn.Server.on_tick = plain  # type: ignore[method-assign]


def run_line(line: Line, folder: Path) -> tuple[str, str]:
    """What becomes of a line, in a word, and the details of what may not happen."""
    (folder / "stdin").write_bytes(line.stdin)
    before = sys.argv, sys.stdin, sys.stdout, sys.stderr, os.getcwd()
    os.chdir(folder)
    with (
        open(folder / "stdin", encoding="utf-8", errors="surrogateescape") as sys.stdin,
        open("/dev/full" if line.full else folder / "stdout", "w", encoding="utf-8") as sys.stdout,
        open(folder / "stderr", "w", encoding="utf-8", errors="replace") as sys.stderr,
        warnings.catch_warnings(),
        served_at_once(),
    ):
        warnings.simplefilter("ignore")
        sys.argv = ["edgemem", *line.arguments]
        try:
            with time_limit(_LINE_SECONDS):
                program()
            outcome, details = "no exit", ""
        except SystemExit as ending:
            code = 0 if ending.code is None else ending.code
            outcome, details = (f"exit {code}", "") if code in (0, 1, 2) else ("another exit", repr(code))
        except HangError as error:
            outcome, details = "hang", brief(error)
        except BaseException as error:
            outcome, details = "traceback", brief(error)
        finally:
            os.chdir(before[4])
            sys.stdout.flush() if not line.full else None
    sys.argv, sys.stdin, sys.stdout, sys.stderr = before[:4]
    said = (folder / "stderr").read_text(encoding="utf-8")
    if outcome.startswith("exit") and ("Traceback" in said or "\x1b" in said):
        return "traceback", said[-300:]
    if outcome in ("exit 1", "exit 2") and "Error: " not in said and line.arguments not in ((), ("doctor",)):
        return "no message", said[-300:]
    return outcome, details


def make(folder: Path) -> dict[str, list[str]]:
    """Write bundles and hostile files into ``folder``; their paths by what reads them."""
    write_reciter(folder / "reciter")
    write_reciter(folder / "ids", tokenizer=None)
    write_summer(folder / "summer")
    tokenizer = byte_level()
    ids, size = tokenizer.encode("tea").ids, tokenizer.get_vocab_size()
    for name, template in (("chat", CHATML), ("silent", ""), ("failing", "{{ 1 / 0 }}"), ("nested", "{{ " + "(" * 500)):
        files = {"tokenizer.json": tokenizer.to_str(), CHAT_TEMPLATE: template}
        write_token_reciter(folder / name, ids, size, files)
    good = (folder / "summer" / MANIFEST).read_text()
    bad = {
        "empty": "", "deep": DEEP, "null": "null", "list": "[]", "nan": good.replace('"float32"', "NaN"),
        "huge": good.replace('"bytes": ', '"bytes": 1e400'),
        "digits": good.replace('"bytes": ', '"bytes": ' + "9" * 5000),
        "escape": good.replace('"summer"', '"\\u001b[2J[/]"'), "surrogate": good.replace('"summer"', '"\\ud800"'),
    }  # fmt: skip
    for name, text in bad.items():
        shutil.copytree(folder / "summer", folder / f"manifest-{name}")
        (folder / f"manifest-{name}" / MANIFEST).write_text(text)
    os.mkfifo(folder / "fifo")
    (folder / "pipe").mkdir()
    os.mkfifo(folder / "pipe" / MANIFEST)
    os.symlink("loop", folder / "loop")
    (folder / "folder").mkdir()
    (folder / "file").write_text("a file\n")
    contents: dict[str, bytes] = {
        "deep.json": DEEP.encode(), "nan.json": b"NaN", "empty": b"", "zeros": bytes(100_000),
        "text": "tea 東".encode(),
        "line": b"1," * 50_000, "csv": b"1,2\n3,x\n", "wide.csv": b"1,2,3\n", "utf16": "1,2\n".encode("utf-16"),
        **{f"{number}.npy": npy(header) for number, header in enumerate(HEADERS)},
        **{f"{number}.json": json.dumps(config).encode() for number, config in enumerate(CONFIGS)},
    }  # fmt: skip
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    bundles = [
        "reciter",
        "ids",
        "summer",
        "chat",
        "silent",
        "failing",
        "nested",
        "pipe",
        *(f"manifest-{n}" for n in bad),
    ]
    return {"bundle": bundles, "file": [*contents, *map(str, PATHS)], "path": PATHS}


PATHS = [
    *("", " ", ".", "/", "..", "file", "file/x", "folder", "none", "none/x", "loop", "fifo", "a" * 300, "a/" * 3000),
    *("x[/]y", "[bold]x", ":smile:", "\x1b[2J", "é東", "\udcff", "x\ny", "~", "-"),
    *("/dev/null", "/dev/zero", "/proc/self/mem"),
]  # fmt: skip
_STREAMS = (b"", b"\n", b"\xff\xfe\n", b"nan,inf\n", b"1e400,1\n", b"1,2,3\n", b"1" * 100_000, b"\0", b"\x1b[2J\n")
_SHAPES = [
    "(9223372036854775807,)",
    "(4611686018427387904, 4)",
    "(-1, 2)",
    "(1" + "0" * 5000 + ",)",
    "(True,)",
    "2",
    "None",
]
_DTYPES = ["'<f4'", "'|O'", "'<f1000000'", "[('a', '<f4')]", "'<M8[ns]'", "'V0'", "None", "'<f4'" * 2, "{}", "'<c8'"]
HEADERS = [
    *(f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}" for shape in _SHAPES),
    *(f"{{'descr': {dtype}, 'fortran_order': False, 'shape': (3, 2)}}" for dtype in _DTYPES),
    *("", "{}", "(" * 1000, "[" * 9000, "{'descr'", "\0", "'" * 3, "lambda: 0", "{[]: 1}"),
    *("-" * 9000 + "1", "f'{1}'", "é"),
]  # fmt: skip
_CONFIG = {"format": "edgemem.decoder", "d_model": 8, "layers": 1, "heads": 2, "vocab_size": 256}
_MEMORY = [{"type": "window", "window": 4}]
CONFIGS: list[Any] = [
    {**_CONFIG, "memory": _MEMORY, "layers": 10**9},
    {**_CONFIG, "memory": _MEMORY, "d_model": 10**9},
    {**_CONFIG, "memory": _MEMORY, "heads": 10**6},
    {**_CONFIG, "memory": _MEMORY, "vocab_size": 1 << 24, "d_model": 1 << 20},
    {**_CONFIG, "memory": _MEMORY, "rope_theta": float("inf")},
    {**_CONFIG, "memory": _MEMORY, "norm_eps": float("nan")},
    {**_CONFIG, "memory": [{"type": "window", "window": 10**18}]},
    {**_CONFIG, "memory": [{"type": "\x1b[2J"}]},
    {**_CONFIG, "memory": [{"type": ["window"]}]},
    {**_CONFIG, "memory": [[{}]]},
    {**_CONFIG, "memory": "[/]"},
]


def npy(header: str) -> bytes:
    """An NPY file with that header."""
    text = header.encode("latin-1", "replace") + b"\n"
    return b"\x93NUMPY\x02\x00" + struct.pack("<I", len(text)) + text + bytes(24)


def lines(known: dict[str, list[str]]) -> Iterator[Line]:
    """All command lines, as far as they differ in what is hostile."""
    yield from (Line(words) for words in ((), ("--help",), ("--version",), ("--x",), ("\x1b",), ("[/]",), ("",)))
    context = click.Context(main)
    for name in main.list_commands(context):
        command = main.get_command(context, name)
        assert command is not None
        yield from (Line(words, full=full) for words in ((name, "--help"), (name,)) for full in (False, True))
        for option in command.params:
            for words in _words(name, option, known):
                for base in _bases(name, option):
                    yield Line((name, *base, *words))
    yield from _with_files(known)


def _bases(name: str, option: click.Parameter) -> list[tuple[str, ...]]:
    """What else a command needs: where it would take long, something that ends it before."""
    if isinstance(option, click.Argument) and option.name in ("bundle", "source") and name != "run":
        return [("--out", "out")] if name == "export" else [()]
    if name == "run":
        if isinstance(option, click.Argument):
            return [()] if option.name == "bundle" else [("reciter", "--max-tokens", "1"), ("summer",)]
        return [("reciter", "--prompt", "a", "--max-tokens", "2"), ("summer",)]
    return {"build": [("summer", "--target", "orin-nano")], "inspect": [("summer",)], "doctor": [("x",)]}.get(
        name, [("none",)]
    )


def _words(name: str, option: click.Parameter, known: dict[str, list[str]]) -> Iterator[tuple[str, ...]]:
    """The hostile forms of an option or an argument."""
    if isinstance(option, click.Argument):
        values = known["bundle"] + known["path"] if option.name == "bundle" else known["file"]
        yield from ((value,) for value in values if not (value == "fifo" and option.name == "source" and name == "run"))
        return
    assert isinstance(option, click.Option)
    flag = option.opts[0]
    yield (flag,)
    if option.is_flag:
        yield (f"{flag}=x",)
        return
    values = NUMBERS if isinstance(option.type, (click.IntRange, click.FloatRange)) else TEXTS
    if isinstance(option.type, click.Path):
        reads = flag in ("--resume", "--text")
        # What is written must never be a device: whoever runs this may be allowed to replace it.
        values = known["file"] if reads else [path for path in PATHS if not path.startswith(("/dev", "/proc"))]
    # Without a limit of tokens a run does not end, and it waits for the text of a pipe.
    endless = {("--max-tokens", "0"), ("--prefix", "fifo")}
    yield from ((flag, value) for value in values if (flag, value) not in endless)
    if name == "run":
        yield from ((flag, value, "--json") for value in values[3:6])


def _with_files(known: dict[str, list[str]]) -> Iterator[Line]:
    """Hostile files and streams for the commands that read them."""
    for bundle in known["bundle"]:
        for full in (False, True):
            yield Line(("inspect", bundle), full=full)
            yield Line(("inspect", bundle, "--json"), full=full)
            yield Line(
                ("run", bundle, "--chat", "--max-tokens", "3"),
                b"tea?\n/save x\n/save \x1b\n/save ~nobody-here/x\n/no\n//\n\n",
                full,
            )
            yield Line(("run", bundle, "--snapshot", "saved", "--max-tokens", "3"), full=full)
        yield Line(("build", bundle, "--target", "orin-nano", "--out", "packed"))
        yield Line(("build", bundle, "--target", "orin-nano", "--check-only", "--json"))
    for text in (
        "[1e400, 1]",
        f"[{'1' * 5000}, 1]",
        DEEP,
        "[NaN, null]",
        '["\\ud800", 1]',
        "1",
        '{"a": 1}',
        "[[1], 2]",
    ):
        yield Line(("run", "summer", "--input-format", "jsonl"), f"[1, 2]\n{text}\n".encode())
        yield Line(("run", "summer", "--input-format", "jsonl", "--columns", "a,b"), f"{text}\n".encode())
    for source in ("os:getcwd", "os:nothing", "sys:exit", ":", "a:b", "a.b:", "json:loads", "\x1b:x", "[/]:x", "é:é"):
        yield Line(("export", source, "--out", "out"))
        yield Line(("check", "summer", "--against", source))
    for raw in ("f32le", "s16le", "npy"):
        yield from (
            Line(("run", "summer", name, "--input-format", raw)) for name in known["file"] if name not in _ENDLESS
        )
    for data in _STREAMS:
        for name in ("summer", "reciter", "ids", "chat"):
            yield Line(("run", name, "--max-tokens", "2") if name != "summer" else ("run", name), data)
            yield Line(("run", name, "-", "--json"), data)


def main_() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sample", type=int, help="Run only so many lines, drawn at random.")
    given = parser.parse_args()
    counts, bad = run_all(given.sample)
    print(f"{counts.total():,} command lines: " + ", ".join(f"{word} {count:,}" for word, count in counts.items()))
    print("\n".join(bad))
    sys.exit(1 if bad else 0)


def run_all(sample: int | None = None, seed: int = 0) -> tuple[Counter[str], list[str]]:
    """Run all lines, or a sample of the quick ones; counts of what became of them, and what may not happen."""
    counts: Counter[str] = Counter()
    bad = []
    with tempfile.TemporaryDirectory(prefix="edgemem-lines-") as name:
        folder = Path(name)
        every = list(lines(make(folder)))
        if sample is not None:
            every = [line for line in every if line.arguments[:1] and line.arguments[0] not in _SLOW]
            every = random.Random(seed).sample(every, sample)
        for line in every:
            outcome, details = run_line(line, folder)
            counts[outcome] += 1
            if not outcome.startswith("exit"):
                shown = " ".join(repr(word[:60]) for word in line.arguments)
                bad.append(f"{outcome}: {shown}: {details}")
    return counts, bad


if __name__ == "__main__":
    main_()
