"""How samples become the inputs of one model: what its processor and its chat template say when they are asked."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from PIL import Image

from steerkit.errors import ProcessorError, SampleError
from steerkit.models._architecture import Architecture, Inputs
from steerkit.models._asking import takes
from steerkit.models._encoding import batch_of, padded, tensors
from steerkit.models._family import Family
from steerkit.models._protocols import tokenizer_of
from steerkit.models._samples import Sample
from steerkit.models._sizes import image_sizes

if TYPE_CHECKING:
    from torch import Tensor, nn

_PAGE = [0, 0, 1000, 1000]
_NOTHING = r"(?!)"
"""Matches nowhere: no text stands for an image."""
_MARK = "\u00b6marker\u00b6"
"""The text of a sample that is rendered to see where the template puts it."""


class PromptFormat:
    """The prompts of one model.

    Args:
        model: The Hugging Face model.
        processor: Its processor; of a model without images, its tokenizer.
        family: What is declared of its family.
        architecture: Where things are in the model.
    """

    def __init__(self, model: nn.Module, processor: Any, family: Family, architecture: Architecture) -> None:
        self.processor = processor
        self.tokenizer = tokenizer_of(processor)
        self._family = family
        self._architecture = architecture
        self._sees = architecture.takes_images
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
        one, two, none = (self._template([("user", _MARK)], count) for count in (1, 2, 0))
        for shorter, longer in ((one, two), (none, one)):
            start = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(shorter, longer, strict=False)))
            written = longer[start : start + len(longer) - len(shorter)]
            if written.strip() and self._without(one, written) == self._without(two, written):
                return written
        found = one.count(self.image_token)
        raise ProcessorError(
            f"the chat template of this {self._kind} writes {self.image_token!r} {found} times"
            if found != 1
            else f"the chat template of this {self._kind} writes several images in another way than one",
            expected="1, once for each image",
            fix="set processor.chat_template to the template of the vision-language model, not of its language model; "
            "or declare image in a Family record",
        )

    def check_image_token(self, name: str) -> None:
        """Refuse a processor that marks images by a token of another model.

        What a processor calls its image token may only open an image, and another one stand for its content: then a
        blank image tells.

        Raises:
            ProcessorError: It is so.
        """
        ids = self._architecture.image_token_ids
        token = str(getattr(self.processor, "image_token", None))
        number = self.tokenizer.get_vocab().get(token)
        if not self._sees or number is None or not ids or number in ids:
            return
        if not ids & self.tokenizer.added_tokens_decoder.keys() or not ids & set(self._blank(token)):
            raise ProcessorError(
                f"the image token of this {self._kind} is {token!r} with the id {number}, and that of "
                f"this {name} has the id {' or '.join(map(str, sorted(ids)))}",
                expected="the processor of this very model",
                fix="load both by the same name: sk.load(name), or AutoProcessor.from_pretrained(name)",
            )

    @cached_property
    def placeholder(self) -> str:
        """A regular expression of everything that stands for the images of a prompt once it is tokenised."""
        if not self._sees:
            return _NOTHING
        token = re.escape(self.image_token)
        if self._family.image is not None:
            return self._family.image.replace("{image}", token)
        if self._family.prompt == "bare":
            return f"(?:{token})+"
        written = self.written_image
        sized = self._expanded(written)
        video = getattr(self.processor, "video_token", None)
        pattern = _pattern(sized, self._added)
        if video is None or str(video) == self.image_token or self.image_token not in written:
            return pattern
        return f"{pattern}|(?:<\\d+(?:\\.\\d+)? seconds>)?{pattern.replace(token, re.escape(str(video)))}"

    @cached_property
    def user_marker(self) -> str | None:
        """What opens the user's turn; None where the template has no system turn before it, or does not tell."""
        if self._family.user_marker is not None or not self._has_template:
            return self._family.user_marker
        try:
            told, plain = (self._template([*turns, ("user", _MARK)], 0) for turns in ([("system", "\u00a7")], []))
            closing = self._template([("user", _MARK), ("assistant", "\u00a7")], 0, opens=False).rpartition("\u00a7")[2]
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
    def _chat_template(self) -> Any:
        own = getattr(self.processor, "chat_template", None)
        return own or self._family.template or getattr(self.tokenizer, "chat_template", None)

    def _template(self, turns: Sequence[tuple[str, str]], images: int, *, opens: bool = True) -> str:
        return self._rendered(Sample(tuple(turns)) if opens else _Turns(turns), images, opens)

    def _rendered(self, sample: Any, images: int, opens: bool = True) -> str:
        """A sample through the chat template."""
        template = self._chat_template
        if template is None:
            raise ProcessorError(
                f"this {self._kind} has no chat template",
                expected="the template that the model was trained with",
                fix="set processor.chat_template, or use a revision of the repository that has a chat_template file",
            )
        options = sample.template_options(template)
        own = getattr(self.processor, "chat_template", None)
        if not own and self._sees:
            options = {"chat_template": template, **options}
        messages = (
            sample.messages(images)
            if self._sees
            else [{"role": role, "content": text} for role, text in sample.plain_turns("a language model")]
        )
        return self.processor.apply_chat_template(
            messages,
            **options,
            tokenize=False,
            add_generation_prompt=opens and not sample.continues,
            continue_final_message=opens and sample.continues,
        )

    def _without(self, prompt: str, written: str) -> str:
        """A rendered prompt without its images."""
        if self._family.image is not None:
            return re.sub(self.placeholder, "", prompt)
        return re.sub(_numbered(written), "", prompt)

    def _blank(self, written: str) -> list[int]:
        """The tokens that the processor makes of the written image, between two words."""
        picture = Image.new("RGB", (64, 64), (255, 255, 255))
        row = self._processed([f"begin{written}end"], [[picture]], special=False)["input_ids"][0]
        return [int(each) for each in row]

    def _expanded(self, written: str) -> str:
        """What the processor makes of the written image, as text."""
        ids = self._blank(written)
        text = self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text.partition("begin")[2].rpartition("end")[0] or written

    # -- rendering ---------------------------------------------------------------------------------------------------

    def render(self, sample: Sample, image_count: int) -> str:
        """The prompt as text, ready to be answered.

        Args:
            sample: The sample; its images are not looked at.
            image_count: Number of images: in the places that the sample gives them, or in front of the text of the
                first user turn; with 0 the prompt is the same one with its images and their placeholders removed.

        Raises:
            SampleError: A text contains the image token, or the family takes fewer images in a prompt.
            ProcessorError: There is no chat template, or it does not place the images.
        """
        if image_count and not self._sees:
            raise SampleError(
                f"a sample shows {image_count} images to a language model",
                expected="text only",
                fix="use a vision-language model, or leave the images out: images=False",
            )
        self._check_count(image_count)
        self._check_text(sample)
        if self._family.prompt == "bare":
            sample.template_options(None)
            return self._framed("\n".join(text for _, text in sample.plain_turns("a model without a chat template")))
        return self._chat(sample, image_count) if self._sees else self._plain(sample)

    def _framed(self, text: str) -> str:
        return text

    def _plain(self, sample: Sample) -> str:
        """Through the tokenizer's chat template; of a base model without one, the text of a single turn as it is."""
        turns = sample.plain_turns("a language model")
        if self._has_template or "chat_template" in sample.template_options(self._chat_template):
            self._check_bare(sample)
            return self._rendered(sample, 0)
        if len(turns) != 1:
            raise ProcessorError(
                f"a chat of {len(turns)} turns, and this {self._kind} has no chat template",
                expected="the template that the model was trained with, or a sample of one text",
                fix="set tokenizer.chat_template, or write the prompt as one text",
            )
        return turns[0][1]

    def _chat(self, sample: Sample, image_count: int) -> str:
        """Through the processor's chat template.

        A prompt without an image is the one with an image, less the placeholder: whatever else a template does about
        images then stays the same, and the two differ in the image alone.
        """
        self._check_bare(sample)
        shown = image_count or sample.places or 1
        prompt = self._rendered(sample, shown)
        written = self.image_token if self._family.image is not None else self.written_image
        found = len(re.findall(_numbered(written), prompt))
        if found != shown:
            raise ProcessorError(
                f"the chat template of this {self._kind} writes {written!r} {found} times",
                expected=f"{shown}, once for each image",
                fix="set processor.chat_template to the template of the vision-language model, not of its language "
                "model",
            )
        self._check_asked(sample, shown, prompt)
        return prompt if image_count else self._without(prompt, written)

    def _check_asked(self, sample: Sample, shown: int, prompt: str) -> None:
        """Refuse a template that leaves out the question."""
        messages = sample.messages(shown)
        asked = next(message for message in reversed(messages) if message["role"] == "user")
        parts = [part for part in asked["content"] if part["type"] == "text" and part["text"].strip()]
        if all(part["text"].strip() in prompt for part in parts):
            return
        for part in parts:  # changed by the template, or left out: then another text makes no difference
            part["text"] += " and more"
        if self._rendered(_Messages(sample, messages), shown) == prompt:
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

    def encode(self, texts: Sequence[str], images: Sequence[Sequence[Image.Image]]) -> Inputs:
        """Tokenise rendered prompts, padded on the family's side, and process their images.

        Args:
            texts: Rendered prompts.
            images: The images of each prompt; either every prompt has some or none has.

        Returns:
            What the model (or its `text_module`, where there are no images) takes.

        Raises:
            SampleError: Prompts and images do not match.
        """
        self._check_images(texts, images)
        if any(images):
            batch = self._processed(texts, images)
        else:
            batch = self._text_only(texts)
        rows = batch.get("input_ids", ())
        if not len(rows) and self._family.prompt == "bare":  # the prompt is in the image
            return tensors(batch)
        if any(not len(row) for row in rows):
            raise SampleError(f"the prompt {texts[0]!r} has no tokens", expected="a text")
        lengths = {len(row) for row in rows}
        if self._family.batch == "one" and len(lengths) > 1:
            raise SampleError(
                "prompts of different lengths in one batch, and the positions of this family would count the padding",
                expected="batch_size=1, or prompts of the same length",
                fix="batch_size=1",
            )
        self._check_marked(rows, images)
        filler = self.tokenizer.pad_token_id
        filler = self.tokenizer.eos_token_id if filler is None and not self._sees else filler
        return padded(batch, filler, self._family.padding, self._dropped)

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
        written = self.image_token if self._family.image is not None else self.written_image
        for text, own in zip(texts, images, strict=True):
            if (found := len(re.findall(_numbered(written), text))) != len(own):
                raise SampleError(
                    f"a prompt has {found} image placeholders and {len(own)} images",
                    expected="as many placeholders as images",
                    fix="render the prompt with the number of its images",
                )

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

    @property
    def _call(self) -> Any:
        """The processor, or what a base of its class does with it."""
        name = self._family.called_as
        if name is None:
            return self.processor
        import transformers

        return partial(getattr(transformers, name).__call__, self.processor)

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

    def _text_only(self, texts: Sequence[str]) -> Mapping[str, Any]:
        """By the processor, where it takes text alone, else by its tokenizer."""
        special = self._adds_special(texts)
        before, after = self._family.frame
        placed = self._family.prompt == "chat" or self._architecture.marks == "none"
        if self._sees and placed and self._text_alone is not None:
            given = [[text] for text in texts] if self._text_alone == "nested" else texts
            return batch_of(self._call, given, None, special, self._flags, self._of_texts)
        framed = self._worded([before + text + after for text in texts])
        made = dict(self.tokenizer(framed, add_special_tokens=special, **self._boxes(texts)))
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


class _Turns:
    """Turns that a sample may not hold: a chat that ends with a finished answer."""

    continues = False

    def __init__(self, turns: Sequence[tuple[str, str]]) -> None:
        self._turns = list(turns)

    def template_options(self, template: object) -> dict[str, Any]:
        return {}

    def messages(self, images: int) -> list[dict[str, Any]]:
        return [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in self._turns]

    def plain_turns(self, family: str) -> list[tuple[str, str]]:
        return self._turns


class _Messages:
    """A sample whose messages were changed."""

    def __init__(self, sample: Sample, messages: list[dict[str, Any]]) -> None:
        self.continues, self.template_options = sample.continues, sample.template_options
        self._messages = messages

    def messages(self, images: int) -> list[dict[str, Any]]:
        return self._messages


def _numbered(written: str) -> str:
    """A regular expression of what a template writes for one image, whatever number it gives it."""
    return (
        re.sub(r"\d+", lambda _: r"\d+", re.escape(written)) if re.search(r"\b\d+\b", written) else re.escape(written)
    )


def _pattern(text: str, added: Sequence[str]) -> str:
    """A regular expression of what a processor makes of an image: first and last piece, any number in between."""
    pieces = [piece for piece in re.split("(" + "|".join(map(re.escape, added)) + ")", text) if piece]
    kinds = [_numbered(piece) for piece in pieces]
    if len(set(kinds)) == 1:
        return f"(?:{kinds[0]})+"
    inner = "|".join(dict.fromkeys(kinds[1:-1]))
    return kinds[0] + (f"(?:{inner})+" if inner else "") + kinds[-1]
