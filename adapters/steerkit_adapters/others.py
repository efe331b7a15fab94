"""What makes the other families of transformers different; a type that is not named anywhere needs no record."""

from __future__ import annotations

from steerkit.models import Family

_NO_PROMPT = "it does not take an image and a prompt and answer with text"

FAMILIES = (
    # no chat template, no expanded image token
    Family(
        types=("blip",),
        prompt="bare",
        marks="none",
        text_module="text_decoder",
        batch="one",
        max_images=1,
        flat_images=True,
    ),
    Family(types=("git",), prompt="bare", marks="prefix", batch="one", max_images=1, flat_images=True),
    Family(
        types=("kosmos-2",),
        prompt="bare",
        marks="mask:image_embeds_position_mask",
        text_module="text_model",
        max_images=1,
        flat_images=True,
    ),
    Family(
        types=("kosmos-2.5",),
        prompt="bare",
        marks="mask:image_embeds_position_mask",
        batch="one",
        max_images=1,
        flat_images=True,
    ),
    Family(types=("florence2",), prompt="bare", padding="right", max_images=1, flat_images=True),
    Family(types=("paligemma",), prompt="bare", frame=("", "\n"), max_images=1),
    Family(types=("fuyu",), prompt="bare", max_images=1),
    Family(types=("udop",), prompt="bare", marks="none", batch="one", max_images=1),
    Family(types=("pix2struct",), prompt="bare", marks="none", max_images=1),
    # residual streams
    Family(types=("gemma3n",), state="streams_first"),
    Family(types=("glm5_next",), state="streams_third"),
    Family(types=("qwen4_exp",), state="streams_flat"),
    # what runs when
    Family(
        types=("inkling2_loop",),
        loop=("loop_layer_index_start", "loop_layer_index_end", "loop_num_passes"),
    ),
    Family(types=("mllama",), marks="none", only_with_image="cross_attention_layers"),
    Family(types=("idefics",), marks="none"),
    Family(types=("mistral_large4",), positions="counted"),
    # the processor counts in padded rows alone
    Family(types=("ernie4_5_vl_moe",), call={"padding": True, "padding_side": "left"}),
    # the image index is counted across the batch
    Family(types=("hunyuan_vl",), batch="one"),
    # not steered
    Family(types=("diffusion_gemma",), refused="it denoises a canvas of tokens, and writes no token after the other"),
    Family(types=("evolla", "mistral4", "pi0", "pp_formulanet", "vision-encoder-decoder"), refused=_NO_PROMPT),
)
