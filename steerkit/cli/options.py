"""Options that several commands share, and what they mean."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

import steerkit as sk
from steerkit.cli.console import say
from steerkit.errors import OptionError, SampleError

if TYPE_CHECKING:
    from steerkit.scale import Cluster
    from steerkit.vectors.formats import RawPack
    from steerkit_vectors_hub.resolve import Resolved

Dtype = Literal["auto", "bfloat16", "float16", "float32"]


@dataclass(frozen=True)
class Weights:
    """How a model is loaded.

    Attributes:
        dtype: Type of the weights.
        device_map: Where the weights go, as in transformers. Default: the GPU where there is one, else the CPU.
        template_option (KEY=VALUE): An option of the chat template, such as enable_thinking=false, for every prompt;
            may be repeated.
        trust_remote_code: Run the code that the model's repository brings; as in transformers, only if you trust it.
    """

    dtype: Dtype | None = None
    device_map: str | None = None
    template_option: list[str] | None = None
    trust_remote_code: bool = False

    def given(self, revision: str | None = None) -> dict[str, Any]:
        """Keyword arguments for `steerkit.load`."""
        given = {"revision": revision, **vars(self), "trust_remote_code": self.trust_remote_code or None}
        told = settings(given.pop("template_option"), "--template-option")
        return present(**given, chat_template_kwargs=told or None)


@dataclass(frozen=True)
class Loading(Weights):
    """How a model is loaded, and which revision of it.

    Attributes:
        revision: Branch, tag or commit of the model's repository.
    """

    revision: str | None = None


@dataclass(frozen=True)
class PackRef:
    """A pack by reference.

    Attributes:
        ref (REF): A file, a folder, a bundled name, hf://owner/name[@revision][/file], https://..., or what fsspec
            knows; #sha256=... at its end pins the file.
        revision: Branch, tag or commit of the pack's repository.
        sha256: The only digest to accept.
        offline: Use the cache alone. Also: STEERKIT_OFFLINE=1.
    """

    ref: str
    revision: str | None = None
    sha256: str | None = None
    offline: bool = False

    def options(self) -> dict[str, Any]:
        """Keyword arguments for what takes a reference."""
        return {"revision": self.revision, "sha256": self.sha256, "offline": True if self.offline else None}

    def resolve(self) -> Resolved:
        """The file on this machine."""
        from steerkit_vectors_hub.resolve import resolve

        return resolve(self.ref, **self.options())


@dataclass(frozen=True)
class Prompts:
    """A suite of prompts and how it is judged.

    Attributes:
        prompts (FILE): Prompts, .jsonl: {"text", "image", "label": "harmful", "harmless" or "utility", "answer"} on
            each line; demo/test and demo/dev come with steerkit, for the demo models. With --root, a data set such as
            pope; xstest comes with steerkit.
        root: Folder where you have that data set.
        part: Which part of it, where it has several.
        image_folder: Folder of its images, where they are elsewhere, or of pictures for prompts that have none.
        count: Only the first prompts of each kind, as many.
        refusal: A phrase by which a refusal is told. Default: those of the file, or common ones.
        max_new_tokens: Length of the answers. Default: that of the file, or 64.
    """

    prompts: Path | None = None
    root: Path | None = None
    part: str | None = None
    image_folder: Path | None = None
    count: int | None = None
    refusal: list[str] | None = None
    max_new_tokens: int | None = None

    def suite(self) -> sk.evaluation.Suite:
        """The suite of the file.

        Raises:
            OptionError: None is named.
            SampleError: The file can't be read, or a row is bad.
        """
        from steerkit.demo import bundled

        if self.prompts is None:
            raise OptionError("--prompts is missing", expected="a file of prompts", fix="--prompts demo/test is one")
        made = sk.evaluation.load_suite(
            bundled(str(self.prompts)) if self.root is None else str(self.prompts),
            root=self.root,
            part=self.part,
            images=self.image_folder,
            refusals=self.refusal or None,
            max_new_tokens=self.max_new_tokens,
        )
        return made if self.count is None else made.first(self.count)


@dataclass(frozen=True)
class SampleFile:
    """How a sample file is read.

    Attributes:
        columns (OLD=NEW): Rename a field of the sample file; OLD= drops it.
        skip_bad_rows: Leave malformed rows out and say which.
        download: Download images that are given by http:// and https:// addresses.
    """

    columns: list[str] | None = None
    skip_bad_rows: bool = False
    download: bool = False

    def read(self, path: Path, *, check_images: bool = True) -> list[sk.Sample]:
        """The samples of a file or folder; bad rows end the command, or are named and left out.

        Raises:
            SampleError: A row is bad, or there is no such file, or nothing in it.
        """
        bad: list[int] = []

        def leave_out(number: int, error: Exception) -> None:
            bad.append(number)
            say(f"left out: {error}")

        renamed = {old: new or None for old, new in pairs(self.columns, "--columns").items()}
        on_error = leave_out if self.skip_bad_rows else "raise"
        check_images = check_images or self.skip_bad_rows
        samples = sk.read_samples(
            path, columns=renamed, on_error=on_error, download=self.download, check_images=check_images
        )
        if bad:
            say(f"{len(bad)} of {len(samples) + len(bad)} rows of {path} were left out")
        if not samples:
            raise SampleError(f"{str(path)!r} holds no samples", expected="at least one")
        return samples


@contextmanager
def cluster(ray: bool, model: str, loading: dict[str, Any]) -> Iterator[Cluster | None]:
    """Who fits and answers: the workers of a Ray cluster, or nobody else."""
    if not ray:
        yield None
        return
    from steerkit import scale
    from steerkit.demo import bundled

    with scale.cluster(bundled(model), loading=loading) as found:
        yield found


def endpoint(url: str | None, model: str | None) -> sk.evaluation.EndpointJudge | None:
    """The judge behind an endpoint, or None where none is named.

    Raises:
        OptionError: One of the two is missing, or the url is impossible.
    """
    if (url is None) != (model is None):
        raise OptionError("one of --judge-url and --judge-model is given", expected="both, or neither")
    return None if url is None or model is None else sk.evaluation.EndpointJudge(url, model)


def present(**options: Any) -> dict[str, Any]:
    """Those that were given: the others keep the defaults of the library."""
    return {name: value for name, value in options.items() if value is not None}


def strengths(given: list[float] | None, vectors: Sequence[sk.SteeringVector]) -> list[float]:
    """One strength for all vectors or one for each, or else what each pack recommends.

    Raises:
        OptionError: There are more or fewer than vectors.
    """
    if not given:
        return [each.metadata.strength.recommended for each in vectors]
    return sk.vectors.as_strengths(given if len(given) > 1 else given[0], len(vectors))


def refuse(given: Mapping[str, object], where: str) -> None:
    """Refuse options that would be ignored; None, or an empty list, is what was not given.

    Raises:
        OptionError: Something was given.
    """
    if names := [name for name, value in given.items() if value is not None and value != []]:
        raise OptionError(f"{', '.join(names)} with {where}", expected="what has an effect there", fix="leave it out")


def finite(values: Iterable[float], option: str) -> None:
    """Refuse NaN and infinity.

    Raises:
        OptionError: A value is one of them.
    """
    for value in values:
        if not math.isfinite(value):
            raise OptionError(f"{option} is {value}", expected="a finite number")


def refuse_repeated(names: Sequence[str]) -> None:
    """Refuse a name that occurs twice: one row, or file, would take the other's place.

    Raises:
        OptionError: One does.
    """
    if repeated := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        shown = ", ".join(map(repr, repeated))
        raise OptionError(f"given twice: {shown}", expected="a name of its own for each", fix="rename the file")


def output(path: Path, *, force: bool, **inputs: Path | str | None) -> Path:
    """An output that can be written.

    Args:
        path: The output.
        force: Whether it may exist.
        **inputs: What the command reads, by name.

    Raises:
        OptionError: It exists, is a folder, can't be written, or is one of the inputs: that would be lost, whatever
            `--force` says.
    """
    for name, each in inputs.items():
        if each is not None and _same(path, Path(each)):
            raise OptionError(f"the output {str(path)!r} is also {name}", expected="a file for each")
    if path.exists() and not path.is_file():
        what = "a folder" if path.is_dir() else "no regular file"
        raise OptionError(f"the output {str(path)!r} is {what}", expected="a file name")
    if (path.exists() or path.is_symlink()) and not force:  # a link that leads nowhere would be replaced as well
        raise OptionError(
            f"the output {str(path)!r} exists", expected="a new file", fix="name another file, or pass --force"
        )
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise OptionError(f"{str(folder)!r} can't be written to", expected="a folder that you may write to")
    return path


def _same(one: Path, other: Path) -> bool:
    return os.path.realpath(one) == os.path.realpath(other) or (one.exists() and other.exists() and one.samefile(other))


def read_pack(found: Resolved) -> tuple[RawPack, dict[str, Any]]:
    """A pack, audited, and its document as JSON.

    Raises:
        PackFormatError: It is not a pack.
    """
    from steerkit.vectors.formats import parse_pack

    raw = parse_pack(found.read(), name=found.ref)
    return raw, sk.vectors.parse_metadata(raw.document, name=found.ref).model_dump(mode="json")


def pairs(given: Iterable[str] | None, option: str) -> dict[str, str]:
    """`{key: value}` from `key=value` arguments.

    Raises:
        typer.BadParameter: One has no `=`, or a key is given twice.
    """
    found: dict[str, str] = {}
    for item in given or ():
        key, separator, value = item.partition("=")
        if not separator or not key:
            raise typer.BadParameter(f"{item!r} is not KEY=VALUE", param_hint=option)
        if key in found:
            raise typer.BadParameter(f"{key!r} is given twice", param_hint=option)
        found[key] = value
    return found


def settings(given: Iterable[str] | None, option: str = "--set") -> dict[str, Any]:
    """Options from `key=value` arguments: JSON where the value is JSON, else text.

    Raises:
        OptionError: A value begins as a list or an object, and is not JSON.
    """
    return {key: _json_or_text(value, f"{option} {key}") for key, value in pairs(given, option).items()}


def numbers(text: str, option: str, kind: type[int] | type[float]) -> list[Any]:
    """Numbers from a comma-separated text.

    Raises:
        typer.BadParameter: An item is not a number.
    """
    try:
        return [kind(item) for item in text.split(",") if item.strip()]
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is not a comma-separated list of numbers", param_hint=option) from error


def _json_or_text(value: str, what: str) -> Any:
    from steerkit._internal.json import json_value

    try:
        return json_value(value, what, error=OptionError)
    except OptionError:
        if value.lstrip()[:1] in ("[", "{"):
            raise
        return value
