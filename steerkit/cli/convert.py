"""`steerkit pack convert`: a vector of another library to a pack, and back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import steerkit as sk
from steerkit.cli import options as opt
from steerkit.cli.console import echo, say
from steerkit.errors import OptionError

if TYPE_CHECKING:
    from steerkit_vectors_hub.interop import ModelFacts

PACK = "pack"


@dataclass(frozen=True)
class Foreign:
    """What a file of another library does not say.

    Attributes:
        model_config (FOLDER): Folder with the config.json of the model of IN.
        architecture: Instead of the folder: class name of the model.
        model_type: Instead of the folder: config.model_type.
        layer_count: Instead of the folder: number of blocks.
        model_id: Repository id of the model, for the record.
        revision: Commit of the model, for the record.
        site: Where IN adds its directions, if it does not say.
        numbering: What a layer number of IN means, if its place does not tell (plain tensors).
        direction: Which of several directions of IN.
        reference (FILE): Reference activations that belong to IN (ASTRA).
    """

    model_config: Path | None = None
    architecture: str | None = None
    model_type: str | None = None
    layer_count: int | None = None
    model_id: str | None = None
    revision: str | None = None
    site: Literal["resid_post", "mlp_out", "attn_out"] | None = None
    numbering: Literal["block", "block_input", "hidden_states"] | None = None
    direction: str | None = None
    reference: Path | None = None

    def facts(self) -> ModelFacts:
        """The model that it belongs to.

        Raises:
            OptionError: It is named twice, or not at all.
        """
        from steerkit_vectors_hub.interop import ModelFacts

        named = {"id": self.model_id or "", "revision": self.revision}
        stated = opt.present(architecture=self.architecture, model_type=self.model_type, layer_count=self.layer_count)
        if self.model_config is not None:
            if stated:
                raise OptionError("the model is given twice", expected="a folder, or the facts themselves")
            return ModelFacts.from_config(self.model_config, **named)
        if self.architecture is None:
            raise OptionError(
                "a foreign file does not say which model it belongs to",
                expected="--model-config FOLDER, or --architecture, --model-type and --layer-count",
            )
        return ModelFacts(**stated, **named)


def convert(
    source: str,
    output: Path,
    *,
    from_: str | None = None,
    to: str | None = None,
    layers: str | None = None,
    foreign: Foreign,
    license_: str | None = None,
    lossy: bool = False,
    force: bool = False,
) -> None:
    """Convert a vector of another library to a pack, or back.

    A foreign file does not say which model it belongs to: give the folder of the model, or architecture, model type and
    number of blocks. Every layer convention is converted; what a format can't say is an error. `steerkit formats` lists
    the formats.

    Args:
        source (IN): A file or folder of another library, or a pack: its file, a bundled name, hf://, https://...
        output (OUT): The file to write.
        from_ (FORMAT): Format of IN. Default: found out where certain.
        to (FORMAT): Format of OUT. Default: llamacpp for .gguf, else a pack.
        layers (N,N,...): Convert these layers only, in the numbering of IN.
        foreign: What IN does not say.
        license_: Licence of the pack, such as MIT.
        lossy: Leave out token positions and phases that OUT can't say, and say which.
        force: Overwrite the output.
    """
    to = to or ("llamacpp" if output.suffix == ".gguf" else PACK)
    opt.output(output, force=force, IN=source)
    chosen = None if layers is None else tuple(opt.numbers(layers, "--layers", int))
    if to == PACK:
        opt.refuse({"--lossy": lossy or None}, "a pack as OUT, which loses nothing")
    else:
        opt.refuse({"--license": license_}, f"{to} as OUT, which has no place for it")
    from steerkit_vectors_hub import interop

    file = Path(source)
    if from_ not in (None, PACK) and not file.exists():
        raise OptionError(f"{source!r} does not exist", expected=f"a file or folder of the format {from_}")
    if from_ == PACK or (from_ is None and (interop.is_pack(file) or not file.exists())):
        vector = sk.load_vector(source)  # before the options are judged: of what is nowhere, that is what to say
        if to == PACK:
            raise OptionError("IN and OUT are both packs", expected="another format", fix="name it: --to FORMAT")
        given = {f"--{name.replace('_', '-')}": value for name, value in vars(foreign).items()}
        opt.refuse(given, "a pack as IN, which says so itself")
        vector = vector if chosen is None else vector.select(chosen)
    else:
        own = {name: getattr(foreign, name) for name in ("site", "numbering", "direction", "reference")}
        choice = interop.Choice(layers=chosen, **own)
        vector = interop.read(file, from_, model=foreign.facts(), choice=choice)
    if to == PACK:
        (vector if license_ is None else vector.with_metadata(license=license_)).save(output)
    else:
        for line in interop.write(vector, output, to, lossy=lossy):
            say(f"left out: {line}")
    echo(f"Wrote {output}: {vector!r}")
    for line in vector.metadata.history:
        say(f"history: {line}")
