"""The packs of one server: loaded, compiled and checked in the front end, then written into every worker."""

from __future__ import annotations

import copy
import functools
import itertools
import logging
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from steerkit.analysis import Response, check_dose, check_fingerprint, state_norms
from steerkit.engines.program import compiled
from steerkit.errors import (
    EngineError,
    ModelMismatchError,
    NonFiniteError,
    OptionError,
    UnknownNameError,
)
from steerkit.interventions import View
from steerkit.models import family_of, load_processor, system_lengths
from steerkit.policy import Check, enforce
from steerkit.steering import check_match
from steerkit.vlm import VLM
from steerkit_vllm._version import __version__
from steerkit_vllm.arithmetic import NUMBERS
from steerkit_vllm.asking import Asked, asked
from steerkit_vllm.changes import Change, Served, served
from steerkit_vllm.plans import Part, Plan, Planner, measured_at, salt
from steerkit_vllm.settings import KEY, SITES, Room, Settings
from steerkit_vllm.views import view

_tags = itertools.count()
_logger = logging.getLogger("vllm.steerkit")  # below vLLM's, so that it is shown as theirs


class Registry:
    """The packs of a server, and what is known of its model.

    Args:
        settings: The server's.
        config: vLLM's.

    Attributes:
        longest: Tokens that a prompt and its answer may have.
        speculates: Whether tokens are drafted.
        packs: The packs by name, as requests may use them.
        room: What the workers allocate.
        checks: What was found of each pack, and by the self-test.
        withdrawn: Why packs were taken out while the server runs, by name.
    """

    def __init__(self, settings: Settings, config: Any) -> None:
        self.settings = settings
        self.longest = config.model_config.max_model_len
        self.speculates = config.speculative_config is not None
        self.model = _skeleton(config.model_config)
        self.packs: dict[str, Served] = {}
        self.checks: dict[str, tuple[Check, ...]] = {}
        self.responses: dict[str, Response] = {}
        self.withdrawn: dict[str, str] = {}
        self._rows: weakref.WeakKeyDictionary[Change, int] = weakref.WeakKeyDictionary()
        self._waiting = [self._loaded(name, ref) for name, ref in settings.packs.items()]
        needed = functools.reduce(Room.joined, (each.room for each in self._waiting), settings.room)
        rows = max((sum(_rows(each, site) for each in self._waiting) for site in range(len(SITES))), default=0)
        # a server without packs can be given plain ones later
        rows = max(rows, settings.room.rows) + settings.spare + 1  # one for the self-test
        least = Room(rows=rows, depth=2, sites=("resid_post",))
        self.room = needed.joined(least)
        self._free = [set(range(1, 1 + self.room.rows)) for _ in SITES]
        lengths = functools.partial(_lengths, self.model)
        self._planner = Planner(self.model.architecture, lengths, self.room, self._rows)
        self._doses: dict[tuple[tuple[str, float], ...], ModelMismatchError | NonFiniteError | None] = {}

    def waiting(self) -> Iterator[Served]:
        """Packs that have not been written into the workers yet."""
        while self._waiting:
            yield self._waiting.pop(0)

    def revoked(self, pack: Served) -> str | None:
        """Why a pack that is served would not be loaded again; None if it would be, or if that can't be told."""
        from steerkit_vectors_hub.errors import UntrustedPackError
        from steerkit_vectors_hub.load import load_vector

        try:
            load_vector(str(pack.vector.source), policy=self.settings.policy)
        except UntrustedPackError as error:
            return str(error)
        except Exception as error:  # of a file or a network: the next time may tell
            _logger.warning("steerkit-vllm: pack %r can't be verified again: %s", pack.name, error)
        return None

    def _loaded(self, name: str, ref: str) -> Served:
        from steerkit_vectors_hub.load import load_vector

        if not name or not name.isprintable() or len(name) > 200:
            raise OptionError(f"a pack is called {name!r:.80}", expected="a name of up to 200 printable characters")
        vector = load_vector(ref, policy=self.settings.policy)
        check_match(vector, self.model, self.settings.policy)
        return served(name, vector, self.model.architecture, self.model.dtype)

    def load(self, name: str, ref: str, *, replaces: bool) -> tuple[Served, tuple[Check, ...]]:
        """Load a pack for a running server; it is not served until it is written into the workers.

        Args:
            name: What requests are to call it.
            ref: Where it is.
            replaces: Whether another pack may have the name.

        Returns:
            The pack, and what was found of it.

        Raises:
            OptionError: There is a pack of this name.
            EngineError: There is no room for it.
            SteerKitError: It can't be loaded, or is not for this model.
        """
        if name in self.packs and not replaces:
            raise OptionError(f"there is a pack {name!r} already", expected="a new name", fix="PUT replaces a pack")
        found = self._loaded(name, ref)
        if short := self.room.lacks(found.room):
            raise EngineError(
                f"there is no room for pack {name!r}: it needs {'; '.join(short)}",
                expected="a pack of the kinds that the server was started for",
                fix='start the server with the pack, or with {"steerkit": {"room": {...}}}',
            )
        return found, self.check(found)

    def payloads(self, pack: Served) -> list[tuple[int, int, bytes]]:
        """What is written into the workers for a pack: `(site, first row, tensors)`; its rows are taken then.

        Raises:
            EngineError: There are too few rows.
        """
        found = []
        for change in pack.changes:
            start = self._start(change.site, change.depth)
            if start is None:
                self.free(self.rows(pack))
                raise EngineError(
                    f"pack {pack.name!r} needs {_rows(pack, change.site)} rows at {SITES[change.site]}, of which "
                    f"{len(self._free[change.site])} are free",
                    expected="a smaller pack",
                    fix='start the server with more: {"steerkit": {"spare": N}}, or take a pack out',
                )
            self._rows[change] = start
            self._free[change.site] -= set(range(start, start + change.depth))
            found.append((change.site, start, save({key: each.contiguous() for key, each in change.tensors.items()})))
        return found

    def _start(self, site: int, depth: int) -> int | None:
        """The first of so many free rows that follow each other."""
        free = self._free[site]
        return next((row for row in sorted(free) if free.issuperset(range(row, row + depth))), None)

    def withdraw(self, name: str, why: str) -> Served:
        """Take a pack out: no further request can name it. Its rows are still those of the requests under way.

        Raises:
            UnknownNameError: There is none of this name.
        """
        if name not in self.packs:
            raise UnknownNameError(f"there is no pack {name!r:.80}", expected=f"one of {sorted(self.packs)}")
        self.withdrawn[name] = why
        self.checks.pop(name, None)
        return self.packs.pop(name)

    def rows(self, pack: Served) -> list[tuple[int, int, int]]:
        """The rows of a pack: `(site, first, number)` of each change that has some."""
        return [(each.site, self._rows[each], each.depth) for each in pack.changes if each in self._rows]

    def free(self, rows: list[tuple[int, int, int]]) -> None:
        """Let rows be used for other packs."""
        for site, first, number in rows:
            self._free[site].update(range(first, first + number))

    def trial(self, layer: int, direction: Tensor) -> tuple[int, int, bytes]:
        """The same for a plain addition at one layer, in a row that the next pack overwrites."""
        tensors = {
            "u": torch.zeros(self.model.architecture.layer_count, 1, len(direction)),
            "numbers": torch.zeros(self.model.architecture.layer_count, 1, len(NUMBERS)),
        }
        tensors["u"][layer, 0] = direction
        for name in ("k0", "dose", "opens"):
            tensors["numbers"][layer, 0, NUMBERS.index(name)] = 1.0
        site = SITES.index("resid_post")
        row = self._start(site, 1)
        assert row is not None, "a row is kept for it"
        return site, row, save(tensors)

    def serve(self, pack: Served, checks: tuple[Check, ...]) -> None:
        """Let requests name a pack; further ones, where another had the name."""
        self.withdrawn.pop(pack.name, None)
        self.packs[pack.name], self.checks[pack.name] = pack, checks

    def check(self, pack: Served) -> tuple[Check, ...]:
        """Compare a pack with the served model, as `steerkit.steer` does.

        Raises:
            ModelMismatchError: It is for another model, or its dose is out of proportion; as the policy says.
        """
        fingerprint = check_fingerprint(pack.vector.metadata.fingerprint, self.responses)
        strength = pack.vector.metadata.strength.recommended
        checks = (fingerprint, check_dose([pack.vector], [strength], state_norms(self.responses)))
        enforce(checks, self.settings.policy, ModelMismatchError)
        return checks

    # -- requests ---------------------------------------------------------------------------------------------------

    def asked(self, given: Mapping[str, Any] | None) -> Asked | None:
        """What a request asks for, its dose checked.

        Raises:
            SteerKitError: It is malformed, or asks for what can't be done.
        """
        found = asked(given, self.packs)
        if found is not None:
            key = tuple((served.digest, strength) for served, strength in found.packs)
            if key not in self._doses:
                while len(self._doses) > 1024:
                    self._doses.pop(next(iter(self._doses)))
                self._doses[key] = self._dose(found)
            if (problem := self._doses[key]) is not None:
                raise copy.copy(problem)  # an error that is raised keeps the packs alive
        return found

    def _dose(self, asked: Asked) -> ModelMismatchError | NonFiniteError | None:
        vectors = [served.vector for served, _ in asked.packs]
        strengths = [strength for _, strength in asked.packs]
        try:
            compiled(vectors, strengths, self.model.architecture).check(self.model.dtype)
            check = check_dose(vectors, strengths, state_norms(self.responses))
            if self.settings.policy == "strict" and check.status == "fail":
                enforce([check], "strict", ModelMismatchError)
        except (ModelMismatchError, NonFiniteError) as error:
            return copy.copy(error)
        return None

    def parts(self, asked: Asked, ids: Sequence[int], horizon: int) -> list[Part]:
        """See `Planner.parts`."""
        return self._planner.parts(asked, ids, horizon)

    def needs(self, parts: Sequence[Part], prompt_length: int) -> dict[View, set[int]]:
        """See `Planner.needs`."""
        return self._planner.needs(parts, prompt_length)

    def plan(
        self, asked: Asked, parts: Sequence[Part], ids: Sequence[int], states: Any, theirs: str | None
    ) -> tuple[Plan, str | None]:
        """The plan of a request and its cache salt; None where nothing of it is steered.

        Raises:
            EngineError: It can't be served.
        """
        plan, digest = self._planner.plan(parts, len(ids), states)
        if self.speculates:
            for *_, runs in plan["changes"]:
                if any(edge > len(ids) and edge < 2**31 for start, stop, _ in runs for edge in (start, stop)):
                    raise EngineError(
                        "the request steers some generated tokens and not others, and the server speculates: which "
                        "token is which is not known before it is accepted",
                        expected="all generated tokens or none",
                        fix="start the server without --speculative-config",
                    )
        plan.asked, plan.parts = asked, parts
        if asked.receipt and (at := measured_at(plan)) is not None:
            plan["measure"] = [f"receipt-{next(_tags)}", at]
        return plan, salt(digest, theirs) if plan["changes"] else theirs

    def view(self, name: View, prompt: Mapping[str, Any], seed: int = 0) -> dict[str, Any]:
        """See `views.view`."""
        model = self.model
        assert model.format is not None
        return view(name, prompt, model.format, model.architecture, seed)

    def describe(self) -> dict[str, Any]:
        """What a client may know of the server."""
        return {
            "steering": True,
            "version": __version__,
            "packs": [
                {
                    "name": each.name,
                    "source": each.vector.source,
                    "digest": each.digest,
                    "method": each.vector.metadata.method.name,
                    "recommended_strength": each.vector.metadata.strength.recommended,
                    "measures_prompts": any(change.measures for change in each.changes),
                    "checks": [check.as_json() for check in self.checks.get(each.name, ())],
                }
                for each in self.packs.values()
            ],
            "self_test": [check.as_json() for check in self.checks.get("", ())],
            "room": self.room.model_dump(mode="json"),
            "free_rows": {SITES[site]: len(free) for site, free in enumerate(self._free)},
            "withdrawn": self.withdrawn,
        }

    def started(self) -> dict[str, Any]:
        """The settings as the workers are given them."""
        return {KEY: self.settings.model_copy(update={"allocated": self.room}).model_dump(mode="json")}


def _rows(pack: Served, site: int) -> int:
    return sum(change.depth for change in pack.changes if change.site == site)


def _skeleton(config: Any) -> VLM:
    """The model's shapes and processor, without weights.

    Raises:
        EngineError: transformers can't build it.
        UnsupportedModelError: Its type is not served.
    """
    import transformers

    source, options = config.model, {"revision": config.revision} if config.revision else {}
    family = family_of(source, **options)
    processor = load_processor(source, family, **options)
    kind = transformers.AutoConfig.from_pretrained(source, trust_remote_code=False, **options)
    with torch.device("meta"):
        model = getattr(transformers, family.auto_class).from_config(kind, dtype=config.dtype)
    found = VLM(model.eval(), processor, family, revision=config.revision)
    architecture = found.architecture
    unlike = {
        "an encoder and a decoder": architecture.encoder_decoder,
        "several residual streams": architecture.state != "plain",
        "blocks that run several times": bool(architecture.runs),
        "blocks that run for images alone": bool(architecture.only_with_image),
        "images that no token ids stand for": architecture.marks not in ("", "ids"),
    }
    if named := [what for what, there in unlike.items() if there]:
        raise EngineError(
            f"{found.record.architecture} has {' and '.join(named)}, which can't be steered in vLLM",
            expected="a decoder whose image tokens have ids",
            fix="serve it with transformers and steerkit",
        )
    return found


def _lengths(model: VLM, ids: Tensor, real: Tensor) -> Tensor:
    assert model.format is not None
    return system_lengths(ids, real, model.format)
