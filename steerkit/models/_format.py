"""How samples become the inputs of one model: rendered as prompts, and encoded."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from PIL import Image

from steerkit.errors import ProcessorError, SampleError
from steerkit.models._architecture import Inputs
from steerkit.models._asking import start_token
from steerkit.models._encoding import batch_of, padded, tensors
from steerkit.models._processors import unshared
from steerkit.models._questions import PromptQuestions
from steerkit.models._samples import Sample
from steerkit.models._sizes import image_sizes
from steerkit.models._written import numbered

if TYPE_CHECKING:
    from torch import Tensor


class PromptFormat(PromptQuestions):
    """The prompts of one model: samples as text, and texts and images as tensors."""

    # -- rendering ---------------------------------------------------------------------------------------------------

    def render(self, sample: Sample, image_count: int, video_count: int = 0) -> str:
        """The prompt as text, ready to be answered.

        Args:
            sample: The sample; its images are not looked at.
            image_count: Number of images: in the places that the sample gives them, or in front of the text of the
                first user turn; with 0 the prompt is the same one with its images and their placeholders removed.
            video_count: Number of videos, in the places of the sample; 0 as for images.

        Raises:
            SampleError: A text contains the image token, or the family takes fewer images in a prompt.
            ProcessorError: There is no chat template, or it does not place the images.
        """
        if (image_count or video_count) and not self._sees:
            held = f"{image_count} images" if image_count else f"{video_count} videos"
            raise SampleError(
                f"a sample shows {held} to a language model",
                expected="text only",
                fix="use a vision-language model, or leave the images out: images=False",
            )
        if video_count:
            _ = self.written_video  # says why there is none
        self._check_count(image_count)
        self._check_text(sample)
        if self._family.prompt != "chat":
            sample.template_options(None)
            return "\n".join(text for _, text in sample.plain_turns("a model without a chat template"))
        return self._chat(sample, image_count, video_count) if self._sees else self._plain(sample)

    def _plain(self, sample: Sample) -> str:
        """Through the tokenizer's chat template; of a base model without one, the text of a single turn as it is."""
        turns = sample.plain_turns("a language model")
        if self._has_template or "chat_template" in sample.template_options(self._chat_template):
            self._check_bare(sample)
            return self._of_sample(sample, [{"role": role, "content": text} for role, text in turns])
        if len(turns) != 1:
            raise ProcessorError(
                f"a chat of {len(turns)} turns, and this {self._kind} has no chat template",
                expected="the template that the model was trained with, or a sample of one text",
                fix="set tokenizer.chat_template, or write the prompt as one text",
            )
        return turns[0][1]

    def _chat(self, sample: Sample, image_count: int, video_count: int) -> str:
        """Through the processor's chat template.

        A prompt without an image is the one with an image, less the placeholder: whatever else a template does about
        images then stays the same, and the two differ in the image alone.
        """
        self._check_bare(sample)
        videos = sample.video_places
        shown = image_count or sample.places or (0 if videos else 1)
        prompt = self._of_sample(sample, sample.messages(shown))
        written = self._placed
        if videos and prompt.count(self.written_video) != videos:
            raise ProcessorError(
                f"the chat template of this {self._kind} writes {self.written_video!r} "
                f"{prompt.count(self.written_video)} times",
                expected=f"{videos}, once for each video",
            )
        if not shown:
            return prompt if video_count else prompt.replace(self.written_video, "")
        found = len(re.findall(numbered(written), prompt))
        if found != shown:
            raise ProcessorError(
                f"the chat template of this {self._kind} writes {written!r} {found} times",
                expected=f"{shown}, once for each image",
                fix="set processor.chat_template to the template of the vision-language model, not of its language "
                "model",
            )
        self._check_asked(sample, shown, prompt)
        if image_count or video_count:
            return prompt
        prompt = self._without(prompt, written)
        if self.irregular and prompt != self._of_sample(sample, _without_images(sample.messages(shown))):
            raise self.unequal  # what separates images, or counts them, would be left
        return prompt.replace(self.written_video, "") if videos else prompt

    @property
    def _placed(self) -> str:
        """What a rendered prompt holds once for each image."""
        return self.image_token if self._declared is not None else self.written_image

    def _check_asked(self, sample: Sample, shown: int, prompt: str) -> None:
        """Refuse a template that leaves out the question."""
        messages = sample.messages(shown)
        asked = next(message for message in reversed(messages) if message["role"] == "user")
        parts = [part for part in asked["content"] if part["type"] == "text" and part["text"].strip()]
        if all(part["text"].strip() in prompt for part in parts):
            return
        for part in parts:  # changed by the template, or left out: then another text makes no difference
            part["text"] += " and more"
        if self._of_sample(sample, messages) == prompt:
            raise ProcessorError(
                f"the chat template of this {self._kind} leaves out the text of the user's turn",
                expected="a template that writes it into the prompt",
                fix="set processor.chat_template to the template that the model was trained with",
            )

    def _check_count(self, images: int) -> None:
        most = self._family.max_images
        if most is not None and images > most:
            raise SampleError(
                f"a prompt has {images} images",
                expected=f"at most {most}: the family was trained on {'one' if most == 1 else most}",
                fix="leave the others out, or put them together in one image",
            )

    def _check_text(self, sample: Sample) -> None:
        """No text of the sample contains a token that stands for an image or a video."""
        if not self._sees:
            return
        tokens = {self.image_token, *map(str, self.tokenizer.convert_ids_to_tokens(list(self._visual)))}
        tokens |= set(map(str, getattr(self.processor, "all_special_multimodal_tokens", ())))
        for token in sorted(tokens):
            if any(token in text for _, text in sample.turns):
                raise SampleError(
                    f"the text of a sample contains {token!r}",
                    expected="text only: placeholders are put there by the adapter",
                    fix=f"remove {token!r} from the text and pass the images as images",
                )

    @property
    def _visual(self) -> list[int]:
        return sorted(self._architecture.image_token_ids)

    def _check_bare(self, sample: Sample) -> None:
        """No turn is a prompt that was rendered already: the chat template would put it into a turn once more."""
        for _, text in sample.turns:
            token = next((each for each in self.tokenizer.all_special_tokens if text.lstrip().startswith(each)), None)
            if token is not None:
                raise SampleError(
                    f"a text begins with {token!r}, as a prompt that a chat template has made",
                    expected="what the turn says: the chat template writes the tokens around it",
                    fix="pass the turns as (role, text) pairs; the answer goes on in a last one of the assistant",
                )

    # -- encoding ----------------------------------------------------------------------------------------------------

    def encode(
        self, texts: Sequence[str], images: Sequence[Sequence[Image.Image]], videos: Sequence[Sequence[Any]] = ()
    ) -> Inputs:
        """Tokenise rendered prompts, padded on the family's side, and process their images.

        Args:
            texts: Rendered prompts.
            images: The images of each prompt; either every prompt has some or none has.
            videos: The same of videos.

        Returns:
            What the model (or its `text_module`, where there are no images) takes.

        Raises:
            SampleError: Prompts and images do not match.
        """
        self._check_images(texts, images)
        if self._family.prompt == "decoder":
            return self._for_decoder(texts, images)
        if any(videos):
            batch = dict(self._played(texts, images, videos))
        else:
            batch = dict(self._processed(texts, images) if any(images) else self._text_only(texts))
        if "mm_token_type_ids" in self._dropped and "token_type_ids" not in self._dropped:
            # one name for the same thing: some processors know it by the other
            batch.setdefault("token_type_ids", batch.pop("mm_token_type_ids", None))
        rows = batch["input_ids"]
        if any(not len(row) for row in rows):
            raise SampleError(f"the prompt {texts[0]!r} has no tokens", expected="a text")
        self._check_lengths(rows)
        self._check_open(texts, rows)
        self._check_marked(rows, videos if any(videos) else images)
        filler = self.tokenizer.pad_token_id
        filler = self.tokenizer.eos_token_id if filler is None and not self._sees else filler
        return padded(batch, filler, self._family.padding, self._dropped)

    def _for_decoder(self, texts: Sequence[str], images: Sequence[Sequence[Image.Image]]) -> Inputs:
        """The images for the encoder, and what the decoder reads before it writes: its start token and the text."""
        if not any(images):
            raise SampleError(
                "a prompt without an image, and the encoder of this model reads nothing else", expected="an image"
            )
        # Pix2Struct draws questions into the image, where it was trained on them
        drawn = bool(getattr(self.processor.image_processor, "is_vqa", False))
        given = [image for own in images for image in own]
        made = self.processor(images=given, return_tensors="pt", **({"text": list(texts)} if drawn else {}))
        start = start_token(self._model)
        tokenizer = unshared(self.tokenizer)
        rows = [
            [start, *([] if drawn or not text else tokenizer(text, add_special_tokens=False)["input_ids"])]
            for text in texts
        ]
        self._check_lengths(rows)
        return {**tensors(made), **tensors({"decoder_input_ids": rows})}

    def _check_lengths(self, rows: Sequence[Sequence[int]]) -> None:
        if self._architecture.alone and len({len(row) for row in rows}) > 1:
            raise SampleError(
                "prompts of different lengths in one batch, and this model would count the padding",
                expected="batch_size=1, or prompts of the same length",
                fix="batch_size=1",
            )

    def _check_open(self, texts: Sequence[str], rows: Sequence[Sequence[int]]) -> None:
        """Refuse prompts that end with the token that ends answers, which a tokenizer for training adds to every text.

        Raises:
            ProcessorError: It is so.
        """
        if self._architecture.encoder_decoder or not getattr(self.tokenizer, "add_eos_token", False):
            return
        for text, row in zip(texts, rows, strict=True):
            if int(row[-1]) == self.tokenizer.eos_token_id and not text.endswith(str(self.tokenizer.eos_token)):
                raise ProcessorError(
                    f"the tokenizer ends every prompt with {self.tokenizer.eos_token!r}, after which nothing follows",
                    expected="a prompt that the answer goes on",
                    fix="tokenizer.add_eos_token = False, which is True for training alone",
                )

    def _check_marked(self, rows: Any, images: Sequence[Sequence[Image.Image]]) -> None:
        """Refuse images that no token stands for, and a text with such a token.

        Raises:
            ProcessorError: The processor is another model's, or does something else than the model's config says.
        """
        if self._architecture.marks != "ids":
            return
        for row, own in zip(rows, images, strict=True):
            if bool(own) is not any(int(token) in self._architecture.image_token_ids for token in row):
                raise ProcessorError(
                    f"this {self._kind} makes {'no' if own else 'an'} image token {self._visual} of a prompt with "
                    f"{len(own)} images",
                    expected="the token that the model's config names as image_token_id, where an image is",
                    fix="use the processor of this very model, or set config.image_token_id",
                )

    def _check_images(self, texts: Sequence[str], images: Sequence[Sequence[Image.Image]]) -> None:
        if len(texts) != len(images):
            raise SampleError(
                f"{len(texts)} prompts and {len(images)} lists of images", expected="one list for each prompt"
            )
        if any(images) and not all(images):
            raise SampleError(
                "a batch mixes prompts with and without images",
                expected="all of one kind",
                fix="encode the prompts without images in a batch of their own",
            )
        self._check_count(max(map(len, images), default=0))
        if not self._has_template or not self._sees:
            return
        written = self._placed
        for text, own in zip(texts, images, strict=True):
            if (found := len(re.findall(numbered(written), text))) != len(own):
                raise SampleError(
                    f"a prompt has {found} image placeholders and {len(own)} images",
                    expected="as many placeholders as images",
                    fix="render the prompt with the number of its images",
                )

    def _text_only(self, texts: Sequence[str]) -> Mapping[str, Any]:
        """By the processor, where it takes text alone, else by its tokenizer."""
        special = self._adds_special(texts)
        before, after = (part.replace("{bos}", self.tokenizer.bos_token or "") for part in self._family.frame)
        placed = self._family.prompt == "chat" or self._architecture.marks == "none"
        if self._sees and placed and self._text_alone is not None:
            given = [[text] for text in texts] if self._text_alone == "nested" else texts
            return batch_of(self._call, given, None, special, self._flags, self._of_texts)
        framed = self._worded([before + text + after for text in texts])
        made = dict(unshared(self.tokenizer)(framed, add_special_tokens=special, **self._boxes(texts)))
        if self._sees and "token_type_ids" not in self._dropped:  # the image is of another type than the text
            made["token_type_ids"] = [[0] * len(row) for row in made["input_ids"]]
        return made

    @cached_property
    def _text_alone(self) -> str | None:
        """How the processor takes texts without images; None where it refuses them."""
        forms: dict[str, list[Any]] = {"flat": ["a", "b"], "nested": [["a"], ["b"]]}
        for form, texts in forms.items():
            try:
                made = batch_of(self._call, texts, None, True, self._flags, self._of_texts)
            except Exception:  # processors refuse text alone by whatever comes of a missing image
                continue
            if len(made["input_ids"]) == len(texts):
                return form
        return None

    def image_sizes(self, inputs: Mapping[str, Tensor]) -> list[list[tuple[int, int]]]:
        """`(height, width)` of an image that processes to the same shapes, for each image in the inputs.

        In the groups that the image processor wants them in: by prompt where it treats prompts with several images
        differently, otherwise all in one.

        Raises:
            ProcessorError: The inputs do not tell.
        """
        return image_sizes(self.processor, inputs)


def _without_images(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{**each, "content": [part for part in each["content"] if part["type"] != "image"]} for each in messages]
