"""LLaVA-1.5, LLaVA-NeXT, LLaVA-OneVision and VipLLaVA, and what is converted to them (ShareGPT4V, BakLLaVA ...)."""

from __future__ import annotations

from steerkit.models import Family

PUBLISHED = (
    "{% for message in messages %}{% set text = message['content'][-1]['text'] %}"
    "{% if message['role'] == 'system' %}{{ text + ' ' }}"
    "{% elif message['role'] == 'user' %}{{ 'USER: ' }}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}{{ text + '\n' }}"
    "{% else %}{{ 'ASSISTANT: ' + text + '</s>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
"""The prompt of LLaVA-1.5, for the repositories that came before chat templates. It has no system turn."""

FAMILIES = (
    # The templates of Llama 3 write the line break behind an image in front of the text.
    Family(types=("llava",), template=PUBLISHED, image=r"(?:{image})+\n?", needs=("patch_size",)),
    Family(types=("llava_next", "vipllava"), image=r"(?:{image})+\n?", needs=("patch_size",)),
    # Here the template begins every text with a line break, whether an image is there or not.
    Family(types=("llava_onevision",), image=r"(?:{image}|<video>)+"),
)
