"""The group: when modules are imported, and how every command ends."""

import json
import re
import subprocess
import sys
from importlib import metadata

import click
import pytest
from click.testing import CliRunner

import edgemem.cli
from edgemem.cli import main
from edgemem.errors import EdgememError, MissingDependencyError
from edgemem.extras import DISTRIBUTION, pip_install
from tests.handmade import write_reciter

HEAVY = (
    "torch",
    "onnx",
    "onnxruntime",
    "tensorrt",
    "tensorrt_rtx",
    "tokenizers",
    "matplotlib",
    "jinja2",
    "transformers",
)


def loaded_by(code: str) -> set[str]:
    """Which of :data:`HEAVY` a fresh interpreter has loaded after ``code``."""
    report = f"{code}\nimport sys, json\nprint(json.dumps([m for m in {HEAVY!r} if m in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", report], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_the_commands_of_the_device_load_no_engine_and_neither_torch_nor_onnx():
    commands = ("run", "bench", "inspect", "doctor")
    code = (
        "import click, edgemem.cli\n"
        f"for name in {commands}: edgemem.cli.main.get_command(click.Context(edgemem.cli.main), name)"
    )
    assert loaded_by(code) == set()


def test_inspect_works_without_any_engine(reciter):
    code = f"from edgemem.cli import main\nmain(['inspect', {str(reciter)!r}], standalone_mode=False)"
    assert loaded_by(code) == set()


def test_run_loads_only_the_engine_that_it_uses(summer):
    code = (
        "import io, sys\nfrom edgemem.cli import main\nsys.stdin = io.TextIOWrapper(io.BytesIO(b'1,2'))\n"
        f"main(['run', {str(summer)!r}], standalone_mode=False)"
    )
    assert loaded_by(code) == {"onnxruntime"}


def test_help_describes_every_command_in_a_line(invoke):
    result = invoke("--help")
    assert result.exit_code == 0
    for name in ("export", "check", "run", "bench", "inspect", "doctor"):
        assert re.search(rf"^  {name} +\w.+\.$", result.output, re.MULTILINE), name


def test_version_is_that_of_the_package(invoke):
    result = invoke("--version")
    assert (result.exit_code, result.output) == (0, f"edgemem {metadata.version(DISTRIBUTION)}\n")


@pytest.mark.parametrize("arguments", [["nosuch"], ["run"], ["run", "--nosuch"], ["inspect"], ["doctor", "extra"]])
def test_wrong_usage_exits_with_2_and_names_the_help(invoke, arguments):
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert "Try 'main" in result.stderr
    assert result.stdout == ""


@pytest.fixture
def failing(monkeypatch):
    """Make ``edgemem doctor`` raise what is given."""

    def install(error: BaseException) -> None:
        @click.command()
        def doctor() -> None:
            raise error

        monkeypatch.setattr(sys.modules[__name__], "doctor", doctor, raising=False)
        monkeypatch.setitem(edgemem.cli._COMMANDS, "doctor", (f"{__name__}:doctor", ""))

    return install


def test_an_error_is_a_line_and_a_hint_on_stderr_and_exit_code_1(failing, invoke):
    failing(MissingDependencyError("no torch.", hint=pip_install("export")))
    result = invoke("doctor")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == 'Error: no torch.\npip install "edgemem-toolkit[export]"\n'


def test_a_caller_from_python_can_catch_the_original_error(failing):
    cause = EdgememError("no.")
    failing(cause)
    with pytest.raises(click.ClickException) as caught:
        main(["doctor"], standalone_mode=False)
    assert caught.value.__cause__ is cause


def test_a_bug_shows_its_traceback(failing):
    failing(ZeroDivisionError("a bug"))
    assert isinstance(CliRunner().invoke(main, ["doctor"]).exception, ZeroDivisionError)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(36, "File name too long", "x[/]y"), "x[/]y: File name too long."),
        (OSError(28, "No space left on device"), "the output: No space left on device."),
        (MemoryError(), "there is not enough memory."),
        (MemoryError("7 TiB"), "there is not enough memory: 7 TiB"),
        (EdgememError("a\x1b[2J"), "a\\x1b[2J"),
        (click.UsageError("a\x1b[2J"), "a\\x1b[2J"),
    ],
)
def test_what_the_system_refuses_is_a_line_too_and_steers_no_terminal(failing, invoke, error, words):
    failing(error)
    result = invoke("doctor")
    assert result.exit_code == (2 if isinstance(error, click.UsageError) else 1)
    assert result.stderr.endswith(f"Error: {words}\n")


STREAMS = {
    "run {0} --prompt a --max-tokens 2 <&-": (0, ""),
    "run {0} <&-": (2, "the prompt is empty"),
    "inspect {0} >&-": (1, "Error: the output: Bad file descriptor."),
    "inspect {0} > /dev/full": (1, "Error: the output: No space left on device."),
    "--help > /dev/full": (1, "Error: the output: No space left on device."),
    "inspect {0}-none <&- >&- 2>&-": (1, ""),
}


@pytest.mark.parametrize("command", STREAMS)
def test_standard_streams_may_be_closed_or_full(reciter, command):
    code, words = STREAMS[command]
    line = f"exec {sys.executable} -m edgemem {command.format(reciter)}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60)
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_ctrl_c_while_modules_are_imported_ends_quietly_with_130():
    code = (
        "import os, signal, sys; import edgemem.__main__ as program\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "class Finder:\n"
        "    def find_spec(self, name, path, target=None): name == 'click' and os.kill(os.getpid(), signal.SIGINT)\n"
        "assert 'click' not in sys.modules\n"
        "sys.meta_path.insert(0, Finder()); program.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_ctrl_c_ends_quietly_with_130(failing, invoke):
    failing(KeyboardInterrupt())
    result = invoke("doctor")
    assert (result.exit_code, result.output) == (130, "")


@pytest.mark.parametrize("command", ["inspect {0}", "inspect {0} --json", "run {0} --prompt a --max-tokens 3000"])
def test_a_closed_pipe_ends_quietly(start, reciter, command):
    process = start(*command.format(reciter).split())
    process.stdout.read(1)
    process.stdout.close()
    process.wait(timeout=30)
    assert process.returncode in (0, 141)  # 0: everything fitted into the pipe before it was closed
    assert process.stderr.read().count(b"Error") == 0


def test_a_pipe_closed_before_anything_is_written_ends_quietly_with_141(start, reciter):
    process = start("run", reciter, "--max-tokens", "5")
    process.stdout.close()
    process.stdin.write(b"prompt")
    process.stdin.close()
    assert process.wait(timeout=30) == 141
    assert process.stderr.read() == b""


def test_characters_that_the_terminal_cannot_show_are_replaced(start, reciter, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "latin-1")
    out, _ = start("run", reciter, "--prompt", "a", "--max-tokens", "35", "--temperature", "0").communicate(timeout=30)
    assert out.decode("latin-1").startswith("he naïve café serves ?? tea.")


def test_tables_are_shown_on_an_ascii_terminal(start, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    process = start("inspect", write_reciter(tmp_path / "café"))
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert b"/caf?" in out
