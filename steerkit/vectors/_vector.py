"""The steering vector: directions by layer, the interventions that use them, and the metadata."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

import safetensors.torch
import torch
from pydantic import ValidationError
from torch import Tensor

from steerkit._internal.faults import faults
from steerkit._internal.files import write_atomically
from steerkit._internal.text import one_line
from steerkit._internal.validation import PATH, as_layers, expect, expect_one_of
from steerkit.errors import LayerRangeError, ModelMismatchError, NonFiniteError, OptionError, SteerKitError
from steerkit.interventions import (
    Intervention,
    Site,
    StoredDirection,
    Tower,
    is_finite,
    site_label,
)
from steerkit.interventions import _arithmetic as ops
from steerkit.policy import Policy
from steerkit.vectors._metadata import ModelRecord, PackMetadata, StrengthRecord, parse_metadata
from steerkit.vectors.formats import (
    encode_document,
    parse_pack,
    parse_tensor_name,
    read_file,
    refused,
    tensor_name,
    tensors_digest,
)

if TYPE_CHECKING:
    from steerkit_vectors_hub.push import Publication

Dtype = Literal["float32", "float16", "bfloat16"]

PACK = "steering_vector.safetensors"
"""What a pack is called in a repository or a folder of its own."""

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)

_TORCH: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
_FILE = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


class Key(NamedTuple):
    """The address of a direction: 0-based block, site, a name where a layer has several, and the tower."""

    layer: int
    site: Site = "resid_post"
    name: str = ""
    tower: Tower = "language"


@dataclass(frozen=True, eq=False)
class SteeringVector:
    """Directions, the interventions that use them, and where they come from.

    Immutable: algebra returns a new vector whose `metadata.history` says what was done. What was measured of the old
    one is not claimed of the new: metrics and the strength record are dropped, but for that of a multiple; see `*`.

    To train directions, build a vector around tensors that require gradients in each step, and steer with it: the
    vector holds copies, and gradients reach the tensors through them.

    Attributes:
        tensors: `{Key: [hidden] or [k, hidden]}`, on the CPU.
        metadata: The document that is saved with them, interventions included; its `dtype` is that of the tensors.
        source: Where it was loaded from; of a vector that was changed since, None.

    Raises:
        OptionError: A tensor has the wrong shape or type, or an intervention reads a direction that is not there.
        NonFiniteError: A direction holds NaN or infinity.
        LayerRangeError: A direction lies outside the model's layers.
    """

    tensors: Mapping[Key, Tensor]
    metadata: PackMetadata
    source: str | None = None
    _places: Mapping[tuple[str, str, str], frozenset[int]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        expect(Mapping, "{sk.Key(layer): tensor}", tensors=self.tensors)
        expect(PackMetadata, "a PackMetadata", metadata=self.metadata)
        for key, tensor in self.tensors.items():
            expect(tuple, "sk.Key(layer)", key=key)
            expect(Integral, "a whole number", **{f"the layer of {key!r}": key[0] if key else None})
            expect(Tensor, "a tensor of shape [hidden] or [k, hidden]", **{f"tensors[{key!r}]": tensor})
        # a copy: whoever holds the tensors that were given can't change the vector; gradients reach them through it
        tensors = {
            Key(*key): tensor.cpu().clone(memory_format=torch.contiguous_format)
            for key, tensor in sorted(self.tensors.items())
        }
        model = self.metadata.model
        for key, tensor in tensors.items():
            _check_direction(key, tensor, model)
        dtypes = {tensor.dtype for tensor in tensors.values()}
        if len(dtypes) > 1:
            raise OptionError(f"directions of several types {sorted(map(str, dtypes))}", expected="one type")
        for dtype in dtypes:
            name = str(dtype).removeprefix("torch.")
            object.__setattr__(self, "metadata", self.metadata.model_copy(update={"dtype": name}))
        object.__setattr__(self, "tensors", MappingProxyType(tensors))
        object.__setattr__(self, "_places", _places(tensors))
        for intervention in self.interventions:
            self._check_intervention(intervention)

    @property
    def interventions(self) -> tuple[Intervention, ...]:
        """What is done with the directions."""
        return self.metadata.interventions

    @property
    def directions(self) -> dict[int, Tensor]:
        """`{layer: [hidden] or [k, hidden]}`: the directions that the first intervention applies.

        Empty for a vector that is measured on each prompt, such as sample-level CMRM.
        """
        for intervention in self.interventions:
            direction = intervention.operation.stored
            if direction is not None:
                return {
                    key.layer: tensor
                    for key, tensor in self.tensors.items()
                    if (key.site, key.name, key.tower) == (intervention.site, direction.name, intervention.tower)
                }
        return {}

    def direction(self, stored: StoredDirection, layer: int, site: Site, tower: Tower = "language") -> Tensor | None:
        """The tensor that a stored direction means at a layer, or None if there is none."""
        expect(StoredDirection, "a StoredDirection, as an intervention names it", stored=stored)
        return self.tensors.get(Key(layer if stored.layer is None else stored.layer, site, stored.name, tower))

    @property
    def places(self) -> set[tuple[Site, Tower]]:
        """The sites and towers that the interventions steer."""
        return {(intervention.site, intervention.tower) for intervention in self.interventions}

    def select(self, layers: Iterable[int]) -> SteeringVector:
        """The same vector on some decoder blocks only; what it does in the vision tower stays.

        For CMRM in increments, prefer `CMRM(layers=...)`: it measures the increments between the chosen layers, whereas
        this drops what the other layers contributed.

        Raises:
            OptionError: The layers are no whole numbers.
            LayerRangeError: The vector steers nothing at a layer.
        """
        wanted = tuple(dict.fromkeys(as_layers(layers)))
        if not wanted:
            raise LayerRangeError("no layer is selected", expected="at least one layer")
        steered = {layer for i in self.interventions if i.tower == "language" for layer in self.layers_of(i)}
        for layer in wanted:
            if layer not in steered:
                raise LayerRangeError(f"the vector steers nothing at layer {layer}", expected=f"of {sorted(steered)}")
        interventions = tuple(
            i if i.tower == "vision" else i.model_copy(update={"layers": kept})
            for i in self.interventions
            if (kept := tuple(layer for layer in wanted if layer in self.layers_of(i))) or i.tower == "vision"
        )
        shared = {d.layer for i in interventions if i.tower == "language" for d in i.stored if d.layer is not None}
        tensors = {
            key: t
            for key, t in self.tensors.items()
            if key.tower == "vision" or key.layer in wanted or key.layer in shared
        }
        return self.derived(tensors, f"select layers {list(wanted)}", interventions)

    def normalized(self) -> SteeringVector:
        """The same vector with every direction scaled to norm 1 (each row of a `[k, hidden]` direction).

        The references of measures are points, not directions, and stay what they are.

        Raises:
            OptionError: The vector stores no directions: they are measured on each prompt.
        """
        if not self.tensors:
            raise OptionError(
                "a vector that is measured on each prompt is normalised", expected="a vector that stores directions"
            )
        measures = [m for i in self.interventions for m in i.measures]
        points = {m.reference.name for m in measures if m.reference is not None} - {m.direction.name for m in measures}
        tensors = {
            key: t if key.name in points else ops.unit(t.double()).to(t.dtype) for key, t in self.tensors.items()
        }
        return self.derived(tensors, "normalise")

    def __mul__(self, factor: float) -> SteeringVector:
        """A vector that steers `factor` times as hard: added directions are scaled, other operations get the dose.

        The new vector at a strength is the old one at `factor` times that, and the strengths of the record are divided
        by it: at what it recommends, the new vector does what the old one did at its own. Where nothing was recommended
        the strength stays 1. A negative factor makes a vector of which nothing was measured: its record is empty.
        Metrics are dropped in any case, since at which strength they were measured is not recorded.

        Raises:
            OptionError: The factor is 0, or no finite number.
        """
        if not is_finite(factor):
            raise OptionError(f"a vector is scaled by {factor!r}", expected="a finite number")
        if factor == 0:
            raise OptionError("a vector is scaled by 0", expected="a factor that leaves something to apply")
        factor = float(factor)
        kept = {d.name for i in self.interventions if not _adds(i) for d in i.stored}
        dosed = [not _adds(i) or i.stored[0].name in kept for i in self.interventions]
        pairs = list(zip(self.interventions, dosed, strict=True))
        scaled = {key for i, by_dose in pairs if not by_dose for key in self._read_keys(i)}
        interventions = tuple(i.dosed(factor) if by_dose else i for i, by_dose in pairs)
        tensors = {key: (t.float() * factor).to(t.dtype) if key in scaled else t for key, t in self.tensors.items()}
        strength = _converted(self.metadata.strength, factor) if factor > 0 else None
        return self.derived(tensors, f"scale by {factor:g}", interventions, strength)

    __rmul__ = __mul__

    def __neg__(self) -> SteeringVector:
        """The opposite vector, of which nothing was measured; see `*`."""
        return self * -1.0

    def __add__(self, other: SteeringVector) -> SteeringVector:
        """The sum of two vectors that add their directions at the same places; a missing layer counts as zero.

        Raises:
            ModelMismatchError: They belong to models of another shape.
            OptionError: They do something else with their directions than adding, or at other places.
        """
        if not isinstance(other, SteeringVector):
            return NotImplemented
        mine, theirs = self.metadata.model, other.metadata.model
        if (mine.architecture, mine.hidden_size, mine.layer_count) != (
            theirs.architecture,
            theirs.hidden_size,
            theirs.layer_count,
        ):
            raise ModelMismatchError(
                f"vectors of {mine.architecture} ({mine.hidden_size} x {mine.layer_count}) and "
                f"{theirs.architecture} ({theirs.hidden_size} x {theirs.layer_count}) are added",
                expected="the same model",
            )
        if self.interventions != other.interventions or not all(map(_adds, self.interventions)):
            raise OptionError(
                "the two vectors are not applied in the same way",
                expected="equal interventions that add stored directions",
                fix="apply them together instead: steer(model, [a, b])",
            )
        tensors = dict(self.tensors)
        dtype = _TORCH[self.metadata.dtype]
        for key, tensor in other.tensors.items():
            tensors[key] = (tensors[key].float() + tensor.float()).to(dtype) if key in tensors else tensor.to(dtype)
        return self.derived(tensors, f"add {other.metadata.method.name} {other.digest()[:12]}")

    def __sub__(self, other: SteeringVector) -> SteeringVector:
        """The difference of two vectors; see `+`."""
        return self + (-other) if isinstance(other, SteeringVector) else NotImplemented

    @property
    def layer_count(self) -> int:
        """Number of decoder blocks of the model that the vector belongs to."""
        return self.metadata.model.layer_count

    def to(self, dtype: Dtype) -> SteeringVector:
        """The same vector in another element type.

        Raises:
            OptionError: There is no such type.
            NonFiniteError: A value does not fit the type.
        """
        expect_one_of(_TORCH, dtype=dtype)
        tensors = {key: tensor.to(_TORCH[dtype]) for key, tensor in self.tensors.items()}
        return SteeringVector(tensors, self.metadata.model_copy(update={"dtype": dtype, "tensors_sha256": None}))

    def with_metadata(self, **fields: object) -> SteeringVector:
        """The same vector with other metadata fields (license, authors, description, metrics, strength ...).

        Raises:
            OptionError: A field is unknown or has an impossible value.
        """
        try:
            metadata = PackMetadata.model_validate({**self.metadata.model_dump(), **fields})
        except ValueError as error:
            raise OptionError(
                f"metadata can't take {sorted(fields)} ({error})", expected="fields of PackMetadata"
            ) from error
        return SteeringVector(self.tensors, metadata)

    def applied(self, **fields: object) -> SteeringVector:
        """The same vector, whose interventions have other fields: tokens, positions, rows, steps, strength ...

        What was measured of it at its own is not claimed of the new one.

        Example:
            >>> vector.applied(tokens="generated", positions=slice(4))  # the first four tokens of each answer
            >>> vector.applied(rows=[1.0, 0.0])  # the first prompt of a batch of two
            >>> vector.applied(steps=[1.0, 0.5, 0.25, 0.0])  # less and less, and none from the fourth token on

        Raises:
            OptionError: A field is unknown or has an impossible value.
        """
        given = [{name: getattr(each, name) for name in Intervention.model_fields} for each in self.interventions]
        try:
            changed = tuple(Intervention.model_validate({**each, **fields}) for each in given)
        except ValidationError as error:
            raise OptionError(
                f"the vector can't be applied with {sorted(fields)} ({faults(error)})",
                expected="fields of an Intervention",
            ) from error
        return self.derived(dict(self.tensors), f"apply with {', '.join(sorted(fields))}", changed)

    def digest(self) -> str:
        """sha256 of the tensors, as in the pack."""
        return tensors_digest(
            {
                tensor_name(*key): (_FILE[tensor.dtype], tuple(tensor.shape), _bytes(tensor))
                for key, tensor in self.tensors.items()
            }
        )

    def save(self, path: str | Path, *, dtype: Dtype | None = None) -> Path:
        """Write a pack: one safetensors file, complete or not at all.

        Args:
            path: Where to; an existing file is replaced once the new one is whole.
            dtype: Element type of the directions; default: as they are.

        Returns:
            The path.

        Raises:
            OptionError: The path is none, or a folder; or there is no such type.
            PackFormatError: What would be written could not be read again, such as an outlier among the directions.
        """
        expect(PATH, "a path", path=path)
        vector = self if dtype is None else self.to(dtype)
        path = Path(path)
        if path.is_dir():
            raise OptionError(f"the path {str(path)!r} is a folder", expected="the name of a file, new or old")
        data = vector.to_bytes(name=str(path))
        write_atomically(path, data)
        return path

    def to_bytes(self, *, name: str = "the pack") -> bytes:
        """The pack that `save` writes.

        Args:
            name: What to call it in messages.

        Raises:
            PackFormatError: As for `save`.
        """
        document = self.metadata.model_copy(update={"tensors_sha256": self.digest()}).model_dump(mode="json")
        data = safetensors.torch.save(
            {tensor_name(*key): tensor.detach() for key, tensor in self.tensors.items()},
            metadata=encode_document(document),
        )
        parse_pack(data, name=name)
        return data

    @classmethod
    def load(cls, path: str | Path) -> SteeringVector:
        """Read a pack: parse, audit, construct; nothing is built before the audit has passed.

        Raises:
            OptionError: The path is none.
            PackFormatError: The file is missing, truncated, forged or no pack.
            NonFiniteError: A direction holds NaN or infinity.
        """
        expect(PATH, "a path", "sk.load_vector takes references, too", path=path)
        return cls.from_bytes(read_file(path), source=str(path))

    @classmethod
    def from_bytes(cls, data: bytes | bytearray | memoryview, *, source: str = "the data") -> SteeringVector:
        """The same as `load`, from the bytes of a pack.

        Args:
            data: All of the file.
            source: Where they are from, for messages and for the attribute of that name.
        """
        expect(bytes | bytearray | memoryview, "the bytes of a pack", data=data)
        raw = parse_pack(bytes(data), name=source)  # a copy of what can be changed: what is checked is what is used
        metadata = parse_metadata(raw.document, name=source)
        try:
            loaded = safetensors.torch.load(raw.data)
            keys = {name: Key(*cast("Any", parse_tensor_name(name))) for name in loaded}
            vector = cls({keys[name]: tensor for name, tensor in loaded.items()}, metadata, source)
        except NonFiniteError:
            raise
        except (safetensors.SafetensorError, SteerKitError) as error:
            raise refused(f"{source}: {error}", expected="a document that fits its tensors") from error
        if vector.metadata.dtype != metadata.dtype:
            raise refused(
                f"{source}: directions in {vector.metadata.dtype}", expected=f"{metadata.dtype}, as documented"
            )
        return vector

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        revision: str | None = None,
        local_files_only: bool | None = None,
        sha256: str | None = None,
        policy: Policy = "strict",
    ) -> SteeringVector:
        """Load a vector from the Hugging Face hub, or from a folder that `save_pretrained` has written.

        The same as `steerkit.load_vector`, with the same checks, under the name that users of transformers and PEFT
        know. The token is that of `hf auth login` or HF_TOKEN.

        Args:
            name: `owner/name` on the hub; a folder, which goes first; or any reference that `load_vector` takes.
            revision: Branch, tag or commit of a repository.
            local_files_only: Use the cache alone; default: as STEERKIT_OFFLINE and HF_HUB_OFFLINE say.
            sha256: The only digest of the file to accept.
            policy: What becomes of a failed check: `strict` (an error), `warn` or `off`.

        Raises:
            UntrustedPackError: A check failed, under `strict`.
            SteerKitError: Whatever else `load_vector` raises.

        Example:
            >>> vector = sk.SteeringVector.from_pretrained("owner/name", revision="v1.0")
        """
        expect(PATH, "owner/name, a folder, or another reference", name=name)
        load = importlib.import_module("steerkit_vectors_hub.load").load_vector  # the core imports no hub by itself
        ref: str | Path = name
        if Path(name).exists():
            ref = Path(name).absolute()  # a name without a slash would be that of a bundled pack
        elif isinstance(name, str) and _REPOSITORY.fullmatch(name):
            ref = f"hf://{name}"
        return load(ref, revision=revision, sha256=sha256, offline=local_files_only, policy=policy)

    def save_pretrained(self, folder: str | Path, *, dtype: Dtype | None = None) -> Path:
        """Write the pack into a folder, under the name that it has on the hub; `from_pretrained` loads it.

        Args:
            folder: Where to; made if need be. Other files in it stay.
            dtype: Element type of the directions; default: as they are.

        Returns:
            The path of the pack.

        Raises:
            OptionError: The path is a file; or there is no such type.
            PackFormatError: As for `save`.
        """
        expect(PATH, "a folder", folder=folder)
        folder = Path(folder)
        if folder.exists() and not folder.is_dir():
            raise OptionError(
                f"the path {str(folder)!r} is a file", expected="a folder, new or old", fix="save(path) writes one file"
            )
        folder.mkdir(parents=True, exist_ok=True)
        return self.save(folder / PACK, dtype=dtype)

    def __reduce__(self) -> tuple[object, ...]:
        """Copies and other processes get a vector that has passed the same checks."""
        return SteeringVector, ({key: t.detach() for key, t in self.tensors.items()}, self.metadata, self.source)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str | None = None,
        private: bool | None = None,
        token: bool | str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        dry_run: bool = False,
        signature: str | Path | None = None,
        sign_key: str | Path | None = None,
    ) -> Publication:
        """Publish the vector on the Hugging Face hub: the pack, a model card and its plots, in one commit.

        Args:
            repo_id: `owner/name`; it is created if need be.
            commit_message: Of the commit.
            private: Whether a repository that is created is private; default: as the hub has it for the owner.
            token: Default: that of `hf auth login` or HF_TOKEN.
            revision: The branch that the commit goes to; default: the main branch.
            create_pr: Propose the commit as a pull request instead.
            dry_run: Make everything and upload nothing.
            signature: A signature of exactly this pack, to be published with it.
            sign_key: A private key, in a PEM file, to sign it with instead.

        Returns:
            The files, and a reference to what was published.

        Raises:
            PublishError: The metadata lack the licence, the model's id or commit, or the source of the anchors; or the
                signature is of another file.
            SigningError: The key can't be used.
            AccessError: The hub refuses the token.
            DownloadError: The hub can't be reached.
        """
        push = importlib.import_module("steerkit_vectors_hub.push").push_to_hub  # the core imports no hub by itself
        return push(
            self,
            repo_id,
            commit_message=commit_message,
            private=private,
            token=token,
            revision=revision,
            create_pr=create_pr,
            dry_run=dry_run,
            signature=signature,
            sign_key=sign_key,
        )

    def __repr__(self) -> str:
        """Method, model, layers and type on one line."""
        model = self.metadata.model
        return one_line(
            f"SteeringVector({self.metadata.method.name}, {model.architecture}, "
            f"layers={sorted(self.directions) or 'measured'}, hidden={model.hidden_size}, {self.metadata.dtype})"
        )

    def derived(
        self,
        tensors: Mapping[Key, Tensor],
        step: str,
        interventions: tuple[Intervention, ...] | None = None,
        strength: StrengthRecord | None = None,
    ) -> SteeringVector:
        """A vector that was made of this one: what was measured of this one is not claimed of it.

        Args:
            tensors: Its directions.
            step: What was done, for its history.
            interventions: Its interventions; None: the same.
            strength: Its strength record, where that is known.
        """
        changes: dict[str, object] = {
            "history": (*self.metadata.history, step),
            "strength": strength or StrengthRecord(),
            "metrics": (),
            "tensors_sha256": None,
        }
        if interventions is not None:
            changes["interventions"] = interventions
        return SteeringVector(tensors, self.metadata.model_copy(update=changes))

    def _read_keys(self, intervention: Intervention) -> set[Key]:
        direction = intervention.operation.stored
        if direction is None:
            return set()
        site, name, tower = intervention.site, direction.name, intervention.tower
        present = self._places.get((site, name, tower), frozenset())
        return {Key(layer, site, name, tower) for layer in present if direction.layer in (None, layer)}

    def layers_of(self, intervention: Intervention) -> Sequence[int]:
        """The layers that an intervention steers; `all` means those that hold its direction."""
        expect(Intervention, "an sk.Intervention", intervention=intervention)
        if intervention.layers != "all":
            return sorted(intervention.layers)
        direction = intervention.operation.stored
        if direction is None or direction.layer is not None:
            return range(self.metadata.model.count(intervention.tower))
        return sorted({key.layer for key in self._read_keys(intervention)})

    def _check_intervention(self, intervention: Intervention) -> None:
        layers, count = self.layers_of(intervention), self.metadata.model.count(intervention.tower)
        if not count:
            raise OptionError(
                f"an intervention steers the {intervention.tower} tower, and the record of the model has none",
                expected="a record with vision_hidden_size and vision_layer_count",
            )
        named = (m.layer for m in intervention.measures if m.layer is not None)
        if (highest := max((layers[-1] if layers else 0, *named))) >= count:
            raise LayerRangeError(
                f"an intervention names layer {highest} of the {intervention.tower} tower", expected=f"below {count}"
            )
        site, tower = intervention.site, intervention.tower
        for stored in intervention.stored:
            present = self._places.get((site, stored.name, tower), frozenset())
            missing = set(layers if stored.layer is None else (stored.layer,)) - present
            if not present or missing:
                raise OptionError(
                    f"an intervention reads direction {stored.name!r} at {site_label(site, tower)} of layers "
                    f"{_listed(missing)}",
                    expected=f"layers that the vector holds: {_listed(present)}",
                )


def _places(keys: Iterable[Key]) -> dict[tuple[str, str, str], frozenset[int]]:
    """`{(site, name, tower): layers}`."""
    found: dict[tuple[str, str, str], set[int]] = {}
    for key in keys:
        found.setdefault((key.site, key.name, key.tower), set()).add(key.layer)
    return {place: frozenset(layers) for place, layers in found.items()}


def _listed(layers: Iterable[int], most: int = 100) -> str:
    ordered = sorted(layers)
    return f"[{', '.join(map(str, ordered[:most]))}{', ...' if len(ordered) > most else ''}]"


def _check_direction(key: Key, tensor: Tensor, model: ModelRecord) -> None:
    if tensor.dtype not in _FILE:
        raise OptionError(
            f"the direction at {tuple(key)} has type {tensor.dtype}", expected="float32, float16, bfloat16"
        )
    count, width = model.count(key.tower), model.width(key.site, key.tower)
    if not count or not width:
        raise OptionError(
            f"there is a direction at {tuple(key)}, and the record of the model gives no sizes for that place",
            expected="a record with head_count and head_size (head_out), or vision_hidden_size and vision_layer_count",
        )
    if tensor.dim() not in (1, 2) or tensor.shape[-1] != width:
        raise OptionError(
            f"the direction at {tuple(key)} has shape {tuple(tensor.shape)}", expected=f"[{width}] or [k, {width}]"
        )
    if not 0 <= key.layer < count:
        raise LayerRangeError(
            f"a direction is at layer {key.layer}", expected=f"0 to {count - 1} for {model.architecture}"
        )
    norms = torch.linalg.vector_norm(tensor, dim=-1, dtype=torch.float64)
    if not norms.isfinite().all():
        raise NonFiniteError(f"the direction at {tuple(key)} holds NaN or infinity", expected="finite values")
    if not norms.all():
        raise OptionError(
            f"the direction at {tuple(key)} is zero",
            expected="a direction that does something",
            fix="what was subtracted or added cancels there: leave the layer out, or check the anchor set",
        )


def _adds(intervention: Intervention) -> bool:
    """Whether scaling its directions is the same as scaling its dose (a measure would see the scaled direction too)."""
    return intervention.operation.additive and not intervention.measures


def _converted(record: StrengthRecord, factor: float) -> StrengthRecord:
    """The record of a vector that steers `factor` times as hard, a positive number; an empty one stays empty."""
    if record == StrengthRecord():
        return record
    named = {name: getattr(record, name) for name in ("recommended", "minimum", "maximum")}
    changes: dict[str, object] = {name: value / factor for name, value in named.items() if value is not None}
    changes["curve"] = tuple(point.model_copy(update={"strength": point.strength / factor}) for point in record.curve)
    return record.model_copy(update=changes)


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().view(torch.uint8).numpy().tobytes()
