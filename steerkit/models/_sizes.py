"""How large an image is that processes to the shapes of one that is gone, read off the inputs of a model."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from steerkit.errors import ProcessorError

if TYPE_CHECKING:
    from torch import Tensor


def image_sizes(processor: Any, inputs: Mapping[str, Tensor]) -> list[list[tuple[int, int]]]:
    """`(height, width)` for each image, in the groups that the image processor wants them in.

    Raises:
        ProcessorError: The inputs do not tell.
    """
    images = processor.image_processor
    patch = getattr(images, "encoder_patch_size", None) or getattr(images, "patch_size", None)
    if "image_grid_thw" in inputs and patch is not None:
        return [_rows(inputs["image_grid_thw"][:, 1:], _side(patch))]
    if "image_sizes" in inputs:
        sizes = _rows(inputs["image_sizes"])
        if "batch_num_images" not in inputs:
            return [sizes]
        # OneVision tiles an image only where it is the only one of its prompt
        ordered = iter(sizes)
        return [list(itertools.islice(ordered, int(count))) for count in inputs["batch_num_images"]]
    for key in ("spatial_shapes", "target_sizes", "image_grid_hw"):
        if key in inputs and patch is not None:
            return [_rows(inputs[key], _side(patch))]
    pixels = inputs.get("pixel_values")
    if pixels is not None and pixels.dim() == 4 and "image_grid_thw" not in inputs:  # else of patches
        return [[(int(pixels.shape[2]), int(pixels.shape[3]))] * int(pixels.shape[0])]
    raise ProcessorError(
        f"the size of an image can't be read off {', '.join(f'{k} {tuple(v.shape)}' for k, v in inputs.items())}",
        expected="a call whose samples are known: vlm.generate(samples)",
        fix="fit the method with a text counterpart, or answer samples",
    )


def _side(patch: Any) -> int:
    return int(getattr(patch, "height", patch) if not isinstance(patch, Mapping) else patch["height"])


def _rows(sizes: Tensor, scale: int = 1) -> list[tuple[int, int]]:
    return [(int(height) * scale, int(width) * scale) for height, width in sizes.tolist()]
