"""What a processor and its chat template say of prompts when they are asked."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from steerkit._text import described
from steerkit.errors import ProcessorError, SampleError
from steerkit.models._architecture import Architecture
from steerkit.models._asking import takes
from steerkit.models._dates import on_the_day
from steerkit.models._encoding import batch_of
from steerkit.models._family import Family
from steerkit.models._processors import NoVideo, tokenizer_of, unshared, with_padding
from steerkit.models._samples import Sample
from steerkit.models._videos import opened_video
from steerkit.models._written import inserted, numbered, pattern_of

if TYPE_CHECKING:
    from torch import nn

_PAGE = [0.0, 0.0, 1000.0, 1000.0]
"""The whole page, for a word of which nobody says where it stands."""
_NOTHING = r"(?!)"
"""Matches nowhere: no text stands for an image."""
_MARK = "\u00b6marker\u00b6"
"""The text of a sample that is rendered to see where the template puts it."""


class PromptQuestions:
    """What is asked of a processor, and answered by it.

    Args:
        model: The Hugging Face model.
        processor: Its processor; of a model without images, its tokenizer.
        family: What is declared of its family.
        architecture: Where things are in the model.
    """

    def __init__(self, model: nn.Module, processor: Any, family: Family, architecture: Architecture) -> None:
        if "padding" in family.call and tokenizer_of(processor).pad_token is None:
            processor = with_padding(processor)
        self.processor = processor
        self._model = model
        self.tokenizer = tokenizer_of(processor)
        self._family = family
        self._architecture = architecture
        self._sees = architecture.takes_images
        self._takes = partial(takes, model)
        self._dropped = {name for name in ("token_type_ids", "mm_token_type_ids") if not takes(model, name)} | {
            "labels"
        }
        self._flags = {"return_mm_token_type_ids": True} if self._sees and takes(model, "mm_token_type_ids") else {}

    # -- what is asked -----------------------------------------------------------------------------------------------

    @property
    def image_token(self) -> str:
        """The token that stands for image content in a tokenised prompt."""
        ids = sorted(self._architecture.image_token_ids - self._architecture.video_token_ids)
        if ids:
            return str(self.tokenizer.convert_ids_to_tokens(ids[0]))
        return str(getattr(self.processor, "image_token", None) or "<image>")

    @cached_property
    def written_image(self) -> str:
        """What the chat template writes for one image: the difference that one more makes.

        Raises:
            ProcessorError: It writes none, or something that can't be taken out again.
        """
        one, two, none = self._shown
        for shorter, longer in ((one, two), (none, one)):
            written = inserted(shorter, longer)
            known = written.strip() and re.search(numbered(written), one)
            if known and self._without(one, written) in (self._without(two, written), none):
                return written
        raise self.unequal

    @cached_property
    def irregular(self) -> bool:
        """Whether the chat template writes several images in another way than one."""
        if not self._sees or not self._has_template or self._declared is not None:
            return False
        one, two, _ = (self._without(each, self.written_image) for each in self._shown)
        return one != two

    @cached_property
    def _shown(self) -> tuple[str, str, str]:
        """A prompt with an image, with two and with none."""
        one, two, none = (self._template([("user", _MARK)], *["image"] * count) for count in (1, 2, 0))
        return one, two, none

    @property
    def unequal(self) -> ProcessorError:
        """That an image can't be taken out of a rendered prompt."""
        one, _, none = self._shown
        return ProcessorError(
            f"the chat template of this {self._kind} writes {self.image_token!r} 0 times"
            if one == none
            else f"the chat template of this {self._kind} writes several images in another way than one",
            expected="1, once for each image",
            fix="set processor.chat_template to the template of the vision-language model, not of its language model; "
            "or declare image in a Family record",
        )

    @cached_property
    def written_video(self) -> str:
        """What the chat template writes for one video.

        Raises:
            ProcessorError: The processor takes none, or the template writes none.
        """
        if getattr(self.processor, "video_processor", None) is None or self._family.prompt == "bare":
            raise ProcessorError(f"this {self._kind} takes no videos", expected="images")
        none, one, two = (self._template([("user", _MARK)], *["video"] * count) for count in range(3))
        for shorter, longer in ((one, two), (none, one)):
            written = inserted(shorter, longer)
            if written.strip() and one.replace(written, "") == two.replace(written, ""):
                return written
        raise ProcessorError(
            f"the chat template of this {self._kind} writes nothing for a video, or several in another way than one",
            expected="a template that places videos",
            fix="set processor.chat_template to the template that the model was trained with",
        )

    def check_template_options(self, sample: Sample) -> None:
        """Refuse options of a sample's that the chat template does not read.

        Raises:
            SampleError: There is such an option, or no template.
        """
        sample.template_options(self._chat_template if self._family.prompt == "chat" else None)

    def check_image_token(self, name: str) -> None:
        """Refuse a processor that marks images by a token of another model.

        What a processor calls its image token may only open an image, and another one stand for its content: then a
        blank image tells.

        Raises:
            ProcessorError: It is so.
        """
        ids = self._architecture.image_token_ids
        token = str(getattr(self.processor, "image_token", None))
        number = self.tokenizer.convert_tokens_to_ids(token)
        # what is not in the vocabulary has the number of the unknown token, or none
        known = number is not None and self.tokenizer.convert_ids_to_tokens(number) == token
        if not self._sees or not known or not ids or number in ids:
            return
        if not ids & self.tokenizer.added_tokens_decoder.keys() or not ids & set(self._blank(token)):
            raise ProcessorError(
                f"the image token of this {self._kind} is {token!r} with the id {number}, and that of "
                f"this {name} has the id {' or '.join(map(str, sorted(ids)))}",
                expected="the processor of this very model",
                fix="load both by the same name: sk.load(name), or AutoProcessor.from_pretrained(name)",
            )

    @cached_property
    def _declared(self) -> str | None:
        """The family's expression of an image, unless the chat template writes more for one than that and blanks."""
        if self._family.image is None:
            return None
        found = self._family.image.replace("{image}", re.escape(self.image_token))
        if not self._has_template:
            return found
        one, _, none = ("".join(re.sub(found, "", each).split()) for each in self._shown)
        # what takes more away is for the check at loading to find
        return found if len(one) <= len(none) else None

    @cached_property
    def placeholder(self) -> str:
        """A regular expression of everything that stands for the images of a prompt once it is tokenised."""
        if not self._sees:
            return _NOTHING
        if self._declared is not None:
            return self._declared
        if self._family.prompt == "bare":
            return f"(?:{re.escape(self.image_token)})+"
        pattern = pattern_of([self._expanded(self.written_image)], self._added)
        return "|".join(filter(None, (self._video_pattern(pattern), pattern)))

    def _video_pattern(self, of_image: str) -> str | None:
        """The same of the videos; None where the template and the processor write none.

        Where the processor's video part is waived, that of an image with the token of a video.
        """
        part, token = getattr(self.processor, "video_processor", None), getattr(self.processor, "video_token", None)
        if part is None:
            return None
        if isinstance(part, NoVideo):
            return None if token is None else of_image.replace(re.escape(self.image_token), re.escape(str(token)))
        try:
            written = self.written_video
        except Exception:  # of any type, the template's own: then it writes no prompt with a video
            return None
        try:
            return pattern_of([self._expanded(written, frames) for frames in (2, 4, 6, 7)], self._added, times=True)
        except Exception as error:
            if self._architecture.video_token_ids:
                return None  # one that is met is refused, by its tokens
            raise ProcessorError(
                f"this {self._kind} writes videos as images, and fails on a blank one: {described(error)}",
                expected="a processor that shows what it writes for a video",
                fix="answer samples: vlm.generate(samples); or use a dataset-level vector, which needs no such view",
            ) from error

    @cached_property
    def user_marker(self) -> str | None:
        """What opens the user's turn; None where the template has no system turn before it, or does not tell."""
        if self._family.user_marker is not None or not self._has_template:
            return self._family.user_marker
        try:
            told, plain = (self._template([*turns, ("user", _MARK)]) for turns in ([("system", "\u00a7")], []))
            closing = self._template([("user", _MARK), ("assistant", "\u00a7")], opens=False).rpartition("\u00a7")[2]
        except Exception:  # templates raise their own, of any type, for turns that they do not have
            return None
        if "\u00a7" not in told:
            return None
        between = told.partition("\u00a7")[2].partition(_MARK)[0]
        before = plain.partition(_MARK)[0]
        while between and not before.endswith(between):
            between = between[1:]
        return (between.removeprefix(closing) if closing.strip() else between).strip() or None

    @property
    def _kind(self) -> str:
        return type(self.processor).__name__

    @property
    def _added(self) -> list[str]:
        """Added tokens, the longest first."""
        return sorted((str(token) for token in self.tokenizer.get_added_vocab()), key=len, reverse=True)

    @property
    def _has_template(self) -> bool:
        return self._family.prompt == "chat" and self._chat_template is not None

    @property
    def ends_open(self) -> bool:
        """Whether the decoder's prompt ends where a chat template lets the answer go on."""
        return self._has_template and not self._architecture.encoder_decoder

    @property
    def _chat_template(self) -> Any:
        own = getattr(self.processor, "chat_template", None)
        return own or self._family.template or getattr(self.tokenizer, "chat_template", None)

    def _template(self, turns: Sequence[tuple[str, str]], *shown: str, opens: bool = True) -> str:
        """Texts through the chat template, with images or videos in front of each."""
        front = [{"type": kind} for kind in shown]
        messages: list[dict[str, Any]] = [
            {"role": role, "content": [*front, {"type": "text", "text": text}] if self._sees else text}
            for role, text in turns
        ]
        return self._rendered(messages, {}, opens=opens)

    def _of_sample(self, sample: Sample, messages: list[dict[str, Any]]) -> str:
        """A sample through the chat template, by messages that may say something else than its own."""
        options = sample.template_options(self._chat_template)
        return self._rendered(messages, options, opens=not sample.continues, goes_on=sample.continues)

    def _rendered(
        self, messages: list[dict[str, Any]], options: dict[str, Any], *, opens: bool, goes_on: bool = False
    ) -> str:
        """Messages through the chat template."""
        template = self._chat_template
        if template is None:
            raise ProcessorError(
                f"this {self._kind} has no chat template",
                expected="the template that the model was trained with",
                fix="set processor.chat_template, use a revision of the repository that has a chat_template file, or "
                "declare template or prompt in a Family record",
            )
        own = getattr(self.processor, "chat_template", None)
        if not own and self._sees:
            options = {"chat_template": template, **options}
        if isinstance(template, str) and (with_day := on_the_day(template)) != template:
            options["chat_template"] = with_day
        return self.processor.apply_chat_template(
            messages,
            **options,
            tokenize=False,
            add_generation_prompt=opens,
            continue_final_message=goes_on,
        )

    def _without(self, prompt: str, written: str) -> str:
        """A rendered prompt without its images."""
        if self._declared is not None:
            return re.sub(self._declared, "", prompt)
        return re.sub(numbered(written), "", prompt)

    def _blank(self, written: str, frames: int = 0) -> list[int]:
        """The tokens that the processor makes of a written image, or of a video of some frames, between two words."""
        texts = [f"begin{written}end"]
        if frames:
            clip = np.zeros((frames, 64, 64, 3), dtype=np.uint8)
            told = {
                "total_num_frames": frames,
                "fps": 2.0,
                "duration": frames / 2,
                "frames_indices": list(range(frames)),
            }
            options = {
                "do_sample_frames": False,
                "video_metadata": [told],
                "return_metadata": True,
                "return_tensors": "pt",
            }
            made = batch_of(
                self._call, texts, None, False, {"videos": [clip], "videos_kwargs": options}, self._of_texts
            )
        else:
            picture = Image.new("RGB", (64, 64), (255, 255, 255))
            made = self._processed(texts, [[picture]], special=False)
        return [int(each) for each in made["input_ids"][0]]

    def _expanded(self, written: str, frames: int = 0) -> str:
        """What the processor makes of a written image or video, as text."""
        ids = self._blank(written, frames)
        text = self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text.partition("begin")[2].rpartition("end")[0] or written

    # -- the processor, called -------------------------------------------------------------------------------------

    def _adds_special(self, texts: Sequence[str]) -> bool:
        """Whether the tokenizer adds its own: some templates, and some processors, write what begins a text."""
        for said in (self._family.call, getattr(type(self.processor), "text_kwargs", None) or {}):
            if "add_special_tokens" in said:
                return bool(said["add_special_tokens"])
        begin = self.tokenizer.bos_token
        return begin is None or not all(text.startswith(begin) for text in texts)

    def _processed(
        self, texts: Sequence[str], images: Sequence[Sequence[Image.Image]], special: bool | None = None
    ) -> Mapping[str, Any]:
        """The processor's batch, not padded."""
        nested = [list(own) for own in images]
        if (frames := self._family.frames) is not None:
            nested = [self._clip(own, frames) for own in nested]
        given = [image for own in nested for image in own] if self._family.flat_images else nested
        special = self._adds_special(texts) if special is None else special
        return batch_of(
            self._call, self._worded(texts), given, special, {**self._flags, **self._boxes(texts)}, self._of_texts
        )

    def _played(
        self, texts: Sequence[str], images: Sequence[Sequence[Image.Image]], videos: Sequence[Sequence[Any]]
    ) -> Mapping[str, Any]:
        """The processor's batch of prompts with videos, not padded."""
        if isinstance(self.processor.video_processor, NoVideo):
            self.processor.video_processor()  # says what is missing
        given = [opened_video(video) for own in videos for video in own]
        options = {"videos": given, "videos_kwargs": {"return_metadata": True, "return_tensors": "pt"}, **self._flags}
        shown = [list(own) for own in images] if any(images) else None
        made = dict(batch_of(self._call, texts, shown, self._adds_special(texts), options, self._of_texts))
        numbers = {
            key: torch.tensor(value, device="cpu")
            for key, value in made.items()
            if self._takes(key) and isinstance(value, list) and all(isinstance(each, (int, float)) for each in value)
        }
        return made | numbers

    @property
    def _call(self) -> Any:
        """The processor, or what a base of its class does with it."""
        name, processor = self._family.called_as, unshared(self.processor)
        if name is None:
            return processor
        import transformers

        return partial(getattr(transformers, name).__call__, processor)

    @property
    def _of_texts(self) -> dict[str, object]:
        return {**self._family.call, **({"is_split_into_words": True} if self._family.boxes else {})}

    def _worded(self, texts: Sequence[str]) -> list[Any]:
        return [text.split() for text in texts] if self._family.boxes else list(texts)

    def _boxes(self, texts: Sequence[str]) -> dict[str, object]:
        return {"boxes": [[_PAGE] * len(text.split()) for text in texts]} if self._family.boxes else {}

    @staticmethod
    def _clip(own: list[Image.Image], frames: int) -> list[Image.Image]:
        if frames % len(own):
            raise SampleError(
                f"a prompt has {len(own)} images, and the family takes clips of {frames} frames",
                expected=f"one image, or {frames}",
            )
        return [image for image in own for _ in range(frames // len(own))]
