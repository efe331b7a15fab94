"""Answer questions about photos, and refuse with a photo what is refused without one."""

from __future__ import annotations

from PIL import Image
from transformers import pipeline

import steerkit as sk


class PhotoDesk:
    """A pipeline of transformers, steered by a pack.

    Args:
        model: Repository id or folder of the model.
        pack: Reference of the pack, pinned to its digest.
        revision: Commit of the model's repository; None for a folder.
    """

    def __init__(self, model: str, pack: str, revision: str | None = None) -> None:
        self.pipe = pipeline("image-text-to-text", model=model, revision=revision)
        # with the processor, so that the model's fingerprint can be compared with the pack's
        self.vlm = sk.wrap(self.pipe.model, self.pipe.processor)
        self.vector = sk.load_vector(pack)
        self.strength = self.vector.metadata.strength.recommended

    def answer(self, question: str, photo: Image.Image) -> str:
        """The answer to a question about a photo."""
        with sk.steer(self.vlm, self.vector, strength=self.strength):
            return self.unsteered(question, photo)

    def unsteered(self, question: str, photo: Image.Image) -> str:
        """What the model answers by itself."""
        content = [{"type": "image", "image": photo}, {"type": "text", "text": question}]
        found = self.pipe(
            text=[{"role": "user", "content": content}], return_full_text=False, max_new_tokens=24, do_sample=False
        )
        return found[0]["generated_text"].strip()
