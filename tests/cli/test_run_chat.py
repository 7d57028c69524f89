"""``edgemem run --chat``. The model recites a conversation, so it replies well only if it reads the rendered text."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

import edgemem
from edgemem.bundle import open_bundle
from edgemem.generation_defaults import GenerationDefaults
from edgemem.text.chat_template import ChatTemplate
from tests.handmade import write_token_reciter
from tests.text import chat_templates
from tests.text.tiny_tokenizers import byte_level

from .conftest import end_by_signal, signal_until

TURNS = ("the tea?", "tea & 東京 🚋", "the naïve café", "é\nthe tea", "the", "tea " * 60)
USER, REPLIES = TURNS[::2], TURNS[1::2]
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
GREEDY = ("--temperature", "0")
FIGURES = r"(\d+) replies; prompt (\d+) tokens, .* tokens/s; generated (\d+) tokens, .* tokens/s; position (\d+)"


def rendered(template: str, system: str | None = None) -> str:
    """The whole conversation, as the template writes it."""
    turns = [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(TURNS)]
    messages = [{"role": "system", "content": system}, *turns] if system else turns
    return ChatTemplate(template, SPECIAL).render(messages, reply_follows=False)


def write_talker(folder: Path, template: str, system: str | None = None, tokenizer: Tokenizer | None = None) -> Path:
    made = tokenizer or byte_level()
    ids = made.encode(rendered(template, system), add_special_tokens=False).ids
    return write_token_reciter(
        folder,
        ids,
        made.get_vocab_size(),
        {"tokenizer.json": made.to_str(), "chat_template.jinja": template},
        special_tokens=SPECIAL,
        generation=GenerationDefaults(eos_token_ids=(made.token_to_id("</s>"),), max_new_tokens=1000),
    )


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_talker(tmp_path_factory.mktemp("talker") / "bundle", chat_templates.CHATML)


def lines(*messages: str) -> bytes:
    return "".join(f"{message}\n" for message in messages).encode()


EVERY_REPLY = "".join(f"{reply}\n" for reply in REPLIES)


@pytest.mark.parametrize("style", ["chatml", "headers", "tools"])
@pytest.mark.parametrize("system", [None, "Say tea."])
def test_a_conversation_of_several_turns_reads_what_the_template_writes(tmp_path, invoke, style, system):
    template = chat_templates.FAITHFUL[style]
    bundle = write_talker(tmp_path / "bundle", template, system)
    given = ("--system", system) if system else ()
    result = invoke("run", bundle, "--chat", *given, *GREEDY, "--snapshot", tmp_path / "state", input=lines(*USER))
    assert result.exit_code == 0, result.output
    assert result.stdout == "".join(f"{reply.strip() if style == 'headers' else reply}\n" for reply in REPLIES)
    # The same state as after reading the text at once; the last end was drawn and not read.
    with edgemem.open(bundle) as session:
        talked, read = session.stream(), session.stream()
        talked.restore(tmp_path / "state")
        ids = Tokenizer.from_file(str(bundle / "tokenizer.json")).encode(rendered(template, system)).ids
        unread = 2 if style == "chatml" else 1  # including the line break after it
        read.feed(ids[:-unread])
        assert talked.position == read.position
        assert talked.state() == read.state()


def test_the_figures_follow_on_stderr_and_there_is_no_prompt_outside_a_terminal(talker, invoke):
    result = invoke("run", talker, "--chat", *GREEDY, input=lines(*USER, "", "  "))
    figures = re.fullmatch(FIGURES + "\n", result.stderr)
    assert figures is not None, result.stderr
    replies, fed, drawn, position = map(int, figures.groups())
    assert replies == 3
    assert position == fed + drawn - 3  # the end of each reply is read with the next message, and counted there


def test_the_size_of_a_snapshot_does_not_grow_with_the_conversation(talker, invoke, tmp_path):
    one, many = tmp_path / "one", tmp_path / "many"
    script = lines(USER[0], f"/save {one}", *["the tea" * 5] * 200, f"/save {many}")
    assert invoke("run", talker, "--chat", *GREEDY, "--max-tokens", "8", input=script).exit_code == 0
    assert many.stat().st_size < one.stat().st_size + 200


def test_messages_are_read_from_a_file_or_given_as_an_option(talker, invoke, tmp_path):
    (tmp_path / "messages").write_bytes(lines(*USER))
    assert invoke("run", talker, tmp_path / "messages", "--chat", *GREEDY).stdout == EVERY_REPLY
    assert invoke("run", talker, "-", "--chat", *GREEDY, input=lines(*USER)).stdout == EVERY_REPLY
    assert invoke("run", talker, "--chat", "--prompt", USER[0], *GREEDY).stdout == f"{REPLIES[0]}\n"


def test_json_is_a_line_for_each_reply(talker, invoke):
    result = invoke("run", talker, "--chat", "--json", *GREEDY, input=lines(*USER))
    assert result.stderr == ""
    said = [json.loads(line) for line in result.stdout.splitlines()]
    assert [reply["text"] for reply in said] == list(REPLIES)
    assert all(reply["ended_by"] == "eos" for reply in said)
    assert said[-1]["position"] == sum(reply["prompt_tokens"] + len(reply["ids"]) - 1 for reply in said)


def test_a_conversation_continues_from_a_snapshot(talker, invoke, tmp_path):
    state = tmp_path / "state"
    first = invoke("run", talker, "--chat", *GREEDY, "--snapshot", state, input=lines(USER[0]))
    second = invoke("run", talker, "--chat", *GREEDY, "--resume", state, "--snapshot", state, input=lines(USER[1]))
    third = invoke("run", talker, "--chat", *GREEDY, "--resume", state, input=lines(USER[2]))
    assert first.stdout + second.stdout + third.stdout == EVERY_REPLY
    refused = invoke("run", talker, "--chat", "--system", "x", "--resume", state, input=b"")
    assert refused.exit_code == 2
    assert "in the middle of one" in refused.stderr


def test_a_conversation_goes_on_from_a_state_with_the_same_command(tmp_path, invoke):
    bundle = write_talker(tmp_path / "bundle", chat_templates.CHATML, "Say tea.")
    command = ("run", bundle, "--chat", "--system", "Say tea.", *GREEDY, "--state", tmp_path / "state")
    assert "".join(invoke(*command, input=lines(message)).stdout for message in USER) == EVERY_REPLY


def test_a_conversation_continues_after_a_reply_that_was_cut_short(talker, invoke, tmp_path):
    state = tmp_path / "state"
    cut = invoke("run", talker, "--chat", *GREEDY, "--max-tokens", "2", "--snapshot", state, input=lines(USER[0]))
    rest = invoke("run", talker, *GREEDY, "--resume", state)  # without --chat: the text continues
    assert (cut.stdout.removesuffix("\n") + rest.stdout).startswith(f"{REPLIES[0]}\nuser")
    said = invoke("run", talker, "--chat", "--json", *GREEDY, "--resume", state, input=lines("the tea?"))
    # 2 tokens were drawn and 1 of them read: it is read first, then the end of the reply and the new message.
    assert json.loads(said.stdout)["prompt_tokens"] == 1 + len(
        byte_level().encode("<|im_end|>\n<|im_start|>user\nthe tea?<|im_end|>\n<|im_start|>assistant\n").ids
    )


def test_a_conversation_can_begin_after_another_text(talker, invoke, tmp_path):
    state = tmp_path / "state"
    invoke("run", talker, "--prompt", "the tea", "--max-tokens", "1", *GREEDY, "--snapshot", state)
    result = invoke(
        "run", talker, "--chat", *GREEDY, "--max-tokens", "1", "--json", "--resume", state, input=lines("a")
    )
    tokenizer = byte_level()
    message = ChatTemplate(chat_templates.CHATML, {}).render([{"role": "user", "content": "a"}], reply_follows=True)
    assert json.loads(result.stdout)["prompt_tokens"] == 1 + len(tokenizer.encode(message).ids)


def test_commands_reset_save_and_quit(talker, invoke, tmp_path):
    state = tmp_path / "state"
    script = lines(USER[0], "/reset", USER[0], USER[1], f"/save {state}", "/help", "/quit", USER[2])
    result = invoke("run", talker, "--chat", *GREEDY, input=script)
    assert result.stdout == "".join(f"{reply}\n" for reply in (REPLIES[0], REPLIES[0], REPLIES[1]))
    assert f"Saved to {state}." in result.stderr
    assert "/reset" in result.stderr
    assert invoke("run", talker, "--chat", *GREEDY, "--resume", state, input=lines(USER[2])).stdout == f"{REPLIES[2]}\n"


@pytest.mark.parametrize("line", ["/nonsense", "/save", "/reset now", "/save /no/such/folder/state"])
def test_a_wrong_command_ends_a_script(talker, invoke, line):
    result = invoke("run", talker, "--chat", *GREEDY, input=lines(line, USER[0]))
    assert result.exit_code == 1
    assert result.stdout == ""


def test_a_message_may_begin_with_a_slash(talker, invoke):
    result = invoke("run", talker, "--chat", *GREEDY, "--max-tokens", "1", "--json", input=lines("//quit"))
    asked = ChatTemplate(chat_templates.CHATML, {}).render([{"role": "user", "content": "/quit"}], reply_follows=True)
    assert json.loads(result.stdout)["prompt_tokens"] == len(byte_level().encode(asked).ids)


def test_a_template_that_rewrites_the_past_causes_one_note(tmp_path, invoke):
    bundle = write_talker(tmp_path / "bundle", chat_templates.SYSTEM_LAST)
    result = invoke("run", bundle, "--chat", "--system", "x", "--max-tokens", "3", input=lines("a", "b", "c", "d"))
    assert result.exit_code == 0
    assert result.stderr.count("rewrites earlier turns") == 1


def test_a_stop_text_ends_a_reply_and_is_not_read_twice(tmp_path, invoke):
    bundle = write_talker(tmp_path / "bundle", chat_templates.PLAIN)
    result = invoke("run", bundle, "--chat", *GREEDY, "--stop", "\n\nUser:", input=lines(*USER[:2]))
    assert result.stdout == "".join(f" {reply}\n" for reply in REPLIES[:2])


def test_ignore_eos_continues_past_end_of_text(talker, invoke):
    whole = rendered(chat_templates.CHATML)
    tokens = byte_level().encode(whole, add_special_tokens=False).ids
    bundle = open_bundle(talker)
    assert bundle.manifest.generation.eos_token_ids
    result = invoke(
        "run", talker, "--prompt-ids", str(tokens[0]), "--max-tokens", "40", *GREEDY, "--ignore-eos", "--json"
    )
    assert json.loads(result.stdout)["ids"] == tokens[1:41]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--chat", "--prompt-ids", "1"), "use --prompt or INPUT"),
        (("--system", "x", "--prompt", "a"), "--system is for --chat"),
        (("-", "--chat", "--prompt", "a"), "only one of --prompt and INPUT"),
    ],
)
def test_wrong_usage_exits_with_2(talker, invoke, arguments, message):
    result = invoke("run", talker, *arguments, input=b"")
    assert result.exit_code == 2
    assert message in result.stderr


def test_without_a_template_or_a_tokenizer_there_is_no_conversation(reciter, id_reciter, summer, invoke):
    assert "has no chat template" in invoke("run", reciter, "--chat", input=b"").stderr
    assert "has no tokenizer" in invoke("run", id_reciter, "--chat", input=b"").stderr
    assert "--chat is for models of tokens" in invoke("run", summer, "--chat", input=b"").stderr


def test_a_message_that_is_not_utf8_is_an_error(talker, invoke):
    result = invoke("run", talker, "--chat", input=b"\xff\n")
    assert result.exit_code == 1
    assert "not UTF-8" in result.stderr


class Terminal:
    """A terminal with the program at the other end."""

    def __init__(self, start: Callable[..., Any], *arguments: object) -> None:
        self.master, slave = pty.openpty()
        self.process = start(*arguments, stdin=slave, stdout=slave, stderr=slave, start_new_session=True)
        os.close(slave)
        self.seen = ""

    def shows(self, text: str, timeout_s: float) -> bool:
        """Read until ``text`` was shown, and go on behind it; ``False`` where it was not in time."""
        deadline = time.monotonic() + timeout_s
        while text not in self.seen:
            if time.monotonic() > deadline:
                return False
            if select.select([self.master], [], [], 0.1)[0]:
                self.seen += os.read(self.master, 4096).decode("utf-8", "replace").replace("\r\n", "\n")
        self.seen = self.seen.partition(text)[2]
        return True

    def wait_for(self, text: str) -> None:
        """Read until ``text`` was shown, and go on behind it."""
        assert self.shows(text, 30), f"no {text!r} in {self.seen!r}"

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def close(self) -> int:
        """Wait for the program's end."""
        deadline = time.monotonic() + 30
        while self.process.poll() is None and time.monotonic() < deadline:
            if select.select([self.master], [], [], 0.1)[0]:
                try:
                    self.seen += os.read(self.master, 4096).decode("utf-8", "replace")
                except OSError:
                    break
        os.close(self.master)
        return int(self.process.wait(timeout=30))


@pytest.mark.parametrize("end", ["/quit\n", "\x04"])
def test_on_a_terminal_there_is_a_prompt_and_a_wrong_message_does_not_end_it(talker, start, end):
    terminal = Terminal(start, "run", talker, "--chat", *GREEDY)
    terminal.wait_for("/help lists the commands")
    terminal.wait_for("> ")
    terminal.type("/nonsense\n")
    terminal.wait_for("Error: there is no command '/nonsense'")
    terminal.wait_for("> ")
    terminal.type(f"{USER[0]}\n")
    terminal.wait_for(f"{REPLIES[0]}\n> ")
    terminal.type(end)
    assert terminal.close() == 0
    assert "1 reply;" in terminal.seen


def test_ctrl_c_stops_a_reply_and_not_the_program(talker, start):
    terminal = Terminal(start, "run", talker, "--chat", *GREEDY, "--ignore-eos", "--max-tokens", "0")
    terminal.wait_for("> ")
    terminal.type(f"{USER[0]}\n")
    terminal.wait_for(REPLIES[0])
    terminal.interrupt()
    terminal.wait_for("> ")
    # Nothing runs, so a hint is shown.
    signal_until(terminal.process, signal.SIGINT, partial(terminal.shows, "Ctrl-D or /quit ends."))
    terminal.wait_for("> ")
    terminal.type("/reset\n")
    terminal.wait_for("> ")
    terminal.type(f"{USER[0]}\n")
    terminal.wait_for(REPLIES[0])
    terminal.interrupt()
    terminal.wait_for("> ")
    terminal.type("/quit\n")
    assert terminal.close() == 0
    assert "2 replies" in terminal.seen


def test_sigterm_during_a_reply_saves_the_snapshot_and_ends_the_program(talker, invoke, start, tmp_path):
    state = tmp_path / "state"
    process = start("run", talker, "--chat", *GREEDY, "--ignore-eos", "--max-tokens", "0", "--snapshot", state)
    process.stdin.write(lines(USER[0]))
    assert process.stdout.read(1) == b"t"
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 143
    assert b"1 reply;" in errors
    assert invoke("run", talker, "--chat", "--resume", state, "--max-tokens", "1", input=lines("a")).exit_code == 0


def test_ctrl_c_while_waiting_for_a_pipe_ends_the_program(talker, start, tmp_path):
    process = start("run", talker, "--chat", *GREEDY, "--snapshot", tmp_path / "state")
    process.stdin.write(lines(USER[0]))
    expected = f"{REPLIES[0]}\n".encode()
    out = b""
    while len(out) < len(expected):
        out += process.stdout.read(len(expected) - len(out))
    assert out == expected
    assert end_by_signal(process, signal.SIGINT) == 130
    assert (tmp_path / "state").exists()


def test_a_closed_pipe_keeps_the_snapshot(talker, start, tmp_path):
    process = start(
        "run", talker, "--chat", *GREEDY, "--ignore-eos", "--max-tokens", "0", "--snapshot", tmp_path / "state"
    )
    process.stdin.write(lines(USER[0]))
    process.stdout.read(3)
    process.stdout.close()
    assert process.wait(timeout=30) == 141
    assert process.stderr.read() == b""
    assert (tmp_path / "state").exists()
