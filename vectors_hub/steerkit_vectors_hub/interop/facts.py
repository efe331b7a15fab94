"""What a foreign file does not say of its model, and the caller must."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from steerkit.errors import ModelMismatchError, OptionError
from steerkit.vectors import ModelRecord
from steerkit_vectors_hub.interop.base import Foreign


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """The model that a vector belongs to, as the caller states it.

    Attributes:
        architecture: Class name of the model, such as `LlavaForConditionalGeneration`.
        model_type: Its `config.model_type`; None where the file says it.
        layer_count: Number of decoder blocks; None where the file says it.
        hidden_size: Width of the hidden states; None to take that of the directions.
        id: Repository or folder name.
        revision: Commit of the repository.
    """

    architecture: str
    model_type: str | None = None
    layer_count: int | None = None
    hidden_size: int | None = None
    id: str = ""
    revision: str | None = None

    @classmethod
    def from_config(cls, folder: str | Path, *, id: str = "", revision: str | None = None) -> ModelFacts:
        """Read them from the `config.json` of a model; no weights are read and no code of the model is run.

        Raises:
            OptionError: The folder holds no configuration that transformers knows.
        """
        from transformers import AutoConfig

        folder = Path(folder)
        if not (folder / "config.json").is_file():
            raise OptionError(
                f"the folder {str(folder)!r} holds no config.json", expected="a folder that holds a model"
            )
        try:
            config = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
            text = config.get_text_config(decoder=True)
            layers = getattr(text, "num_decoder_layers", None) or text.num_hidden_layers
            names = config.architectures or ()
            width = int(text.hidden_size)
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise OptionError(
                f"{str(folder / 'config.json')!r} can't be used ({type(error).__name__}: {error})",
                expected="the configuration of a model that transformers knows",
                fix="state architecture, model_type and layer_count instead",
            ) from error
        if len(names) != 1:
            raise OptionError(f"the configuration names the architectures {list(names)}", expected="exactly one")
        return cls(str(names[0]), config.model_type, int(layers), width, id, revision)

    def record(self, foreign: Foreign, width: int) -> ModelRecord:
        """The model of a converted vector.

        Raises:
            ModelMismatchError: Caller and file contradict each other.
            OptionError: Neither says the model type or the number of layers.
        """
        for what, mine, theirs in (
            ("hidden_size", self.hidden_size, width),
            ("layer_count", self.layer_count, foreign.layer_count),
        ):
            if mine is not None and theirs is not None and mine != theirs:
                raise ModelMismatchError(
                    f"it has {what} {theirs}", expected=f"{mine}, as the model has", fix="name the right model"
                )
        model_type, layer_count = self.model_type or foreign.model_type, self.layer_count or foreign.layer_count
        if not self.architecture or not model_type or not layer_count:
            raise OptionError(
                "it does not say which model it belongs to "
                f"(architecture {self.architecture!r}, model_type {model_type!r}, layer_count {layer_count})",
                expected="all three",
                fix="give a folder with the model's config.json, or the three facts",
            )
        return ModelRecord(
            id=self.id or foreign.model_id,
            revision=self.revision,
            architecture=self.architecture,
            model_type=model_type,
            hidden_size=width,
            layer_count=layer_count,
        )
