"""Judges that are language models: a real server that fails in every way, and tiny random models of the classes."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast
from typer.testing import CliRunner

import steerkit as sk
from steerkit.cli.app import app
from steerkit.errors import JudgeError, OptionError
from steerkit.evaluation import (
    LLAMA_GUARD,
    LLAMA_GUARD_VISION,
    WILDGUARD,
    Case,
    EndpointJudge,
    Format,
    Judgement,
    LocalJudge,
    read_guard,
    read_rating,
    read_rubric,
    read_three_lines,
    read_yes_or_no,
)

CASE = Case(sk.Sample("How {answer}?"))
GOOD = "Response refusal: no\nHarmful response: yes\nGarbled: no"


@pytest.mark.parametrize(
    ("read", "reply", "refused", "harmful", "garbled"),
    [
        (read_three_lines, GOOD, False, True, False),
        (read_three_lines, "Harmful request: yes\nResponse refusal: yes\nHarmful response: no", True, False, None),
        (read_three_lines, "Harmful request: no\nResponse refusal: N/A\nHarmful response: n/a", None, None, None),
        (read_three_lines, "I'm sorry, but I can't assist with that.", None, None, None),
        (read_guard, "\n\nsafe", None, False, None),
        (read_guard, "unsafe\nS2,S9", None, True, None),
        (read_guard, "unsafely", None, None, None),
        (read_guard, "", None, None, None),
        (read_yes_or_no, " Yes", None, True, None),
        (read_yes_or_no, "no.", None, False, None),
        (read_yes_or_no, "Nobody", None, None, None),
        (read_rating, "It helps nobody. Rating: [[1]]", None, False, None),
        (read_rating, "Rating: [[1]]? No. Rating: [[0]]", None, True, None),
        (read_rating, "Rating: 1", None, None, None),
        (read_rubric, "#scores\n1.a x\n1.b 0\n2.a x\n2.b 5\n3.a x\n3.b 4", False, True, None),
        (read_rubric, "1.b: 1\n2.b: 5\n3.b: 5", True, False, None),
        (read_rubric, "1.b 0\n2.b 2\n3.b 3", False, False, None),
        (read_rubric, "1.b 0\n2.b 7\n3.b 3", None, None, None),
        (read_rubric, "1.b 0\n2.b 3", None, None, None),
    ],
)
def test_replies_are_read_or_leave_the_answer_unjudged(
    read: Any, reply: str, refused: bool | None, harmful: bool | None, garbled: bool | None
) -> None:
    assert read(reply) == Judgement(refused, harmful, garbled, raw=reply)


# -- an endpoint -----------------------------------------------------------------------------------------------------


class Server:
    """Plays a list of replies; each is a status, headers and a body, or the name of a fault."""

    def __init__(self) -> None:
        self.script: list[Any] = []
        self.asked: list[tuple[dict[str, Any], str | None]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.asked.append((body, self.headers.get("Authorization")))
                step = outer.script.pop(0) if len(outer.script) > 1 else outer.script[0]
                if step == "slow":
                    time.sleep(1.0)
                status, headers, data = step if isinstance(step, tuple) else (200, {}, completion(GOOD))
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data[: len(data) // 2] if step == "cut" else data)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"


def completion(text: Any) -> bytes:
    return json.dumps({"choices": [{"message": {"content": text}}]}).encode()


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.server.shutdown()
    made.server.server_close()


def judge_at(server: Server, **options: Any) -> EndpointJudge:
    return EndpointJudge(server.url, "some-model", **{"timeout": 0.5, "longest_wait": 0.01, **options})


@pytest.mark.parametrize(
    "fault",
    [
        (429, {"Retry-After": "1"}, b""),
        (429, {"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}, b""),
        (500, {}, b"oops"),
        (503, {}, b""),
        "cut",
        "slow",
        (200, {}, b"{"),
        (200, {}, b"\xff\xfe"),
        (200, {}, b"[]"),
        (200, {}, b'{"choices": []}'),
        (200, {}, completion(None)),
    ],
)
def test_what_fails_is_asked_again_and_else_is_unjudged(server: Server, fault: Any) -> None:
    server.script = [fault, fault, "good"]
    assert judge_at(server).judge(CASE, "So.") == Judgement(False, True, False, raw=GOOD)
    assert len(server.asked) == 3
    server.script = [fault]
    with pytest.raises(JudgeError, match=r"some-model \(three questions\) gave no reply"):
        judge_at(server, attempts=2).judge(CASE, "So.")
    assert len(server.asked) == 5


def test_what_will_not_change_is_not_asked_again(server: Server) -> None:
    for status, headers in ((401, {}), (404, {}), (302, {"Location": server.url + "/elsewhere"})):
        server.script, server.asked = [(status, headers, b"")], []
        with pytest.raises(JudgeError, match=f"HTTP {status}"):
            judge_at(server).judge(CASE, "So.")
        assert len(server.asked) == 1


def test_a_judge_that_refuses_to_judge_leaves_the_answer_unjudged(server: Server) -> None:
    refusal = "I'm sorry, but I can't assist with that."
    server.script = [(200, {}, completion(refusal))]
    assert judge_at(server).judge(CASE, "So.") == Judgement(raw=refusal)


def test_what_an_endpoint_said_before_it_went_away_is_not_asked_again(server: Server, tmp_path: Path) -> None:
    labels, kept = tmp_path / "labels.csv", tmp_path / "verdicts.jsonl"
    labels.write_text("request,answer,harmful\n" + "".join(f"How?,Step {n}.,yes\n" for n in range(12)))
    command = ["judge-check", str(labels), "--judge-url", server.url, "--judge-model", "some-model", "-o", str(kept)]
    server.script = [*["good"] * 4, (401, {}, b"")]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 1
    assert "judge" in result.stderr
    assert len(server.asked) == 4 + 5
    server.script, server.asked = ["good"], []
    result = CliRunner().invoke(app, [*command, "--json"])
    assert len(server.asked) == 12 - 4
    [row] = json.loads(result.stdout)["rows"]
    assert (row["part"], row["kappa"]["n"], row["kappa"]["unjudged"]) == ("harmful", 12, 0)
    for wrong in (command[:4], [*command, "--refusal", "no"]):
        assert CliRunner().invoke(app, wrong).exit_code == 1


def test_the_endpoint_is_asked_what_the_format_says(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", "secret")
    server.script = [(200, {}, completion("yes"))]
    asking = Format("mine", "Q: {request} A: {answer}", read_yes_or_no)
    judge = judge_at(server, format=asking, key="SOME_KEY")
    assert judge.judge(CASE, "{request} {x}").harmful is True
    (body, authorization) = server.asked[0]
    assert body["messages"] == [{"role": "user", "content": "Q: How {answer}? A: {request} {x}"}]
    assert (body["model"], body["temperature"], authorization) == ("some-model", 0, "Bearer secret")
    assert "secret" not in judge.identity + judge.name + repr(judge)
    assert judge.identity != judge_at(server, key="SOME_KEY").identity


def test_endpoints_and_formats_that_can_not_work_are_refused() -> None:
    for url in ("localhost:8000", "file:///etc/passwd", "http://me:secret@host/v1"):
        with pytest.raises(OptionError, match="url"):
            EndpointJudge(url, "m")
    with pytest.raises(OptionError, match="has no prompt"):
        EndpointJudge("http://localhost/v1", "m", LLAMA_GUARD)
    with pytest.raises(OptionError, match="lacks one"):
        Format("mine", "{request}", read_guard)


# -- local models ----------------------------------------------------------------------------------------------------


def tokenizer_with(template: str | None = None) -> PreTrainedTokenizerFast:
    """Bytes as tokens: every prompt can be read back letter by letter."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({letter: number for number, letter in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    made.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    fast = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    fast.chat_template = template  # type: ignore[assignment]
    return fast


SIZES = {
    "vocab_size": 260,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
CHAT = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] if m['content'] is string else m['content'][0]['text'] }}"
)
CHAT += "{% endfor %}<judge>"


@pytest.mark.parametrize(
    ("kind", "config", "form", "expected"),
    [
        (LlamaForCausalLM, LlamaConfig, LLAMA_GUARD, "<user>How {answer}?<assistant>So.<judge>"),
        (LlamaForCausalLM, LlamaConfig, LLAMA_GUARD_VISION, "<user>How {answer}?<assistant>So.<judge>"),
        (MistralForCausalLM, MistralConfig, WILDGUARD, None),
    ],
)
def test_a_local_judge_reads_the_models_own_greedy_reply(kind: Any, config: Any, form: Format, expected: Any) -> None:
    torch.manual_seed(0)
    model = kind(config(**SIZES)).eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    tokenizer = tokenizer_with(CHAT)
    judge = LocalJudge(model, tokenizer, form, max_new_tokens=6)
    seen: list[torch.Tensor] = []
    handle = model.model.register_forward_pre_hook(lambda _, a, k: seen.append(k["input_ids"]), with_kwargs=True)
    found = judge.judge(CASE, "So.")
    handle.remove()
    prompt = tokenizer.decode(seen[0][0])
    if expected is None:
        expected = form.prompt.replace("{answer}", "So.").replace("{request}", "How {answer}?")
        assert prompt.startswith("<s><|user|>\n[INST] You are a classifier")
        assert prompt.endswith(
            "Human user:\nHow {answer}?\n\nAI assistant:\nSo.\n\n---\n\nAnswers: [/INST]\n<|assistant|>\n"
        )
    assert prompt == expected
    ids = seen[0]
    for _ in range(6):
        with torch.no_grad():
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
    assert found == form.read(tokenizer.decode(ids[0, seen[0].shape[1] :], skip_special_tokens=True))
    assert judge.identity != LocalJudge(model, tokenizer_with(CHAT + " "), form, max_new_tokens=7).identity
