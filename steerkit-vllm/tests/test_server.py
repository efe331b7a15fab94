"""The HTTP server, with the client that people use: mixed requests at once, malformed ones, packs added, death."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import random
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
from lab import TOKENS
from serving import KEY, PACKS, Server, ServerError, admin, post, unless_gone, wish


@pytest.fixture(scope="module")
def server(lab, tmp_path_factory):
    server = Server(lab, tmp_path_factory.mktemp("server"))
    yield server
    server.stop()


RECIPES = [
    ("cmrm", 0.5),
    ("cmrm", 2.0),
    ("last", 1.0),
    ("image", 4.0),
    ("relative", 4.0),
    ("gate_token", 1.0),
    ("sample", 1.0),
]


def test_a_client_sees_what_is_served(server):
    found = httpx.get(f"{server.address}/steerkit").json()
    assert found["steering"]
    assert {pack["name"] for pack in found["packs"]} == set(PACKS)
    tested = {check["name"]: check for check in found["self_test"]}
    chat = tested.pop("chat")  # the demo's template leaves the first token to the tokenizer
    assert chat["status"] == "warn"
    assert "lack [1] at their beginning" in chat["message"]
    assert tested.keys() == {"runner", "strength 0", "large dose", "token count"}
    assert all(check["status"] == "pass" for check in tested.values())
    (cmrm,) = [pack for pack in found["packs"] if pack["name"] == "cmrm"]
    fingerprint = next(check for check in cmrm["checks"] if check["name"] == "fingerprint")
    assert fingerprint["status"] == "pass"


def test_requests_of_all_sorts_at_once(server, lab):
    jobs = [(at, recipe) for at in range(len(lab.samples)) for recipe in (None, *RECIPES)][:96]

    def one(job: Any) -> bool:
        at, recipe = job
        return server.tokens(at, None if recipe is None else wish(*recipe)) == lab.wanted(*(recipe or (None,)))[at]

    with ThreadPoolExecutor(32) as pool:
        found = list(pool.map(one, jobs))
    assert [job for job, fine in zip(jobs, found, strict=True) if not fine] == []


def test_the_receipt_comes_with_the_answer(server):
    answer = server.chat(0, wish("last", 1.0, steerkit_receipt=1))
    found = answer.model_extra["kv_transfer_params"]["steerkit"]
    assert found["sites"][0]["prompt_tokens"] == 1
    assert found["sites"][0]["generated_tokens"] == TOKENS - 1
    changes = found["sites"][0]["relative_change"]
    assert list(changes) == [str(layer) for layer in range(8)]
    assert all(0.05 < each < 5 for each in changes.values())


@pytest.mark.parametrize(
    ("asked", "more", "said"),
    [
        ({"steerkit_pack": "cmmr"}, {}, "Did you mean 'cmrm'"),
        ({"steerkit_pack": "cmrm", "steerkit_strength": "abc"}, {}, "'abc'"),
        ({"steerkit_pack": "cmrm", "steerkit_strenght": 2}, {}, "steerkit_strenght"),
        ({"steer": "cmrm"}, {}, "'steer'"),
        ({"steerkit": "cmrm"}, {}, "'steerkit'"),
        ({"steerkit_pack": ["cmrm", "last"], "steerkit_strength": [1.0]}, {}, "1 numbers for 2 packs"),
        ({"steerkit_pack": "last"}, {"use_beam_search": True, "n": 2}, "beam search"),
        (None, {"steerkit_pack": "last"}, "has 'steerkit_pack', where vLLM ignores it"),
        (None, {"extra_body": {"vllm_xargs": {}, "steerkit_pack": "last"}}, "in extra_body"),
    ],
)
def test_malformed_requests_are_http_400_with_our_text(server, lab, asked, more, said):
    with pytest.raises(openai.BadRequestError) as caught:
        server.chat(1, asked, **more)
    assert said in str(caught.value)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"])
def test_a_stream_of_a_malformed_request_is_http_400(server, path):
    body = {"prompt": "hello", "input": "hello", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
    for asked in ({"steerkit_pack": "cmmr"}, {"steerkit_pack": "last", "steerkit_strength": "much"}):
        found = post(server, path, **body, stream=True, vllm_xargs=asked)
        assert found.status_code == 400
        assert "steerkit_strength is 'much'" in found.text or "Did you mean 'cmrm'" in found.text


@pytest.mark.parametrize(
    "body",
    [
        rb'{"model": "m", "prompt": "x", "\u0073teerkit_pack": "last"}',
        rb'{"model": "m", "prompt": "x", "extra_body": {"st\u0065\u0065rkit_pack": "last"}}',
        b'{"model": "m", "prompt": "x", "vllm_xargs": {"steerkit_pack": "last"}, "vllm_xargs": {}}',
        b'{"model": "m", "prompt": "x", "vllm_xargs": {"steerkit_pack": "last", "steerkit_pack": "image"}}',
        '{"model": "m", "prompt": "x", "steerkit_pack": "last"}'.encode("utf-16"),
        '{"model": "m", "prompt": "x", "steerkit_pack": "last"}'.encode("utf-32-le"),
        b'\xef\xbb\xbf{"model": "m", "prompt": "x", "steerkit_pack": "last"}',
    ],
)
def test_however_a_body_is_written_its_keys_are_not_dropped(server, body):
    headers = {"content-type": "application/json"}
    found = httpx.post(f"{server.address}/v1/completions", content=body, headers=headers, timeout=60)
    assert found.status_code == 400
    assert "where vLLM ignores it" in found.text or "twice" in found.text


def test_clients_that_go_away_leave_the_answers_of_others_right(server, lab):
    def leave(number: int) -> None:
        asked = wish(("last", "sample", "gate_token")[number % 3], 1.0, steerkit_receipt=1)
        messages = [{"role": "user", "content": lab.samples[number % 16].text}]
        body = {"model": "m", "messages": messages, "max_tokens": 100, "ignore_eos": True, "vllm_xargs": asked}
        with httpx.stream("POST", f"{server.address}/v1/chat/completions", json=body | {"stream": True}) as stream:
            for _ in zip(range(number % 7), stream.iter_lines(), strict=False):
                pass

    with ThreadPoolExecutor(24) as pool:
        gone = [pool.submit(leave, number) for number in range(48)]
        found = list(pool.map(lambda at: server.tokens(at, wish("sample", 1.0)), range(16)))
        assert [each.exception() for each in gone] == [None] * 48
    assert found == lab.wanted("sample")


def test_every_prompt_of_a_completion_is_steered(server, lab):
    texts = [at for at, sample in enumerate(lab.samples) if not sample.images][:3]
    prompts = [lab.prompt(at)["prompt"] for at in texts]
    options = {"max_tokens": TOKENS, "temperature": 0, "ignore_eos": True, "return_token_ids": True}
    for name, strength in (("last", 1.0), ("cmrm", 2.0)):
        asked = {"vllm_xargs": wish(name, strength)}
        found = post(server, "/v1/completions", prompt=prompts, **options, **asked).json()["choices"]
        assert [each["token_ids"] for each in found] == [lab.wanted(name, strength)[at] for at in texts]


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("/v1/chat/completions/batch", "vllm_xargs"),
        ("/cohere/v2/chat", "vllm_xargs"),
        ("/v1/systemone", "vllm_xargs"),
        ("/v1/messages", "extra_body"),
        ("/inference/v1/generate", "sampling_params"),
    ],
)
def test_where_vllm_ignores_keys_they_are_refused(server, path, place):
    found = post(server, path, messages=[{"role": "user", "content": "hello"}], **{place: {"steerkit_pack": "last"}})
    assert found.status_code == 400
    assert f"the request to {path} has 'steerkit_pack' in {place}" in found.json()["error"]["message"]


def test_every_way_in_that_takes_keys_steers(server, lab):
    """Texts of other endpoints and of a stream, beside the chat's, whose tokens are compared with transformers."""
    asked = {"vllm_xargs": wish("last", 1.0)}
    options = {"max_tokens": TOKENS, "temperature": 0}

    def said(sample: Any, **more: Any) -> str:
        messages = [{"role": "user", "content": sample.text}]
        found = post(server, "/v1/chat/completions", messages=messages, **options, **more)
        return found.json()["choices"][0]["message"]["content"]

    def differs(sample: Any, **more: Any) -> bool:
        return said(sample, **asked, **more) not in ("", said(sample, **more))

    first = {"add_special_tokens": True}  # responses get the token that begins texts, chats do not
    texts = [sample for sample in lab.samples if not sample.images]
    sample = next(each for each in texts if differs(each) and differs(each, **first))
    steered = said(sample, **asked)
    chat = {"messages": [{"role": "user", "content": sample.text}], **options, **asked}
    message = post(server, "/v1/messages", **chat).json()["content"]
    assert [part["text"] for part in message if part["type"] == "text"] == [steered]
    response = post(server, "/v1/responses", input=sample.text, max_output_tokens=TOKENS, temperature=0, **asked).json()
    texts = [part["text"] for each in response["output"] for part in each.get("content") or ()]
    assert texts == [said(sample, **asked, **first)]
    with httpx.stream(
        "POST", f"{server.address}/v1/chat/completions", json={"model": "m", "stream": True, **chat}, timeout=600
    ) as stream:
        chunks = [json.loads(line[6:]) for line in stream.iter_lines() if line.startswith("data: {")]
    assert "".join(each["choices"][0]["delta"].get("content") or "" for each in chunks if each["choices"]) == steered
    greedy = {**chat, "temperature": 1.0, "top_k": 1, "n": 3}  # at temperature 0, vLLM answers once
    several = post(server, "/v1/chat/completions", **greedy).json()["choices"]
    assert [each["message"]["content"] for each in several] == [steered] * 3


WRONG: dict[str, list[Any]] = {
    "steerkit_pack": [
        "x",
        "",
        -1,
        0.5,
        [],
        ["last"] * 40,
        ["last", "nope"],
        [1, 2],
        "LAST",
        " last",
        "last\0",
        "é" * 300,
    ],
    "steerkit_strength": ["x", "", "1.0", "nan", 1e300, -1e7, [], [1, 2], ["x"], 10**18, "inf", 1e6 + 1],
    "steerkit_receipt": ["x", "", -1, 2, 0.5, [], [1], "1", "true", 1e300, 10**18, "yes"],
    "steerkit_": [1],
    "Steerkit_pack": ["last"],
    " steerkit_pack": ["last"],
    "steering": ["last"],
}
"""By key, values of which each makes a request malformed, whatever stands beside it."""


def malformed(count: int) -> list[dict[str, Any]]:
    """Requests that ask for a pack that is there, but for one entry or several that are wrong."""
    draw = random.Random(0)
    found = []
    for _ in range(count):
        asked: dict[str, Any] = {"steerkit_pack": "last"} if draw.random() < 0.8 else {}
        for key in draw.sample(sorted(WRONG), draw.choice((1, 1, 2))):
            asked[key] = draw.choice(WRONG[key])
        found.append(asked)
    return found


def test_ten_thousand_malformed_requests_leave_the_server_alive(server, lab):
    body = {"model": "m", "prompt": "USER: hello\nASSISTANT:", "max_tokens": 1}

    def taken(jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Those that are not refused, one after another on one connection; httpx takes as long as the server."""
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=600)
        found = []
        for asked in jobs:
            sent = json.dumps({**body, "vllm_xargs": asked})
            connection.request("POST", "/v1/completions", sent, {"content-type": "application/json"})
            answer = connection.getresponse()
            answer.read()
            if answer.status != 400:
                found.append(asked)
        return found

    fine = {"steerkit_pack": "last"}
    assert taken([fine]) == [fine], "well formed, it would be refused as well"
    jobs = malformed(10_000)
    with ThreadPoolExecutor(16) as pool:
        assert [asked for found in pool.map(taken, [jobs[at::16] for at in range(16)]) for asked in found] == []
    assert server.tokens(1) == lab.wanted(None)[1]
    assert server.tokens(1, wish("last", 1.0)) == lab.wanted("last")[1]


def test_packs_come_and_go_while_it_runs(server, lab):
    later = {"name": "later", "ref": lab.packs["all"]}
    for key in (None, "wrong", KEY[:-1]):
        assert admin(server, "POST", key=key, **later).status_code == 403
        assert admin(server, "DELETE", "last", key=key).status_code == 403
    free = httpx.get(f"{server.address}/steerkit").json()["free_rows"]
    with ThreadPoolExecutor(12) as pool:
        under_way = [pool.submit(server.tokens, at, wish("last", 1.0)) for at in range(12)]
        assert admin(server, "POST", **later).status_code == 200
        assert [each.result() for each in under_way] == lab.wanted("last")[:12]
    assert server.tokens(3, wish("later", 4.0)) == lab.wanted("all", 4.0)[3]
    assert server.tokens(3, wish("later", 1.0)) == lab.wanted("all", 1.0)[3]
    again = admin(server, "POST", name="later", ref=lab.packs["last"])
    assert again.status_code == 400
    assert "already" in again.json()["error"]["message"]
    other = admin(server, "POST", name="mlp", ref=lab.packs["mlp"])
    assert other.status_code == 400
    assert "mlp_out" in other.json()["error"]["message"]
    # another pack of the same name: requests under way end as they began, those that follow are steered by the new one
    with ThreadPoolExecutor(12) as pool:
        under_way = [pool.submit(unless_gone, server, at, wish("later", 4.0)) for at in range(12)]
        idle = 'vllm:num_requests_running{engine="0",model_name="m"} 0.0'
        while idle in httpx.get(f"{server.address}/metrics").text:
            time.sleep(0.01)
        taken = admin(server, "DELETE", "later")
        assert taken.status_code == 200
        assert "later" in taken.json()["withdrawn"]
        assert admin(server, "DELETE", "later").status_code == 400
        with pytest.raises(openai.BadRequestError, match="there is no pack 'later'"):
            server.tokens(3, wish("later", 4.0))
        assert admin(server, "POST", name="later", ref=lab.packs["by_layer"]).status_code == 200
        after = [server.tokens(at, wish("later", 4.0)) for at in range(4)]
        answers = [each.result() for each in under_way]
    assert sum(each is not None for each in answers) >= 6, "few were under way"
    assert [each in (None, lab.wanted("all", 4.0)[at]) for at, each in enumerate(answers)] == [True] * 12
    assert after == lab.wanted("by_layer", 4.0)[:4]
    # what is taken out makes room, however often
    assert admin(server, "DELETE", "later").status_code == 200
    check_given_back(server, free)


def test_a_pack_is_replaced_while_requests_name_it(server, lab):
    kinds = ("all", "sample", "by_layer")  # one is measured on each prompt
    wanted = {kind: lab.wanted(kind) for kind in kinds}
    free = httpx.get(f"{server.address}/steerkit").json()["free_rows"]
    for wrong in ({}, {"ref": 1}, {"ref": lab.packs["all"], "strength": 1}, {"ref": "/nowhere"}):
        assert admin(server, "PUT", "turn", **wrong).status_code == 400
    deep = {"content": b"[" * 100_000, "headers": {"Authorization": f"Bearer {KEY}"}}
    assert httpx.put(f"{server.address}/steerkit/packs/turn", **deep).status_code == 400
    assert admin(server, "PUT", "turn", key="wrong", ref=lab.packs["all"]).status_code == 403
    assert admin(server, "PUT", "turn", ref=lab.packs["all"]).status_code == 200
    ends = threading.Event()

    def asking(worker: int) -> list[tuple[int, list[int]]]:
        found = []
        while not ends.is_set():
            at = (worker + 5 * len(found)) % len(lab.samples)
            found.append((at, server.tokens(at, wish("turn", 1.0))))  # an error is one of this test
        return found

    with ThreadPoolExecutor(12) as pool:
        workers = [pool.submit(asking, worker) for worker in range(12)]
        try:
            for kind in kinds[1:] + kinds:
                assert admin(server, "PUT", "turn", ref=lab.packs[kind]).status_code == 200
                assert [server.tokens(at, wish("turn", 1.0)) for at in (0, 3)] == [wanted[kind][at] for at in (0, 3)]
            assert admin(server, "PUT", "turn", ref=lab.packs["mlp"]).status_code == 400  # no room for its site
        finally:
            ends.set()
        answers = [answer for worker in workers for answer in worker.result()]
    assert len(answers) > 24
    assert [at for at, tokens in answers if tokens not in [wanted[kind][at] for kind in kinds]] == []
    for kind in kinds:
        assert any(
            [tokens == wanted[other][at] for other in kinds] == [other == kind for other in kinds]
            for at, tokens in answers
        )
    assert server.tokens(3, wish("turn", 1.0)) == wanted["by_layer"][3], "what was refused replaced it"
    assert admin(server, "DELETE", "turn").status_code == 200
    check_given_back(server, free)


def check_given_back(server, free):
    for _ in range(60):
        if httpx.get(f"{server.address}/steerkit").json()["free_rows"] == free:
            return
        time.sleep(0.5)
    pytest.fail("rows are not given back")


def test_a_dead_worker_ends_the_server(server, lab):
    """The last one of its module's server; the next test starts another."""
    family = psutil.Process(server.process.pid).children(recursive=True)
    worker = max(family, key=lambda each: each.memory_info().rss)
    os.kill(worker.pid, signal.SIGKILL)
    for _ in range(60):
        try:
            assert server.tokens(1, wish("last", 1.0)) == lab.wanted("last")[1], "an unsteered answer"
        except openai.OpenAIError:
            break
        time.sleep(1)
    else:
        pytest.fail("the server goes on answering without its worker")
    assert server.process.wait(120) is not None


def test_what_is_revoked_is_not_served(lab, tmp_path):
    trust, packs = tmp_path / "trust.toml", ("cmrm", "last")
    digests = {name: hashlib.sha256(Path(lab.packs[name]).read_bytes()).hexdigest() for name in lab.packs}

    def revoke(*names: str) -> None:
        entries = (f'[[revoked.packs]]\nsha256 = "{digests[name]}"\nreason = "it harms"\n' for name in names)
        trust.write_text("".join(entries))

    revoke("last")
    with pytest.raises(ServerError, match="it harms"):
        Server(lab, tmp_path, packs, "strict", STEERKIT_TRUST=str(trust))
    revoke("image")
    server = Server(lab, tmp_path, packs, "strict", {"recheck": 1}, STEERKIT_TRUST=str(trust))
    try:
        assert server.tokens(1, wish("last", 1.0)) == lab.wanted("last")[1]
        refused = admin(server, "POST", name="image", ref=lab.packs["image"])
        assert refused.status_code == 400
        assert "it harms" in refused.json()["error"]["message"]
        with pytest.raises(openai.BadRequestError, match="larger than the hidden state"):
            server.tokens(1, wish("last", 1e4))  # out of proportion
        revoke("image", "last")
        for _ in range(60):
            tokens = unless_gone(server, 1, wish("last", 1.0))
            if tokens is None:
                break
            assert tokens == lab.wanted("last")[1], "an unsteered answer"
            time.sleep(0.5)
        else:
            pytest.fail("what was revoked is served")
        assert "it harms" in httpx.get(f"{server.address}/steerkit").json()["withdrawn"]["last"]
        with pytest.raises(openai.BadRequestError, match="there is no pack 'last'"):
            server.tokens(1, wish("last", 1.0))
        assert server.tokens(1, wish("cmrm", 1.0)) == lab.wanted("cmrm")[1]
        trust.write_text("require_signature = true\n")
        refused = admin(server, "POST", name="image", ref=lab.packs["image"])
        assert refused.status_code == 400
        assert "requires a signature" in refused.json()["error"]["message"]
    finally:
        server.stop()
