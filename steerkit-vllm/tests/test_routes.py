"""What of a request is refused before vLLM sees it, and what the command passes on to vLLM. No engine."""

from __future__ import annotations

import asyncio
import json

import pytest

from steerkit.cli.serve import _settings
from steerkit.errors import OptionError, SteerKitError
from steerkit_vllm.routes import astray, batched, parsed


@pytest.mark.parametrize(
    ("path", "body", "fine"),
    [
        ("/v1/chat/completions", {"vllm_xargs": {"steerkit_pack": "a"}}, True),
        ("/behind/a/proxy/v1/completions", {"vllm_xargs": {"steerkit_pack": "a"}}, True),
        ("/v1/chat/completions", {"messages": [{"content": "steerkit_pack"}], "tools": [{"steer": {}}]}, True),
        ("/v1/embeddings", {"input": "steer"}, True),
        ("/v1/completions", ["steerkit_pack"], True),
        ("/v1/embeddings", {"input": "a", "vllm_xargs": {"steerkit_pack": "a"}}, False),
        ("/tokenize", {"prompt": "a", "steerkit_pack": "a"}, False),
        ("/v1/completions", {"vllm_xargs": {"other": 1}, "SteerKit_strength": 1}, False),
        ("/v1/completions", {"extra_body": {"steerkit_pack": "a"}}, False),
        ("/v1/chat/completions/batch", {"vllm_xargs": {"steerkit_pack": "a"}}, False),
        ("/v1/completions", {"extra_body": {"vllm_xargs": {"steerkit_pack": "a"}}}, False),
        ("/v1/completions", {"vllm_xargs": {"extra_args": {"steerkit_pack": "a"}}}, False),
        ("/v1/chat/completions", {"chat_template_kwargs": {"steerkit_pack": "a"}}, False),
        ("/v1/chat/completions", {"metadata": {"steerkit_strength": 1}}, False),
        ("/v1/chat/completions", {"metadata": {"steering": "yes"}, "chat_template_kwargs": {"steer": 1}}, True),
        ("/v1/chat/completions", {"vllm_xargs": {"other_kit_pack": 1}}, True),
    ],
)
def test_keys_go_where_vllm_reads_them(path, body, fine):
    assert (astray(path, parsed(json.dumps(body).encode())) is None) == fine


def test_a_key_that_comes_twice_is_refused():
    with pytest.raises(SteerKitError, match="'vllm_xargs' twice"):
        parsed(b'{"vllm_xargs": {"steerkit_pack": "last"}, "vllm_xargs": {}}')


def test_what_is_no_json_is_left_to_vllm():
    assert parsed(b'{"steer') == parsed(b'["steer"]') == {}


def test_options_for_vllm_leave_the_packs_of_the_command():
    given = ['--additional-config={"other": 1, "steerkit": {"spare": 3, "packs": {"a": "x", "b": "y"}}}', "--seed=1"]
    settings, options = _settings({"a": "z"}, "warn", given)
    assert settings == {"other": 1, "steerkit": {"policy": "warn", "spare": 3, "packs": {"a": "z", "b": "y"}}}
    assert options == ["--seed=1"]
    assert _settings({"a": "z"}, "off", ["--seed=1"])[0] == {"steerkit": {"packs": {"a": "z"}, "policy": "off"}}
    for wrong in ("--additional-config={", "--additional_config=[1]", "--additional-config.steerkit.spare=3"):
        with pytest.raises(OptionError, match="additional.config"):
            _settings({"a": "z"}, "strict", [wrong])


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"url": "/v1/chat/completions", "body": {"vllm_xargs": {"steerkit_pack": "a"}}}', None),
        ('{"url": "/v1/chat/completions", "body": {"messages": [{"content": "steer\u2028it"}]}}', None),
        ('{"url": "/v1/chat/completions", "body": {"steerkit_pack": "a"}}', "line 2 of file: the request to /v1/chat"),
        ('{"url": "/v1/chat/completions", "body": {"a": "\u2028", "steerkit_pack": "a"}}', "line 2 of file"),
        ('{"url": "/v1/embeddings", "body": {"vllm_xargs": {"steerkit_pack": "a"}}}', "to /v1/embeddings"),
        ('{"url": "/v1/chat/completions", "body": {"vllm_xargs": {"steerkit_pack": "a"}, "vllm_xargs": {}}}', "twice"),
    ],
)
def test_a_file_of_requests_is_refused_before_it_is_answered(line, said):
    async def read(path):
        return f'{{"url": "/v1/chat/completions", "body": {{}}}}\n{line}\n'

    if said is None:
        assert line in asyncio.run(batched(read)("file"))
    else:
        with pytest.raises(OptionError, match=said):
            asyncio.run(batched(read)("file"))
