"""Files of other libraries as they write them, and what they do with them, in plain torch hooks."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import gguf
import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

Layers = Mapping[int, Tensor]
_NONE: Mapping[str, str] = MappingProxyType({})


def control_vector(path: Path, directions: Layers, hint: str = "llama", architecture: str = "controlvector") -> Path:
    """A GGUF file, written with the `gguf` package as llama.cpp's generator and repeng do."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_string("controlvector.model_hint", hint)
    writer.add_uint32("controlvector.layer_count", len(directions))
    for layer, direction in directions.items():
        writer.add_tensor(f"direction.{layer}", direction.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def pickled(path: Path, value: Any) -> Path:
    torch.save(value, path)
    return path


def svec(path: Path, directions: Layers, model_type: str = "llava") -> Path:
    table = {layer: direction.tolist() for layer, direction in directions.items()}
    document = {"model_type": model_type, "directions": table, "explained_variances": dict.fromkeys(table, 0.5)}
    path.write_text(json.dumps(document))
    return path


def lite(path: Path, directions: Layers, **config: Any) -> Path:
    settings = {
        "method": "mean_diff",
        "layers": sorted(directions),
        "target": "residual",
        "target_submodule": None,
        "coeff": 2.0,
        "dtype": "bfloat16",
        "seed": 0,
        "normalize": True,
        "subtract_corpus_mean": False,
    } | config
    tensors = {f"layer{layer}.v": direction for layer, direction in directions.items()}
    save_file(tensors, path, metadata={"cfg": json.dumps(settings)})
    return path


def probe(
    path: Path, layer: int, direction: Tensor, site: str = "resid_post", settings: Mapping[str, str] = _NONE
) -> Path:
    metadata = {
        "schema_version": "3",
        "layer": str(layer),
        "n_total_layers": "4",
        "normalized_depth": "0.5",
        "model_id": "somebody/model",
        "hook_site": site,
        "hook_name": f"blocks.{layer}.hook_{site}",
        "default_method": "logistic",
        "auto_alpha": "",
        "bias_json": "{}",
        "metrics_json": "{}",
        "created_at": "",
        "extras_json": "{}",
    } | dict(settings)
    save_file({"direction.logistic": direction, "direction.mass_mean": -direction}, path, metadata=metadata)
    return path


def plain(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    """Safetensors, usually without metadata."""
    save_file(dict(tensors), path, metadata)
    return path


def numpy_file(path: Path, value: Any) -> Path:
    """An array, or arrays by name, as numpy writes them."""
    if isinstance(value, Mapping):
        np.savez(path, **value)
    else:
        np.save(path, value)
    return path


def stack(rows: int, directions: Layers, width: int = 48) -> Tensor:
    """`[rows, width]`, where the rows that are not given are of another size."""
    made = torch.full((rows, width), 1e3)
    for row, direction in directions.items():
        made[row] = direction
    return made


def refusal_direction(folder: Path, layer: Any, direction: Tensor) -> Path:
    (folder / "direction_metadata.json").write_text(json.dumps({"pos": -1, "layer": layer}))
    return pickled(folder / "direction.pt", direction)


def astra(path: Path, activations: Mapping[int, Tensor]) -> Path:
    """Two prompts, whose activations at each index have the given mean."""
    spread = {index: torch.linspace(-1, 1, len(mean)) for index, mean in activations.items()}
    prompts = {
        prompt: {index: [mean + sign * spread[index]] for index, mean in activations.items()}
        for prompt, sign in ((0, 1.0), (1, -1.0))
    }
    return pickled(path, prompts)


@contextmanager
def hooked(modules: Mapping[nn.Module, Callable[[Tensor], Tensor]], *, at_input: bool = False) -> Iterator[None]:
    """Replace what modules return, or what they are given, by a function of it."""

    def after(change: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

        return hook

    def before(change: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> Any:
            if args:
                return (change(args[0]), *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": change(kwargs["hidden_states"])}

        return hook

    handles = [
        module.register_forward_pre_hook(before(change), with_kwargs=True)
        if at_input
        else module.register_forward_hook(after(change))
        for module, change in modules.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def adding(direction: Tensor, dose: float = 1.0) -> Callable[[Tensor], Tensor]:
    return lambda h: h + dose * direction


def directions(seed: int, *layers: int, width: int = 48) -> dict[int, Tensor]:
    """Random directions, large enough to change the answer of a tiny model."""
    random = np.random.default_rng(seed)
    return {layer: torch.from_numpy(random.normal(size=width).astype(np.float32)) for layer in layers}
