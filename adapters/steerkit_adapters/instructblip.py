"""BLIP-2 and InstructBLIP: no chat template, and a language model that answers prompts without an image by itself."""

from __future__ import annotations

from dataclasses import replace

from steerkit.models import Family

BLIP_2 = Family(
    types=("blip-2",),
    needs=("num_query_tokens",),
    prompt="bare",
    text_module="language_model",
    max_images=1,
    flat_images=True,
)

FAMILIES = (
    BLIP_2,
    # Revisions of Salesforce's repositories name InstructBlipVideoProcessor, which has no image processor.
    replace(BLIP_2, types=("instructblip",), processor_class="InstructBlipProcessor"),
)
