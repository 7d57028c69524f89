"""OpenAI's API: what its clients send is understood or refused by name, and what comes back has its form."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.bench.devices.recorded import ina3221
from tests.cli.test_run_chat import REPLIES, USER, write_talker
from tests.handmade import RECITED
from tests.serve.conftest import Running, running
from tests.text import chat_templates

SYSTEM = "Say tea. " * 8


@pytest.fixture(scope="module")
def texts(reciter: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("talkers")
    bundles = [reciter, write_talker(folder / "talker", chat_templates.CHATML)]
    bundles.append(write_talker(folder / "told", chat_templates.CHATML, SYSTEM))
    with running(bundles, slots=3) as server:
        yield server


def completion(server: Running, **body: Any) -> tuple[int, Any]:
    return server.request("POST", "/v1/completions", {"model": "reciter", "temperature": 0, **body})


def chat(server: Running, *contents: str, model: str = "talker", **body: Any) -> tuple[int, Any]:
    roles = ("user", "assistant")
    messages = [{"role": roles[n % 2], "content": content} for n, content in enumerate(contents)]
    messages = [*body.pop("before", []), *messages]
    return server.request(
        "POST", "/v1/chat/completions", {"model": model, "messages": messages, "temperature": 0, **body}
    )


def events(text: str) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def test_models(texts: Running) -> None:
    status, found = texts.request("GET", "/v1/models")
    assert status == 200
    assert [model["id"] for model in found["data"]] == ["reciter", "talker", "told"]
    assert {model["object"] for model in found["data"]} == {"model"}


def test_a_completion_and_its_usage(texts: Running) -> None:
    status, found = completion(texts, prompt="th", max_tokens=8)
    assert status == 200
    assert found["object"] == "text_completion"
    assert found["choices"] == [
        {"index": 0, "text": RECITED[2:9], "logprobs": None, "finish_reason": "length"}  # 'ï' takes two tokens
    ]
    assert found["usage"]["prompt_tokens"] == 2
    assert found["usage"]["completion_tokens"] == 8
    assert found["usage"]["total_tokens"] == 10


def test_a_completion_ends_before_a_stop_text(texts: Running) -> None:
    for stop in ("café", ["zzz", "café"]):
        _, found = completion(texts, prompt="t", max_tokens=100, stop=stop)
        assert found["choices"][0]["text"] == RECITED[1 : RECITED.index("café")]
        assert found["choices"][0]["finish_reason"] == "stop"


def test_token_ids_are_a_prompt_too(texts: Running) -> None:
    _, found = completion(texts, prompt=[116, 104], max_tokens=4)
    assert found["choices"][0]["text"] == RECITED[2:6]


def test_a_streamed_completion_gives_the_same_text(texts: Running) -> None:
    _, whole = completion(texts, prompt="t", max_tokens=30)
    status, text = completion(texts, prompt="t", max_tokens=30, stream=True, stream_options={"include_usage": True})
    assert status == 200
    *pieces, last, usage = events(text)
    assert "".join(piece["choices"][0]["text"] for piece in pieces) == whole["choices"][0]["text"]
    assert last["choices"][0]["finish_reason"] == "length"
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 30


def test_a_chat_answers_a_history(texts: Running) -> None:
    status, found = chat(texts, USER[0], REPLIES[0], USER[1])
    assert status == 200
    assert found["object"] == "chat.completion"
    (choice,) = found["choices"]
    assert choice["message"]["role"] == "assistant"
    assert choice["message"]["content"] == REPLIES[1]
    assert choice["finish_reason"] == "stop"


def test_a_streamed_chat(texts: Running) -> None:
    status, text = chat(texts, USER[0], stream=True)
    assert status == 200
    first, *pieces, last = events(text)
    assert first["choices"][0]["delta"]["role"] == "assistant"
    assert "".join(piece["choices"][0]["delta"]["content"] for piece in pieces) == REPLIES[0]
    assert last["choices"][0] == {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}
    assert {event["object"] for event in (first, *pieces, last)} == {"chat.completion.chunk"}
    assert len({event["id"] for event in (first, *pieces, last)}) == 1


def test_a_named_conversation_goes_on_without_its_history(texts: Running) -> None:
    for user, reply in zip(USER, REPLIES, strict=True):
        status, found = chat(texts, user, conversation="tea-time")
        assert status == 200
        assert found["choices"][0]["message"]["content"] == reply
    assert found["usage"]["prompt_tokens"] < 20  # not the whole conversation


def test_a_system_message_is_computed_once(texts: Running) -> None:
    before = [{"role": "system", "content": SYSTEM}]
    cached = []
    for _ in range(2):
        _, found = chat(texts, USER[0], model="told", before=before)
        assert found["choices"][0]["message"]["content"] == REPLIES[0]
        cached.append(found["usage"]["prompt_tokens_details"]["cached_tokens"])
    assert cached[0] == 0
    assert cached[1] > 16


def test_a_prefix_outlives_the_server(tmp_path: Path) -> None:
    told = write_talker(tmp_path / "told", chat_templates.CHATML, SYSTEM)
    before = [{"role": "system", "content": SYSTEM}]
    for restored in (False, True):
        with running([told], state_dir=tmp_path / "states") as server:
            _, found = chat(server, USER[0], model="told", before=before)
        assert found["choices"][0]["message"]["content"] == REPLIES[0]
        assert (found["usage"]["prompt_tokens_details"]["cached_tokens"] > 16) is restored


def test_the_seed_repeats_a_text(texts: Running) -> None:
    found = [completion(texts, prompt="t", temperature=30, seed=seed, max_tokens=40)[1] for seed in (1, 1, 2)]
    first, again, other = (reply["choices"][0]["text"] for reply in found)
    assert first == again != other


@pytest.mark.parametrize(
    "option",
    [
        {"n": 2},
        {"logprobs": 5},
        {"best_of": 3},
        {"echo": True},
        {"suffix": "x"},
        {"frequency_penalty": 1},
        {"top_k": 3},
    ],
)
def test_an_option_that_is_not_there_is_refused_by_name(texts: Running, option: dict[str, Any]) -> None:
    status, found = completion(texts, prompt="t", **option)
    assert status == 400
    assert found["error"]["code"] == "unsupported_option"
    assert next(iter(option)) in found["error"]["message"]


def test_tools_are_refused_and_what_changes_nothing_is_not(texts: Running) -> None:
    status, found = chat(texts, USER[0], tools=[{"type": "function"}])
    assert (status, found["error"]["code"]) == (400, "unsupported_option")
    assert "tools" in found["error"]["message"]
    assert chat(texts, USER[0], n=1, tools=None, frequency_penalty=0, user="me", logprobs=False)[0] == 200


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{", 400, "malformed_json"),
        (b"[]", 400, "malformed_json"),
        ({}, 400, "no_model"),
        ({"model": "gpt"}, 404, "model_not_found"),
        ({"model": "reciter"}, 400, "bad_prompt"),
        ({"model": "reciter", "prompt": ""}, 400, "bad_prompt"),
        ({"model": "reciter", "prompt": ["a", "b"]}, 400, "bad_prompt"),
        ({"model": "reciter", "prompt": [999]}, 400, "input_error"),
        ({"model": "reciter", "prompt": "a", "max_tokens": 0}, 400, "bad_option"),
        ({"model": "reciter", "prompt": "a", "max_tokens": 10**7}, 400, "bad_option"),
        ({"model": "reciter", "prompt": "a", "temperature": -1}, 400, "bad_option"),
        ({"model": "reciter", "prompt": "a", "temperature": "hot"}, 400, "bad_option"),
        ({"model": "reciter", "prompt": "a", "top_p": 0}, 400, "bad_option"),
        ({"model": "reciter", "prompt": "a", "seed": 1.5}, 400, "bad_option"),
        ({"model": "reciter", "prompt": "a", "stop": [""]}, 400, "bad_option"),
        ({"model": "reciter", "prompt": "a", "stream": "yes"}, 400, "bad_option"),
        ({"model": "reciter", "prompt": "a", "conversation": "../x"}, 400, "bad_stream_name"),
    ],
)
def test_a_wrong_completion_is_an_error_by_name(texts: Running, body: Any, status: int, code: str) -> None:
    got, found = texts.request("POST", "/v1/completions", body)
    assert (got, found["error"]["code"]) == (status, code)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"messages": []}, "bad_messages"),
        ({"messages": [{"role": "robot", "content": "a"}]}, "bad_messages"),
        ({"messages": [{"role": "user", "content": 3}]}, "bad_messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "bad_messages"),
        ({"model": "reciter", "messages": [{"role": "user", "content": "a"}]}, "no_text"),
    ],
)
def test_a_wrong_chat_is_an_error_by_name(texts: Running, body: Any, code: str) -> None:
    status, found = texts.request("POST", "/v1/chat/completions", {"model": "talker", **body})
    assert (status, found["error"]["code"]) == (400, code)


def test_many_texts_at_once_need_slots(texts: Running) -> None:
    found: list[int] = []

    def ask() -> None:
        found.append(completion(texts, prompt="t", max_tokens=300)[0])

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(found) <= {200, 503}
    assert 200 in found
    assert completion(texts, prompt="t", max_tokens=3)[0] == 200


@pytest.mark.parametrize("streamed", [True, False])
def test_a_client_that_goes_away_ends_its_text(texts: Running, streamed: bool) -> None:
    body = json.dumps({"model": "reciter", "prompt": "t", "max_tokens": 10**6, "stream": streamed}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    with socket.create_connection(("127.0.0.1", texts.port)) as client:
        client.sendall(f"{head}\r\n\r\n".encode() + body)
        pool = texts.host.models["reciter"].hub.pool
        while not pool.stats.streams:
            time.sleep(0.01)
    deadline = time.monotonic() + 10
    while pool.stats.streams:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_other_addresses_and_bodies(texts: Running) -> None:
    assert texts.request("GET", "/healthz") == (200, {"status": "ok"})
    assert texts.request("GET", "/readyz") == (200, {"status": "ready"})
    assert texts.request("GET", "/v1/nothing")[1]["error"]["code"] == "not_found"
    status, found = texts.request("GET", "/v1/completions")
    assert (status, found["error"]["code"]) == (405, "wrong_method")
    status, found = texts.request("POST", "/v1/completions", b"x" * (5 << 20))
    assert (status, found["error"]["code"]) == (413, "too_large")
    headers = {"Content-Type": "text/plain"}
    assert texts.request("POST", "/v1/completions", b"{}", **headers)[0] == 415
    assert texts.request("POST", "/v1/completions", {}, Origin="http://evil.example")[0] == 403


def test_joules_are_counted_where_the_machine_has_sensors(
    reciter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgemem.serve.host._METER_S", 0.01)
    ina3221(tmp_path, "40", 1, {1: ("VDD_IN", 5000, 1000), 2: ("VDD_SOC", 5000, 200)})  # 5 W and 1 W
    started = time.monotonic()
    with running([reciter], root=tmp_path) as server:
        deadline = started + 10
        while 'covers="the whole module"' not in (text := server.request("GET", "/metrics")[1]):
            assert time.monotonic() < deadline
        found = {sensor: float(value) for sensor, value in re.findall(r'joules_total{.*sensor="(.*?)"} (.*)', text)}
        assert set(found) == {"VDD_IN", "VDD_SOC"}
        assert 0 < found["VDD_IN"] < 5 * (time.monotonic() - started)
    with running([reciter], root=tmp_path / "bare") as server:
        assert "joules_total{" not in server.request("GET", "/metrics")[1]


def test_metrics_and_the_page(texts: Running) -> None:
    completion(texts, prompt="t", max_tokens=3)
    status, text = texts.request("GET", "/metrics")
    assert status == 200
    assert 'edgemem_pool{figure="slots",model="reciter"} 3.0' in text
    assert "edgemem_first_token_seconds_count" in text
    assert 'edgemem_tokens_total{kind="generated"}' in text
    status, page = texts.request("GET", "/")
    assert status == 200
    assert "http://" not in page  # nothing comes from elsewhere
    assert "https://" not in page
    status, board = texts.request("GET", "/v1/status")
    assert board["models"]["talker"]["chat"] is True
    takes = board["models"]["reciter"]["takes"]
    assert takes == {"name": "tokens", "shape": [], "items": 1, "tokens": True, "sample_rate_hz": None}
