"""`steerkit convert`: a vector of another library to a pack, and back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from steerkit.cli import options as opt
from steerkit.cli.console import clean, console, print_json, say
from steerkit.errors import OptionError

if TYPE_CHECKING:
    from steerkit.vectors import SteeringVector
    from steerkit_vectors_hub.interop import ModelFacts

PACK = "pack"


def _print_formats(wanted: bool) -> None:
    if wanted:
        _formats()
        raise typer.Exit


def convert(
    source: Annotated[
        str,
        typer.Argument(
            metavar="IN",
            help="A file or folder of another library, or a pack: its file, a bundled name, hf://, https://...",
            show_default=False,
        ),
    ],
    output: Annotated[Path, typer.Argument(metavar="OUT", help="The file to write.", show_default=False)],
    *,
    from_: Annotated[
        str | None, typer.Option("--from", metavar="FORMAT", help="Format of IN. Default: found out where certain.")
    ] = None,
    to: Annotated[
        str | None, typer.Option(metavar="FORMAT", help="Format of OUT. Default: llamacpp for .gguf, else a pack.")
    ] = None,
    model_config: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Folder with the config.json of the model of IN.")
    ] = None,
    architecture: Annotated[str | None, typer.Option(help="Instead of the folder: class name of the model.")] = None,
    model_type: Annotated[str | None, typer.Option(help="Instead of the folder: config.model_type.")] = None,
    layer_count: Annotated[int | None, typer.Option(min=1, help="Instead of the folder: number of blocks.")] = None,
    model_id: Annotated[str, typer.Option(help="Repository id of the model, for the record.")] = "",
    revision: opt.Revision = None,
    layers: Annotated[
        str | None, typer.Option(metavar="N,N,...", help="Convert these layers only, in the numbering of IN.")
    ] = None,
    site: Annotated[str | None, typer.Option(help="Where IN adds its directions, if it does not say.")] = None,
    direction: Annotated[str | None, typer.Option(help="Which of several directions of IN.")] = None,
    reference: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Reference activations that belong to IN (ASTRA).")
    ] = None,
    license_: Annotated[str | None, typer.Option("--license", help="Licence of the pack.")] = None,
    lossy: Annotated[
        bool, typer.Option("--lossy", help="Leave out token positions and phases that OUT can't say, and say which.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing output.")] = False,
    formats: Annotated[
        bool,
        typer.Option("--formats", callback=_print_formats, is_eager=True, help="List the formats as JSON and exit."),
    ] = False,
    debug: opt.Debug = False,
) -> None:
    """Convert a vector of another library to a pack, or a pack to another format.

    A foreign file does not say which model it belongs to: give the folder of the model, or architecture, model type and
    number of blocks. Every layer convention is converted; what a format can't say is an error.
    """
    to = to or ("llamacpp" if output.suffix == ".gguf" else PACK)
    opt.check_output(output, force=force)
    chosen = _numbers(layers)
    given = {
        "--model-config": model_config,
        "--architecture": architecture,
        "--model-type": model_type,
        "--layer-count": layer_count,
        "--model-id": model_id or None,
        "--revision": revision,
        "--site": site,
        "--direction": direction,
        "--reference": reference,
    }
    if to != PACK and license_ is not None:
        raise OptionError(f"--license is given for {to}", expected="it only for a pack, which has a place for it")
    if to == PACK and lossy:
        raise OptionError("--lossy is given for a pack", expected="it only for another format: a pack loses nothing")

    from steerkit_vectors_hub import interop

    file = Path(source)
    if from_ not in (None, PACK) and not file.exists():
        raise OptionError(f"{source!r} does not exist", expected=f"a file or folder of the format {from_}")
    if from_ == PACK or (from_ is None and (interop.is_pack(file) or not file.exists())):
        from steerkit_vectors_hub.load import load_vector

        vector = load_vector(source)  # before the options are judged: of what is nowhere, that is what to say
        if to == PACK:
            raise OptionError("IN and OUT are both packs", expected="another format", fix="name it: --to FORMAT")
        for name, value in given.items():
            if value is not None:
                raise OptionError(f"{name} is given for a pack", expected="nothing that the pack says itself")
        vector = vector if chosen is None else vector.select(chosen)
    else:
        facts = _facts(model_config, architecture, model_type, layer_count, model_id, revision)
        choice = interop.Choice(layers=chosen, site=_site(site), direction=direction, reference=reference)
        vector = interop.read(file, from_, model=facts, choice=choice)
    _write(vector if license_ is None else vector.with_metadata(license=license_), output, to, lossy=lossy)


def _write(vector: SteeringVector, output: Path, to: str, *, lossy: bool) -> None:
    if to == PACK:
        vector.save(output)
    else:
        from steerkit_vectors_hub import interop

        for line in interop.write(vector, output, to, lossy=lossy):
            say(f"left out: {line}")
    console().print(f"Wrote {clean(output)}: {clean(vector)}", soft_wrap=True)
    for line in vector.metadata.history:
        say(f"history: {line}")


def _facts(
    folder: Path | None,
    architecture: str | None,
    model_type: str | None,
    layer_count: int | None,
    model_id: str,
    revision: str | None,
) -> ModelFacts:
    from steerkit_vectors_hub.interop import ModelFacts

    if folder is not None:
        if any(each is not None for each in (architecture, model_type, layer_count)):
            raise OptionError("the model is given twice", expected="a folder, or the facts themselves")
        return ModelFacts.from_config(folder, id=model_id, revision=revision)
    if architecture is None:
        raise OptionError(
            "a foreign file does not say which model it belongs to",
            expected="--model-config FOLDER, or --architecture, --model-type and --layer-count",
        )
    return ModelFacts(architecture, model_type, layer_count, id=model_id, revision=revision)


def _numbers(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.removeprefix("-").isdecimal() for part in parts):
        raise OptionError(f"--layers is {text!r}", expected="numbers with commas between them, such as 8,16,24")
    return tuple(map(int, parts))


def _site(site: str | None) -> Any:
    known = ("resid_post", "mlp_out", "attn_out")
    if site not in (None, *known):
        raise OptionError(f"--site is {site!r}", expected="one of " + ", ".join(known))
    return site


def _formats() -> None:
    from steerkit_vectors_hub.interop import ForeignWriter, registered_formats

    rows: list[dict[str, Any]] = []
    for each in registered_formats():
        title, layers = (None, None) if each.value is None else (each.value.title, each.value.convention)
        written = each.value is not None and issubclass(each.value, ForeignWriter)
        row = {"name": each.name, "title": title, "layers": layers, "written": written}
        rows.append(row if each.error is None else {**row, "error": each.error})
    print_json({"formats": rows})
