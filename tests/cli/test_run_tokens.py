"""``edgemem run`` with a model of tokens. The reciting model writes RECITED again and again: byte p + 1 at p."""

import json
import os
import signal
import time

import numpy as np
import pytest

import edgemem
from tests.handmade import RECITED

GREEDY = ("--temperature", "0")
DATA = RECITED.encode()


def recited(start: int, count: int) -> bytes:
    """What the model writes at positions ``start`` to ``start + count - 1``."""
    return bytes(DATA[(start + step + 1) % len(DATA)] for step in range(count))


def test_a_prompt_is_continued_for_as_many_tokens_as_wanted(reciter, invoke):
    result = invoke("run", reciter, "--prompt", "abc", "--max-tokens", "40", *GREEDY)
    assert result.exit_code == 0
    assert result.stdout == recited(2, 40).decode("utf-8", "replace") + "\n"


def test_the_rates_and_the_position_follow_on_stderr(reciter, invoke):
    result = invoke("run", reciter, "--prompt", "abc", "--max-tokens", "40", *GREEDY)
    assert result.stderr.startswith("prompt 3 tokens, ")
    assert result.stderr.count("tokens/s") == 2
    assert result.stderr.endswith("position 42\n")


@pytest.mark.parametrize("given", ["stdin", "-", "file"])
def test_the_prompt_is_read_from_stdin_or_a_file_and_may_be_longer_than_a_chunk(reciter, invoke, tmp_path, given):
    prompt = "ä" * 50  # 100 bytes; a call takes 16
    (tmp_path / "prompt").write_text(prompt, encoding="utf-8")
    source = {"stdin": (), "-": ("-",), "file": (tmp_path / "prompt",)}[given]
    result = invoke("run", reciter, *source, "--max-tokens", "9", *GREEDY, input=prompt)
    assert result.stdout == recited(99, 9).decode("utf-8", "replace") + "\n"
    assert "prompt 100 tokens" in result.stderr


def test_bytes_that_are_not_utf8_reach_the_model_as_they_are(reciter, invoke):
    result = invoke("run", reciter, "--max-tokens", "1", "--json", input=b"\xff\xfe\x80")
    assert json.loads(result.stdout)["prompt_tokens"] == 3


def test_a_character_cut_off_at_the_end_is_replaced(reciter, invoke):
    cut = DATA.index("ï".encode())
    result = invoke("run", reciter, "--prompt", "x", "--max-tokens", str(cut), *GREEDY)
    assert result.stdout == f"{RECITED[1:].partition('ï')[0]}\ufffd\n"


@pytest.mark.parametrize("stop", ["serves", "東京", "é s", " "])
def test_the_text_ends_before_a_stop_text_and_shows_no_part_of_it(reciter, invoke, stop):
    arguments = ("run", reciter, "--prompt", "x", *GREEDY, "--stop", "never said", "--stop", stop)
    result = invoke(*arguments)
    assert result.stdout == RECITED[1:].partition(stop)[0] + "\n"
    said = json.loads(invoke(*arguments, "--json").stdout)
    assert said["ended_by"] == "stop"
    assert said["tokens"] == len((RECITED[1:].partition(stop)[0] + stop).encode())


def test_json_is_one_object_and_nothing_else(reciter, invoke):
    result = invoke("run", reciter, "--prompt", "abc", "--max-tokens", "20", *GREEDY, "--json")
    said = json.loads(result.stdout)
    assert result.stderr == ""
    rates = [said.pop("tokens_per_second"), said.pop("prefill_tokens_per_second")]
    assert all(rate > 0 for rate in rates)
    assert said == {
        "text": recited(2, 20).decode(),
        "ids": list(recited(2, 20)),
        "tokens": 20,
        "prompt_tokens": 3,
        "ended_by": "max_tokens",
        "position": 22,
        "runtime": "onnxruntime",
        "device": "cpu",
    }


def test_without_a_tokenizer_the_prompt_and_the_output_are_ids(id_reciter, invoke):
    expected = " ".join(map(str, recited(2, 5)))
    for arguments, piped in ((("--prompt-ids", "7,8 9"), None), ((), "7 8\n9")):
        result = invoke("run", id_reciter, *arguments, "--max-tokens", "5", *GREEDY, input=piped)
        assert result.stdout.split() == expected.split()
    said = json.loads(invoke("run", id_reciter, "--prompt-ids", "7", "--max-tokens", "1", *GREEDY, "--json").stdout)
    assert "text" not in said
    assert said["ids"] == list(recited(0, 1))


def test_a_seed_repeats_the_text_and_the_options_reach_the_sampler(reciter, invoke):
    wild = ("run", reciter, "--prompt", "a", "--max-tokens", "30", "--temperature", "8", "--json")
    texts = [json.loads(invoke(*wild, "--seed", seed).stdout)["ids"] for seed in ("1", "1", "2")]
    assert texts[0] == texts[1] != texts[2]
    assert texts[0] != list(recited(0, 30))
    for tame in (("--top-k", "1"), ("--top-p", "0.001"), ("--temperature", "0.01")):
        assert json.loads(invoke(*wild, *tame).stdout)["ids"] == list(recited(0, 30))


@pytest.mark.parametrize("more", [(), ("--prompt", "more"), ("--prompt-ids", "1,2,3,4")])
def test_a_resumed_stream_continues_where_it_stopped(reciter, invoke, tmp_path, more):
    state = tmp_path / "state"
    invoke("run", reciter, "--prompt", "abc", "--max-tokens", "10", *GREEDY, "--snapshot", state)
    result = invoke("run", reciter, "--resume", state, *more, "--max-tokens", "10", *GREEDY, "--json")
    said = json.loads(result.stdout)
    # 3 of the prompt and 9 that were drawn are in the state; the tenth is read first.
    assert bytes(said["ids"]) == recited(12 + 4 * bool(more), 10)
    assert said["prompt_tokens"] == 1 + 4 * bool(more)


def test_two_runs_with_a_snapshot_between_them_leave_the_state_of_one(reciter, invoke, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    invoke("run", reciter, "--prompt", "abc", "--max-tokens", "25", *GREEDY, "--snapshot", whole)
    invoke("run", reciter, "--prompt", "abc", "--max-tokens", "10", *GREEDY, "--snapshot", parts)
    invoke("run", reciter, "--resume", parts, "--max-tokens", "15", *GREEDY, "--snapshot", parts)
    assert whole.read_bytes() == parts.read_bytes()


def test_a_snapshot_from_python_resumes_with_a_prompt(reciter, invoke, tmp_path):
    with edgemem.open(reciter) as session:
        stream = session.stream()
        stream.feed(np.arange(5))
        stream.save(tmp_path / "state")
    arguments = ("run", reciter, "--resume", tmp_path / "state", "--max-tokens", "3", *GREEDY)
    assert invoke(*arguments, "--prompt", "a").stdout_bytes == recited(5, 3) + b"\n"
    refused = invoke(*arguments)
    assert refused.exit_code == 2
    assert "give a prompt" in refused.stderr


def read_bytes(process, count):
    """The first ``count`` bytes that the process writes, and no more."""
    out = b""
    while len(out) < count:
        out += process.stdout.read(count - len(out))
    return out


def interrupt_while_running(process, number=signal.SIGINT):
    """Send a signal after some output, and wait for the end."""
    out = read_bytes(process, 30)
    process.send_signal(number)
    rest, errors = process.communicate(timeout=30)
    return out + rest, errors.decode()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_keeps_what_was_done(reciter, invoke, start, tmp_path, number, code):
    state = tmp_path / "state"
    process = start("run", reciter, "--prompt", "abc", "--max-tokens", "0", *GREEDY, "--snapshot", state)
    out, errors = interrupt_while_running(process, number)
    assert process.returncode == code
    assert "Traceback" not in errors
    assert "tokens/s" in errors
    assert out.endswith(b"\n")
    tokens = int(errors.split("generated ")[1].split(" ")[0].replace(",", ""))
    assert out.decode().rstrip("\n").rstrip("\ufffd") == recited(2, tokens).decode("utf-8", "ignore").rstrip("\n")
    said = json.loads(invoke("run", reciter, "--resume", state, "--max-tokens", "10", *GREEDY, "--json").stdout)
    assert bytes(said["ids"]) == recited(2 + tokens, 10)


def test_ctrl_c_still_prints_the_json(reciter, start, tmp_path):
    process = start("run", reciter, "--max-tokens", "0", "--json", "--snapshot", tmp_path / "state")
    process.stdin.write(b"x" * 200_000)  # more than a pipe holds: when it is written, it is being read
    process.stdin.close()
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    out, _ = process.stdout.read(), process.wait(timeout=30)
    assert process.returncode == 130
    said = json.loads(out)
    assert said["ended_by"] == "interrupt"
    assert said["tokens"] == len(said["ids"])
    assert (tmp_path / "state").exists()


def test_a_closed_pipe_keeps_the_snapshot(reciter, invoke, start, tmp_path):
    state = tmp_path / "state"
    process = start("run", reciter, "--prompt", "a", "--max-tokens", "0", *GREEDY, "--snapshot", state)
    process.stdout.read(10)
    process.stdout.close()
    assert process.wait(timeout=30) == 141
    assert process.stderr.read() == b""
    said = json.loads(invoke("run", reciter, "--resume", state, "--max-tokens", "5", *GREEDY, "--json").stdout)
    assert bytes(said["ids"]) == recited(said["position"] - 5, 5)


def test_tokens_appear_as_they_are_generated(reciter, start):
    process = start("run", reciter, "--prompt", "a", "--max-tokens", "0", *GREEDY)
    assert read_bytes(process, 3) == recited(0, 3)
    assert process.poll() is None


@pytest.mark.parametrize(
    "arguments",
    [
        ("--prompt", ""),
        ("--prompt-ids", ""),
        *(("--prompt-ids", ids) for ids in ("1,x", "1,-2", "1.5", "1_0", "99999999999999999999", "9" * 5000, "²")),
        ("--prompt", "a", "--prompt-ids", "1"),
        ("--prompt", "a", "-"),
        ("nosuchfile",),
        ("--prompt", "a", "--stop", ""),
        ("--prompt", "a", "--temperature", "-1"),
        ("--prompt", "a", "--temperature", "nan"),
        ("--prompt", "a", "--temperature", "inf"),
        ("--prompt", "a", "--top-p", "0"),
        ("--prompt", "a", "--top-p", "1.5"),
        ("--prompt", "a", "--top-p", "nan"),
        ("--prompt", "a", "--top-k", "-1"),
        ("--prompt", "a", "--max-tokens", "-1"),
        ("--prompt", "a", "--runtime", "abacus"),
        ("--prompt", "a", "--device", "abacus"),
        ("--prompt", "a", "--threads", "0"),
        ("--prompt", "a", "--resume", "nosuchfile"),
    ],
)
def test_wrong_usage_exits_with_2(reciter, invoke, arguments):
    result = invoke("run", reciter, *arguments, input="")
    assert result.exit_code == 2
    assert result.stdout == ""


def test_a_prompt_without_an_end_is_an_error(reciter, invoke, monkeypatch):
    monkeypatch.setattr("edgemem.reading.MOST_TEXT_BYTES", 1000)
    result = invoke("run", reciter, "/dev/zero")
    assert (result.exit_code, result.stderr) == (1, "Error: /dev/zero cannot be read: It gives more than 1,000 bytes\n")


@pytest.mark.parametrize("arguments", [("--prompt", "a"), ("--prompt-ids", "1", "--stop", "a")])
def test_text_needs_a_tokenizer(id_reciter, invoke, arguments):
    result = invoke("run", id_reciter, *arguments)
    assert result.exit_code == 2
    assert "no tokenizer" in result.stderr


@pytest.mark.parametrize("arguments", [("--prompt-ids", "256"), ("-",)])
def test_prompt_ids_that_the_model_does_not_have_are_an_error(id_reciter, invoke, arguments):
    result = invoke("run", id_reciter, *arguments, input="1,x")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("Error: ")


def test_a_prompt_with_a_wrong_id_leaves_the_snapshot_as_it_was(reciter, invoke, tmp_path):
    state = tmp_path / "state"
    invoke("run", reciter, "--prompt", "abc", "--max-tokens", "1", *GREEDY, "--snapshot", state)
    before = state.read_bytes()
    prompt = ",".join(["1"] * 40 + ["256"])  # a call takes 16
    assert invoke("run", reciter, "--prompt-ids", prompt, "--resume", state, "--snapshot", state).exit_code == 1
    assert state.read_bytes() == before


def test_a_snapshot_of_another_model_and_a_malformed_one_are_errors(reciter, summer, invoke, tmp_path):
    invoke("run", summer, "--snapshot", tmp_path / "state", input="1,2")
    (tmp_path / "junk").write_bytes(b"junk")
    for snapshot in ("state", "junk"):
        result = invoke("run", reciter, "--prompt-ids", "1", "--resume", tmp_path / snapshot)
        assert (result.exit_code, result.stdout) == (1, "")
        assert "snapshot" in result.stderr


def test_a_snapshot_in_a_missing_folder_is_an_error_at_once(reciter, invoke, tmp_path):
    result = invoke("run", reciter, "--prompt", "a", "--snapshot", tmp_path / "nosuch" / "state")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "nosuch is not a folder" in result.stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_snapshot_in_a_read_only_folder_is_an_error_at_once(reciter, invoke, tmp_path):
    tmp_path.chmod(0o500)
    result = invoke("run", reciter, "--prompt", "a", "--snapshot", tmp_path / "state")
    assert (result.exit_code, result.stdout) == (1, "")


def test_a_bundle_that_is_missing_or_damaged_is_an_error(invoke, tmp_path, reciter):
    for path in (tmp_path / "nosuch", tmp_path):
        result = invoke("run", path, "--prompt", "a")
        assert (result.exit_code, result.stdout) == (1, "")
        assert "is not a bundle" in result.stderr
