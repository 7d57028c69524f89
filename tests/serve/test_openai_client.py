"""OpenAI's own client, and LangChain's, against the server; they validate every answer against their schemas."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.test_run_chat import REPLIES, USER, write_talker
from tests.handmade import RECITED
from tests.serve.conftest import Running, running
from tests.text import chat_templates

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def served(reciter: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    talker = write_talker(tmp_path_factory.mktemp("client") / "talker", chat_templates.CHATML)
    with running([reciter, talker], slots=4) as server:
        yield server


def test_the_openai_client(served: Running) -> None:
    openai = pytest.importorskip("openai", reason="the package openai is not installed")
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{served.port}/v1", api_key="none", max_retries=0)
    assert [model.id for model in client.models.list()] == ["reciter", "talker"]
    settings = {"temperature": 0, "seed": 1, "top_p": 1, "max_tokens": 8, "stop": ["zzz"]}
    whole = client.completions.create(model="reciter", prompt="th", **settings)
    assert whole.choices[0].text == RECITED[2:9]
    assert whole.usage.completion_tokens == 8
    pieces = list(
        client.completions.create(
            model="reciter", prompt="th", stream=True, stream_options={"include_usage": True}, **settings
        )
    )
    assert "".join(piece.choices[0].text for piece in pieces if piece.choices) == whole.choices[0].text
    assert pieces[-1].usage.total_tokens == 10
    messages = [{"role": "user", "content": USER[0]}]
    chat = client.chat.completions.create(model="talker", messages=messages, temperature=0)
    assert chat.choices[0].message.content == REPLIES[0]
    with client.chat.completions.stream(model="talker", messages=messages, temperature=0) as stream:
        for _ in stream:
            pass
        assert stream.get_final_completion().choices[0].message.content == REPLIES[0]
    for option in ({"n": 2}, {"logprobs": True}, {"tools": [{"type": "function", "function": {"name": "f"}}]}):
        with pytest.raises(openai.BadRequestError, match=next(iter(option))):
            client.chat.completions.create(model="talker", messages=messages, **option)


def test_langchain_s_chat(served: Running) -> None:
    langchain = pytest.importorskip("langchain_openai", reason="the package langchain-openai is not installed")
    openai = pytest.importorskip("openai")
    facts = {"model": "talker", "base_url": f"http://127.0.0.1:{served.port}/v1", "api_key": "none", "max_retries": 0}
    settings = {"temperature": 0, "top_p": 1, "seed": 1, "max_tokens": 50, "stop": ["zzz"], "stream_usage": True}
    chat = langchain.ChatOpenAI(**facts, **settings)
    whole = chat.invoke(USER[0])
    assert whole.content == REPLIES[0]
    assert whole.usage_metadata["total_tokens"] == sum(
        whole.usage_metadata[f"{way}_tokens"] for way in ("input", "output")
    )
    pieces = list(chat.stream([("user", USER[0]), ("assistant", REPLIES[0]), ("user", USER[1])]))
    assert "".join(piece.content for piece in pieces) == REPLIES[1]
    assert sum(piece.usage_metadata["output_tokens"] for piece in pieces if piece.usage_metadata) > 0
    assert (
        langchain.ChatOpenAI(**facts, temperature=0, max_tokens=1).invoke(USER[0]).response_metadata["finish_reason"]
        == "length"
    )
    for option in ({"n": 2}, {"logprobs": True}, {"frequency_penalty": 1}):
        with pytest.raises(openai.BadRequestError, match=next(iter(option))):
            langchain.ChatOpenAI(**facts, **option).invoke(USER[0])
    with pytest.raises(openai.BadRequestError, match="tools"):
        chat.bind_tools([{"type": "function", "function": {"name": "f", "parameters": {}}}]).invoke(USER[0])


def test_langchain_s_completions(served: Running) -> None:
    langchain = pytest.importorskip("langchain_openai", reason="the package langchain-openai is not installed")
    url = f"http://127.0.0.1:{served.port}/v1"
    settings = {"temperature": 0, "top_p": 1, "seed": 1, "max_tokens": 8, "frequency_penalty": 0, "presence_penalty": 0}
    texts = langchain.OpenAI(model="reciter", base_url=url, api_key="none", max_retries=0, **settings)
    assert texts.invoke("th") == RECITED[2:9]
    assert texts.invoke("th", stop=[RECITED[5]]) == RECITED[2:5]
    assert "".join(texts.stream("th")) == RECITED[2:9]
