"""The model `steerkit` of lmms-eval: it is given a whole task at once, and answers it in batches."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, NoReturn, get_args

import torch
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms

import steerkit as sk
from steerkit.demo import bundled
from steerkit.errors import OptionError, SampleError
from steerkit.interventions import View
from steerkit.policy import Policy
from steerkit.vectors import as_strengths

_PASSED_ON = ("max_new_tokens", "do_sample", "temperature", "top_p", "top_k", "num_beams", "repetition_penalty")


class Steerkit(lmms):
    """A model of steerkit, steered through the whole run.

    Args:
        pretrained: Repository id or folder of the model, or the name of a demo model.
        vector: A pack: whatever `sk.load_vector` takes; several with `;` between.
        strength: Of all of them, or one of each with `;` between; default: as recommended.
        policy: As for `sk.steer`.
        images: With which view of their images prompts are shown.
        batch_size: Prompts that the model answers at once.
        device: Where the model goes; default: the GPU, where there is one.
        dtype: As for `sk.load`.
        revision: As for `sk.load`.
        download: Whether a model or pack that is not on this machine is fetched.
        max_batch_size: lmms-eval gives it; nothing here adapts a batch.
        **unknown: Refused.

    Raises:
        OptionError: An argument is unknown or has an impossible value.
        SteerKitError: As `sk.load`, `sk.load_vector` and `sk.steer` do.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str,
        vector: str = "",
        strength: float | str | None = None,
        policy: Policy = "strict",
        images: View = "original",
        batch_size: int | str = 8,
        device: str | None = None,
        dtype: str | None = None,
        revision: str | None = None,
        download: bool = False,
        max_batch_size: int | None = None,
        **unknown: Any,
    ) -> None:
        super().__init__()
        if unknown:
            raise OptionError(f"the model steerkit does not take {', '.join(unknown)}", expected="see its docstring")
        if images not in get_args(View):
            raise OptionError(f"images is {images!r}", expected="one of " + ", ".join(get_args(View)))
        if not str(batch_size).isdigit():
            raise OptionError(f"batch_size is {batch_size!r}", expected="a whole number")
        self.images: View = images
        self.batch_size = int(batch_size)
        offline = None if download else True
        vectors = [sk.load_vector(ref, offline=offline, policy=policy) for ref in str(vector).split(";") if ref]
        if strength is not None and not vectors:
            raise OptionError("a strength is given without a vector", expected="vector=REF")
        doses = [each.metadata.strength.recommended for each in vectors]
        if strength is not None:
            given = [float(each) for each in str(strength).split(";")]
            doses = as_strengths(given if len(given) > 1 else given[0], len(vectors))
        loading: dict[str, Any] = {
            name: value for name, value in {"dtype": dtype, "revision": revision}.items() if value is not None
        }
        self.vlm = sk.load(bundled(pretrained), local_files_only=not download, **loading)
        self.vlm.model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.steered = lambda: sk.steer(self.vlm, vectors, strength=doses, policy=policy) if vectors else nullcontext()

    def generate_until(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        """Answer a task; requests with the same options share batches.

        Raises:
            OptionError: A task asks for an option that has no counterpart.
            SteerKitError: As `steer` and `VLM.generate` do.
        """
        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[2], sort_keys=True), []).append(number)
        found: dict[int, GenerationResult] = {}
        for key, numbers in groups.items():
            stops, options = _options(json.loads(key))
            samples = [self._sample(requests[number]) for number in numbers]
            with self.steered():
                for made in self.vlm.answers(samples, images=self.images, batch_size=self.batch_size, **options):
                    ends = [place for stop in stops if (place := made.text.find(stop)) >= 0]
                    text = made.text[: min(ends)] if ends else made.text
                    counts = TokenCounts(input_tokens=made.prompt, output_tokens=made.tokens)
                    found[numbers[made.number]] = GenerationResult(text=text, token_counts=counts)
        return [found[number] for number in range(len(requests))]

    def _sample(self, request: Instance) -> sk.Sample:
        _, doc_to_messages, _, doc_id, task, split = request.args
        turns = []
        for message in doc_to_messages(self.task_dict[task][split][doc_id]):
            parts = []
            for part in message["content"]:
                if part["type"] not in ("text", "image"):
                    raise SampleError(f"{task} asks about {part['type']}", expected="text and images")
                shown = {"text": part["text"]} if part["type"] == "text" else {"image": part["url"]}
                parts.append({"type": part["type"], **shown})
            turns.append({"role": message["role"], "content": parts})
        return sk.Sample(turns)  # type: ignore[arg-type]

    def loglikelihood(self, requests: Sequence[Instance]) -> NoReturn:
        """Refused.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError("the model steerkit answers tasks of generate_until alone, not of loglikelihood")

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> NoReturn:
        """Refused.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError("the model steerkit answers tasks of one round alone")


def _options(given: dict[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """What ends an answer, and the options of `generate`; greedy unless a temperature above 0 asks for sampling."""
    stops = given.pop("until", None) or []
    given.setdefault("max_new_tokens", 1024)
    given["do_sample"] = bool(given.get("temperature") or (given.get("do_sample") and "temperature" not in given))
    if not given["do_sample"]:
        for name in ("temperature", "top_p", "top_k"):
            given.pop(name, None)
    given = {name: value for name, value in given.items() if value is not None}
    if unknown := sorted(set(given) - set(_PASSED_ON)):
        raise OptionError(
            f"a task asks for {', '.join(unknown)}, which the model steerkit does not have",
            expected=f"generation_kwargs with some of until, {', '.join(_PASSED_ON)}",
            fix="--gen_kwargs, or another task",
        )
    return ([stops] if isinstance(stops, str) else list(stops)), given
