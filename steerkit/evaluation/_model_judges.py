"""Judges that are language models: on this machine, or behind an OpenAI-compatible endpoint."""

from __future__ import annotations

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import torch

from steerkit._internal.validation import expect, expect_whole
from steerkit._text import described, quoted
from steerkit.errors import JudgeError, OptionError
from steerkit.evaluation._cases import Case
from steerkit.evaluation._formats import PLAIN, Format
from steerkit.evaluation._judges import Judgement, digest_of
from steerkit.models import unshared

LARGEST = 2**22
"""Bytes of a reply that are read."""

_AGAIN = (408, 409, 425, 429, 500, 502, 503, 504)


@dataclass(frozen=True, eq=False)
class LocalJudge:
    """A guard or a classifier that transformers has loaded: one short greedy answer for each answer.

    Attributes:
        model: The model.
        tokenizer: Its tokenizer, or its processor.
        format: What it is asked.
        max_new_tokens: Length of its reply.
    """

    model: Any
    tokenizer: Any
    format: Format
    max_new_tokens: int = 32

    @property
    def name(self) -> str:
        """The name of the format and of the model."""
        return f"{self.format.name} ({self.model.config.name_or_path or type(self.model).__name__})"

    @property
    def identity(self) -> str:
        """A digest of the model's name, of its chat template and of the format."""
        template = "" if self.format.prompt else getattr(self.tokenizer, "chat_template", None)
        return digest_of(self.name, template, self.format.identity, self.max_new_tokens)

    def judge(self, case: Case, answer: str) -> Judgement:
        """What its reply says."""
        inputs = self._inputs(case, answer).to(self.model.device)
        with torch.no_grad():
            ids = self.model.generate(**inputs, max_new_tokens=self.max_new_tokens, do_sample=False)
        tokenizer = getattr(self.tokenizer, "tokenizer", self.tokenizer)
        return self.format.read(tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))

    def _inputs(self, case: Case, answer: str) -> Any:
        tokenizer = unshared(self.tokenizer)
        if self.format.prompt:  # the published prompts write their special tokens themselves
            return tokenizer(self.format.asked(case, answer), add_special_tokens=False, return_tensors="pt")
        turns = [("user", case.request), ("assistant", answer)]
        chat = [
            {"role": role, "content": [{"type": "text", "text": text}] if self.format.parts else text}
            for role, text in turns
        ]
        return tokenizer.apply_chat_template(chat, tokenize=True, return_dict=True, return_tensors="pt")


@dataclass(frozen=True)
class EndpointJudge:
    """A model behind an OpenAI-compatible endpoint, asked greedily.

    What it answers with 429 or a fault of its own, or cuts off, is asked again, after the time that it names.

    Attributes:
        url: The endpoint, as `http://localhost:8000/v1`.
        model: The model's name there.
        format: What it is asked.
        key: The name of the environment variable that holds the key; it is never kept.
        attempts: How often one answer is asked about.
        timeout: Seconds to wait for a reply.
        longest_wait: The most seconds between two attempts.
    """

    url: str
    model: str
    format: Format = PLAIN
    key: str = "OPENAI_API_KEY"
    attempts: int = 4
    timeout: float = 60.0
    longest_wait: float = 60.0

    def __post_init__(self) -> None:
        expect(Format, "a sk.evaluation.Format", format=self.format)
        expect_whole(attempts=self.attempts)
        if urlsplit(self.url).scheme not in ("http", "https") or urlsplit(self.url).username:
            raise OptionError(f"the url is {quoted(self.url)}", expected="http:// or https://, without a password")
        if not self.format.prompt:
            raise OptionError(f"{self.format.name!r} has no prompt", expected="a format with one, for an endpoint")

    @property
    def name(self) -> str:
        """The name of the model and of the format."""
        return f"{self.model} ({self.format.name})"

    @property
    def identity(self) -> str:
        """A digest of endpoint, model and format."""
        return digest_of(self.url, self.model, self.format.identity)

    def judge(self, case: Case, answer: str) -> Judgement:
        """What its reply says.

        Raises:
            JudgeError: There was none.
        """
        messages = [{"role": "user", "content": self.format.asked(case, answer)}]
        body = {"model": self.model, "temperature": 0, "messages": messages}
        for attempt in range(1, self.attempts + 1):
            try:
                return self.format.read(self._replied(body))
            except urllib.error.HTTPError as error:
                problem, again, wait = f"HTTP {error.code}", error.code in _AGAIN, error.headers.get("Retry-After", "")
                error.close()
            except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError) as error:
                problem, again, wait = described(error), True, ""
            if not again or attempt == self.attempts:
                raise JudgeError(f"{self.name} gave no reply ({problem})", expected="a completion of a chat")
            seconds = float(wait) if wait.isdigit() else 2.0 ** (attempt - 1)
            time.sleep(min(seconds, self.longest_wait))
        raise AssertionError

    def _replied(self, body: dict[str, Any]) -> str:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(self.key):
            headers["Authorization"] = f"Bearer {key}"
        url = f"{self.url.rstrip('/')}/chat/completions"
        request = urllib.request.Request(url, json.dumps(body).encode(), headers)
        with _opener.open(request, timeout=self.timeout) as response:
            reply = json.loads(response.read(LARGEST))["choices"][0]["message"]["content"]
        if not isinstance(reply, str):
            raise TypeError(f"the content is {quoted(reply)}")
        return reply


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A key is sent to the endpoint that was named, and to no other."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> None:
        return None


_opener = urllib.request.build_opener(_NoRedirect)
