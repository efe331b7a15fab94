"""What makes the other families of transformers different; a type that is not named anywhere needs no record."""

from __future__ import annotations

from steerkit.models import Family

_PADDED = {"padding": True, "padding_side": "left"}
"""For processors that count in padded rows alone."""

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
    # its vision tower is inside the decoder, and may be as deep
    Family(
        types=("git",),
        layers="git.encoder.layer",
        prompt="bare",
        marks="prefix",
        batch="one",
        max_images=1,
        flat_images=True,
    ),
    Family(
        types=("kosmos-2",),
        prompt="bare",
        marks="mask:image_embeds_position_mask",
        text_module="text_model",
        batch="one",
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
        call={"return_tensors": "pt"},
    ),
    Family(
        types=("florence2",),
        prompt="bare",
        call={"add_special_tokens": False},  # its processor writes them itself
        frame=("<s>", "</s>"),
        padding="right",
        max_images=1,
        flat_images=True,
    ),
    Family(types=("paligemma",), prompt="bare", frame=("{bos}", "\n"), max_images=1, call=_PADDED),
    # the marker that an answer begins
    Family(types=("fuyu",), prompt="bare", frame=("", "<0x04>"), max_images=1),
    Family(types=("udop",), prompt="bare", marks="none", batch="one", max_images=1, flat_images=True, boxes=True),
    # the encoder reads the image alone
    Family(
        types=("pix2struct", "pp_formulanet", "vision-encoder-decoder"),
        prompt="decoder",
        marks="none",
        batch="one",
        max_images=1,
    ),
    # an image is shown as a clip of equal frames
    Family(
        types=("instructblipvideo",),
        needs=("num_query_tokens",),
        prompt="bare",
        text_module="language_model",
        max_images=1,
        frames=4,
    ),
    # residual streams
    Family(types=("gemma3n",), state="streams_first"),
    Family(types=("glm5_next", "hy_v4_vl"), state="streams_third"),
    Family(types=("qwen4_exp",), state="streams_flat"),
    Family(types=("gemma3n_text",), auto_class="AutoModelForCausalLM", state="streams_first"),
    Family(types=("glm5_next_text", "hy_v4"), auto_class="AutoModelForCausalLM", state="streams_third"),
    Family(types=("deepseek_v4",), auto_class="AutoModelForCausalLM", state="streams_third", batch="one"),
    Family(types=("qwen4_exp_text",), auto_class="AutoModelForCausalLM", state="streams_flat"),
    # what runs when
    Family(
        types=("inkling2_loop",),
        loop=("loop_layer_index_start", "loop_layer_index_end", "loop_num_passes"),
    ),
    # tiles of images that other prompts of a batch lack are attended to
    Family(types=("mllama",), marks="none", only_with_image="cross_attention_layers", batch="one", call=_PADDED),
    # the processor writes the first token itself
    Family(
        types=("idefics",),
        prompt="bare",
        marks="none",
        call={**_PADDED, "add_special_tokens": False, "return_tensors": "pt"},
    ),
    # the processor counts in padded rows alone
    Family(types=("ernie4_5_vl_moe",), call=_PADDED),
    # the image index is counted across the batch; images of other sizes are padded before they become codes
    Family(types=("hunyuan_vl", "emu3"), batch="one"),
    # the processor is told policies, not prompts: its base class takes both
    Family(types=("shieldgemma2",), called_as="ProcessorMixin", max_images=1),
    Family(types=("got_ocr2",), max_images=1, flat_images=True),
    # padding counts: as learned positions, in recurrent states, or where neighbours are compressed into one
    Family(
        types=(
            *"bart bigbird_pegasus blenderbot blenderbot-small marian mbart mvp pegasus plbart trocr whisper".split(),
            *"recurrent_gemma roformer".split(),
            "minimax",  # the mask of a step counts what the first layer keeps: nothing, where it is recurrent
            "doge",  # its mixture of experts chooses for a token by the others of the batch
        ),
        auto_class="AutoModelForCausalLM",
        batch="one",
    ),
    # positions that the model itself counts without padding, from another number than 0
    Family(
        types=(*"camembert data2vec-text roberta roberta-prelayernorm xlm-roberta xlm-roberta-xl xmod".split(),),
        auto_class="AutoModelForCausalLM",
        positions="own",
    ),
    # not steered
    Family(types=("diffusion_gemma",), refused="it denoises a canvas of tokens, and writes no token after the other"),
    Family(types=("evolla",), refused="it reads a protein, and no image"),
    Family(types=("pi0",), refused="it answers with the movements of a robot, and not with text"),
    Family(
        types=("cpmant",),
        auto_class="AutoModelForCausalLM",
        refused="it puts positions of its own in front of every prompt",
    ),
    Family(
        types=("prophetnet",),
        auto_class="AutoModelForCausalLM",
        refused="its blocks hold the states of several predictions one behind the other",
    ),
    Family(
        types=("xlnet",),
        auto_class="AutoModelForCausalLM",
        refused="its blocks hold the tokens, and not the prompts, in the first dimension",
    ),
    Family(
        types=("rwkv", "xlstm"),
        auto_class="AutoModelForCausalLM",
        refused="its state is in no cache of transformers, and does not say how many positions it is of",
    ),
    Family(
        types=("xlm",),
        auto_class="AutoModelForCausalLM",
        refused="it has no list of blocks: their parts are in lists beside each other",
    ),
    # beside a tower of images
    Family(types=("phi4_multimodal",), auto_class="AutoModelForCausalLM", layers="model.layers"),
    # its config counts attentions, two in a block
    Family(types=("longcat_flash",), auto_class="AutoModelForCausalLM", layers="model.layers"),
    # a language model, which transformers lists among those that read images
    Family(types=("mistral4",), marks=""),
)
