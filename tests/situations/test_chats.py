"""Chats as people write them for other libraries: the prompt is that of transformers for the same messages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

import steerkit as sk
from steerkit.errors import OptionError, ProcessorError, SampleError
from steerkit.models import IMAGE
from steerkit.models._videos import opened_video

CHATS = tuple(name for name in tiny.FAMILIES if not name.startswith("instructblip"))
Picture = Callable[..., Image.Image]


@pytest.fixture(scope="module")
def pictures(picture: Picture) -> list[Image.Image]:
    return [picture(seed) for seed in range(3)]


def truth(processor: Any, messages: list[dict[str, Any]], **options: Any) -> dict[str, torch.Tensor]:
    """What transformers makes of messages."""
    options = {"add_generation_prompt": True, **options}
    made = processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt", **options)
    return {key: value for key, value in made.items() if key != "token_type_ids"}


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(found[key], value.to(found[key].dtype)), key


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


def message(role: str, *parts: dict[str, Any]) -> dict[str, Any]:
    return {"role": role, "content": list(parts)}


def conversations(images: list[Image.Image]) -> dict[str, list[dict[str, Any]]]:
    """Chats with images in places of every kind, each part with its image in it."""
    one, two, three = ({"type": "image", "image": image} for image in images)
    talk = [message("user", text("Hello, a photo follows.")), message("assistant", text("Go ahead."))]
    return {
        "front": [message("user", one, text("What is it?"))],
        "behind": [message("user", text("What is this?"), one)],
        "later turn": [*talk, message("user", one, text("Here it is. What is it?"))],
        "several turns": [
            message("user", one, text("First.")),
            message("assistant", text("A square.")),
            message("user", two, text("Second."), three),
        ],
        "interleaved": [message("user", text("Compare "), one, text(" with "), two, text(", please."))],
        "system": [message("system", text("Be brief.")), message("user", text("And this?"), two, one)],
        "several texts": [message("user", text("One."), text("Two."), one)],
        "image alone": [message("user", one)],
    }


@pytest.mark.parametrize("kind", conversations([None] * 3))  # type: ignore[list-item]
@pytest.mark.parametrize("family", CHATS)
def test_images_stand_where_the_messages_put_them(
    vlm_of: Callable[[str], sk.VLM], family: str, kind: str, pictures: list[Image.Image]
) -> None:
    vlm = vlm_of(family)
    messages = conversations(pictures)[kind]
    sample = sk.Sample(messages)  # type: ignore[arg-type]
    assert_same(vlm.inputs([sample]), truth(vlm.processor, messages))
    assert [id(image) for image in sample.images] == [
        id(part["image"]) for each in messages for part in each["content"] if part["type"] == "image"
    ]


@pytest.mark.parametrize("kind", ["later turn", "interleaved", "several turns"])
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_images_beside_the_messages_fill_their_places_in_order(
    vlm_of: Callable[[str], sk.VLM], family: str, kind: str, pictures: list[Image.Image]
) -> None:
    messages = conversations(pictures)[kind]
    bare = [
        message(
            each["role"],
            *({"type": part["type"], **({"text": part["text"]} if "text" in part else {})} for part in each["content"]),
        )
        for each in messages
    ]
    count = sum(part["type"] == "image" for each in messages for part in each["content"])
    sample = sk.Sample(bare, pictures[:count])  # type: ignore[arg-type]
    assert_same(vlm_of(family).inputs([sample]), truth(vlm_of(family).processor, messages))
    assert sample == sk.Sample(messages)  # type: ignore[arg-type]


@pytest.mark.parametrize("family", CHATS)
def test_the_answer_goes_on_in_the_assistants_turn(
    vlm_of: Callable[[str], sk.VLM], family: str, pictures: list[Image.Image]
) -> None:
    vlm = vlm_of(family)
    begun = [
        message("user", {"type": "image", "image": pictures[0]}, text("Do you like it? (A) yes (B) no")),
        message("assistant", text("My choice is (A")),
    ]
    sample = sk.Sample(begun)  # type: ignore[arg-type]
    expected = truth(vlm.processor, begun, add_generation_prompt=False, continue_final_message=True)
    assert_same(vlm.inputs([sample]), expected)
    assert truth(vlm.processor, begun)["input_ids"].shape > expected["input_ids"].shape, "no further turn is opened"
    assert sample.continues
    assert not sk.Sample(begun[:1]).continues  # type: ignore[arg-type]
    answers = vlm.generate([sample], max_new_tokens=3, min_new_tokens=3)
    model: Any = vlm.model
    generated = model.generate(**expected, max_new_tokens=3, min_new_tokens=3)
    rest = generated[:, expected["input_ids"].shape[1] :]
    assert answers == [vlm.processor.tokenizer.decode(rest[0], skip_special_tokens=True).strip()]


def test_a_language_model_goes_on_in_the_assistants_turn(vlm_of: Callable[[str], sk.VLM]) -> None:
    vlm = vlm_of("qwen3")
    chat = [{"role": "user", "content": "How do you feel?"}, {"role": "assistant", "content": "I feel"}]
    ids = vlm.processor.apply_chat_template(chat, continue_final_message=True, return_dict=True)["input_ids"]
    assert vlm.inputs([sk.Sample(chat)])["input_ids"][0].tolist() == ids  # type: ignore[arg-type]
    assert vlm.processor.decode(ids).endswith("assistant\nI feel")


THINKING = "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen3"])
def test_options_reach_the_chat_template(family: str) -> None:
    model, processor = tiny.build(family)
    processor.chat_template += THINKING
    vlm = sk.wrap(model, processor)
    messages = [{"role": "user", "content": "Hi"}]
    plain, silent = sk.Sample("Hi"), sk.Sample("Hi", chat_template_kwargs={"enable_thinking": False})
    for sample, options in ((plain, {}), (silent, {"enable_thinking": False})):
        made = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **options)
        assert vlm.format.render(sample, 0) == made
    assert vlm.inputs([plain])["input_ids"].shape < vlm.inputs([silent])["input_ids"].shape
    assert plain.digest() != silent.digest()
    assert sk.read_samples([{"text": "Hi", "chat_template_kwargs": {"enable_thinking": False}}]) == [silent]


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen3", "instructblip-llama"])
def test_an_option_that_the_template_does_not_read_is_refused(vlm_of: Callable[[str], sk.VLM], family: str) -> None:
    with pytest.raises(SampleError, match="enable_thinkng"):
        vlm_of(family).inputs([sk.Sample("Hi", chat_template_kwargs={"enable_thinkng": False})])


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"add_generation_prompt": False}, "add_generation_prompt"),
        ({"continue_final_message": True}, "continue_final_message"),
        ({"tokenize": True}, "tokenize"),
        ({"x": object()}, "object"),
        ({1: 2}, "1"),
        ({"x": float("nan")}, "nan"),
        ("thinking", "thinking"),
        (5, "5"),
    ],
)
def test_options_that_are_none_of_a_template_are_refused(options: Any, problem: str) -> None:
    with pytest.raises(SampleError, match=problem) as caught:
        sk.Sample("Hi", chat_template_kwargs=options)
    assert caught.value.expected


@pytest.mark.parametrize("family", CHATS)
def test_the_text_view_removes_images_from_their_places(
    vlm_of: Callable[[str], sk.VLM], family: str, pictures: list[Image.Image]
) -> None:
    vlm = vlm_of(family)
    sample = sk.Sample(conversations(pictures)["several turns"])  # type: ignore[arg-type]
    bare = [("user", "First."), ("assistant", "A square."), ("user", "Second.")]
    assert torch.equal(vlm.inputs([sample], False)["input_ids"], vlm.inputs([sk.Sample(bare)])["input_ids"])  # type: ignore[arg-type]
    captioned = sk.Sample(sample.text, sample.images, caption="Squares.")
    with_caption = [("user", "Squares.\nFirst."), *bare[1:]]
    expected = vlm.inputs([sk.Sample(with_caption)])["input_ids"]  # type: ignore[arg-type]
    assert torch.equal(vlm.inputs([captioned], "caption")["input_ids"], expected)
    blank = vlm.inputs([sample], "blank")
    assert torch.equal(blank["input_ids"], vlm.inputs([sample])["input_ids"])


def test_the_role_of_newer_openai_models_is_the_systems() -> None:
    assert sk.Sample((("developer", "Be brief."), ("user", "Hi"))).turns == (("system", "Be brief."), ("user", "Hi"))


def test_parts_of_other_libraries_mean_the_same(pictures: list[Image.Image], tmp_path: Any) -> None:
    pictures[0].save(tmp_path / "a.png")
    path = str(tmp_path / "a.png")
    expected = sk.Sample("What is it?", (path,))
    question = text("What is it?")
    for part in (
        {"type": "image", "image": path},
        {"type": "image", "path": path},
        {"type": "image", "url": path, "text": None},
        {"type": "image_url", "image_url": {"url": path, "detail": "low"}},
        {"type": "image_url", "image_url": path},
        {"type": "input_image", "image_url": path, "detail": "auto"},
    ):
        assert sk.Sample([message("user", part, question)]) == expected  # type: ignore[arg-type]
    assert sk.Sample([message("user", {"type": "image"}, question)], path) == expected  # type: ignore[arg-type]
    assert sk.Sample([{"role": "user", "content": "What is it?", "name": None}], path).images == (path,)  # type: ignore[arg-type]
    filled = {"refusal": None, "annotations": [], "tool_calls": []}
    assert sk.Sample([{"role": "user", "content": "What is it?", **filled}], path).images == (path,)  # type: ignore[arg-type]
    assert sk.Sample([message("user", question, {"type": "input_text", "text": "Say."})]).turns == (  # type: ignore[arg-type]
        ("user", "What is it?\nSay."),
    )


def test_parts_that_number_the_images_beside_the_chat() -> None:
    """Data sets of TRL do, with every key of a part in every other one."""

    def numbered(*indices: int) -> list[dict[str, Any]]:
        images = [{"type": "image", "text": None, "index": index} for index in indices]
        return [message("user", *images, {"type": "text", "text": "Which?", "index": None})]

    (read,) = sk.read_samples([{"messages": numbered(0, 1), "images": ["a.png", "b.png"]}], check_images=False)
    assert (read.turns, [str(image) for image in read.images]) == ((("user", "Which?"),), ["a.png", "b.png"])
    for indices, images in (((1, 0), 2), ((0,), 2), ((0, 1), 1), ((1,), 1), ((-1,), 1), ((0, 0), 2)):
        with pytest.raises(SampleError, match="places for images|the index"):
            sk.Sample(numbered(*indices), ["a.png", "b.png"][:images])  # type: ignore[arg-type]
    for index in (True, "0", 0.0):
        with pytest.raises(SampleError, match="a part of a turn is"):
            sk.Sample(numbered(index), ["a.png"])  # type: ignore[arg-type]


IMAGE_PART = {"type": "image"}
REFUSED: dict[str, tuple[Any, tuple[Any, ...], str]] = {
    "tool turn": ([("user", "Hi"), ("tool", "{}"), ("user", "so?")], (), "a tool"),
    "function turn": ([{"role": "function", "name": "f", "content": "1"}, ("user", "so?")], (), "a tool"),
    "tool call": (
        [("user", "Hi"), {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}, ("user", "so?")],
        (),
        "a tool",
    ),
    "another field": ([{"role": "user", "content": "Hi", "name": "Ann"}], (), "'name'"),
    "two videos in a part": ([message("user", {"type": "video", "path": "a", "url": "b"}, text("Hi"))], (), "a part"),
    "no video for a place": ([message("user", {"type": "video"}, text("Hi"))], (), "1 places for videos, and 0"),
    "another field, an array": ([{"role": "user", "content": "Hi", "vector": np.zeros(2)}], (), "'vector'"),
    "audio": ([message("user", {"type": "input_audio", "input_audio": {}}, text("Hi"))], (), "'input_audio'"),
    "no type": ([message("user", {"image": "a.png"}, text("Hi"))], (), "a part of a turn"),
    "two images in a part": ([message("user", {"type": "image", "path": "a", "url": "b"}, text("Hi"))], (), "a part"),
    "sizes of an image": (
        [message("user", {"type": "image", "image": "a", "max_pixels": 5}, text("Hi"))],
        (),
        "a part",
    ),
    "no text in a text": ([message("user", {"type": "text"})], (), "a part"),
    "number as text": ([message("user", {"type": "text", "text": 5})], (), "a part"),
    "number as part": ([message("user", 5)], (), "a part"),  # type: ignore[arg-type]
    "no url": ([message("user", {"type": "image_url", "image_url": {}}, text("Hi"))], (), "a part"),
    "no parts": ([message("user")], (), "empty list"),
    "no image for a place": ([message("user", IMAGE_PART, text("Hi"))], (), "1 places for images, and 0"),
    "fewer images than places": ([message("user", IMAGE_PART, IMAGE_PART, text("Hi"))], ("a",), "2 places"),
    "more images than places": ([message("user", IMAGE_PART, text("Hi"))], ("a", "b"), "1 places"),
    "images beside images": ([message("user", {"type": "image", "path": "a"}, text("Hi"))], ("b",), "1 places"),
    "images beside marks": ((("user", (IMAGE, "Hi", IMAGE)),), ("b",), "2 places"),
    "empty answer to go on": ([("user", "Hi"), ("assistant", " ")], (), "empty turn of the assistant"),
    "image as an answer": ([("user", "Hi"), message("assistant", {"type": "image", "path": "a"})], (), "empty turn"),
    "system alone": ([("system", "Hi")], (), "user's turn"),
    "system at the end": ([("user", "Hi"), ("system", "Be brief.")], (), "user's turn"),
    "half a character in a part": ([message("user", text("\ud800"))], (), "ud800"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_a_prompt_can_not_hold_is_refused(kind: str) -> None:
    turns, images, problem = REFUSED[kind]
    with pytest.raises(SampleError, match=problem) as caught:
        sk.Sample(turns, images)
    assert caught.value.expected
    assert len(str(caught.value)) < 700


def test_models_without_images_in_their_chats_refuse_them(
    vlm_of: Callable[[str], sk.VLM], pictures: list[Image.Image]
) -> None:
    chats = conversations(pictures)
    for family in ("instructblip-llama", "qwen3"):
        with pytest.raises(SampleError, match=r"sample 0 .*(several parts|1 images to a language model)"):
            vlm_of(family).inputs([sk.Sample(chats["behind"])])  # type: ignore[arg-type]
    front = vlm_of("instructblip-llama").inputs([sk.Sample(chats["front"])])  # type: ignore[arg-type]
    expected = vlm_of("instructblip-llama").inputs([sk.Sample("What is it?", pictures[0])])  # type: ignore[arg-type]
    assert_same(front, expected)


def test_a_digest_knows_where_images_stand(pictures: list[Image.Image]) -> None:
    chats = [sk.Sample(chat) for chat in conversations(pictures).values()]  # type: ignore[arg-type]
    assert len({sample.digest() for sample in chats}) == len(chats)
    front = sk.Sample("What is it?", np.asarray(pictures[0]))  # type: ignore[arg-type]
    assert front.digest() == chats[0].digest()


@pytest.mark.parametrize("family", ["qwen3", "qwen2_5_vl", "llava_onevision", "llava"])
def test_a_prompt_is_not_rendered_twice(vlm_of: Callable[[str], sk.VLM], family: str) -> None:
    vlm = vlm_of(family)
    begun = "<s>USER: Hi ASSISTANT: I feel"
    if family != "llava":
        begun = vlm.processor.apply_chat_template([message("user", text("Hi"))], tokenize=False) + "I feel"
    with pytest.raises(SampleError, match=r"sample 0 .*as a prompt that a chat template has made"):
        vlm.inputs([sk.Sample(begun)])
    inside = sk.Sample("What does <|im_start|> mean?")
    assert "mean?" in vlm.format.render(inside, 0)


def test_an_option_of_the_template_in_a_call_is_refused_with_its_place(vlm_of: Callable[[str], sk.VLM]) -> None:
    options: dict[str, Any] = {"enable_thinking": False}
    with pytest.raises(OptionError, match="enable_thinking") as caught:
        vlm_of("qwen3_vl").generate([sk.Sample("Hi")], max_new_tokens=1, **options)
    assert "chat_template_kwargs={...}" in str(caught.value.fix)


def test_options_of_the_template_of_a_call_reach_its_prompts(vlm_of: Callable[[str], sk.VLM]) -> None:
    vlm = vlm_of("qwen3_vl")
    with pytest.raises(SampleError, match="sample 0 .*'x'"):
        vlm.generate([sk.Sample("Hi")], max_new_tokens=1, chat_template_kwargs={"x": False})


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "qwen3"])
def test_a_tokenizer_that_ends_every_text_is_refused(family: str) -> None:
    """As those are saved that were set up for training: what is asked would stand before an answer that has ended."""
    vlm = sk.wrap(*tiny.build(family))
    tokenizer = getattr(vlm.processor, "tokenizer", vlm.processor)
    tokenizer.add_eos_token = True
    with pytest.raises(ProcessorError, match="ends every prompt") as caught:
        vlm.generate([sk.Sample("Hi")], max_new_tokens=1)
    assert "add_eos_token = False" in str(caught.value.fix)
    tokenizer.add_eos_token = False
    assert int(vlm.inputs([sk.Sample("Hi")])["input_ids"][0, -1]) != tokenizer.eos_token_id
    assert len(vlm.generate([sk.Sample("Hi")], max_new_tokens=1)) == 1


@pytest.mark.parametrize("options", [3, "enable_thinking", [("enable_thinking",)], {"enable_thinking": object()}])
def test_options_of_the_template_of_a_call_are_looked_at(vlm_of: Callable[[str], sk.VLM], options: Any) -> None:
    with pytest.raises(SampleError, match="chat_template_kwargs is"):
        vlm_of("qwen3_vl").generate([sk.Sample("Hi")], max_new_tokens=1, chat_template_kwargs=options)


def clip(seed: int, frames: int = 4) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (frames, 32, 32, 3), dtype=np.uint8)


def test_videos_stand_where_their_parts_stand(tmp_path: Any) -> None:
    first, second = clip(0), clip(1)
    shown = sk.Sample(
        [
            message(
                "user", {"type": "video", "video": first}, text("Before."), {"type": "video", "url": "b"}, text("So?")
            )
        ]  # type: ignore[arg-type]
    )
    assert shown.videos[0] is first
    assert shown.videos[1] == "b"
    assert shown.images == ()
    assert [part["type"] for part in shown.messages(0)[0]["content"]] == ["video", "text", "video", "text"]
    assert shown.turns == (("user", "Before.\nSo?"),)
    beside = sk.Sample("So?", videos=(second,))
    in_place = sk.Sample([message("user", {"type": "video", "video": second}, text("So?"))])  # type: ignore[arg-type]
    assert beside.text == in_place.text
    assert beside.digest() == in_place.digest()
    assert (
        len(
            {sk.Sample("So?", videos=(each,)).digest() for each in (first, second, clip(0, 3))}
            | {sk.Sample("So?").digest()}
        )
        == 4
    )
    file = tmp_path / "a.mp4"
    file.write_bytes(b"0")
    sk.Sample("So?", videos=(file,)).check_images()
    assert "4 frames" in repr(beside)
    assert len(repr(beside)) < 100


@pytest.mark.parametrize(
    "video", ["no such file.mp4", "https://host/a.mp4", np.zeros((2, 4, 4), np.uint8), 5, ["x.png"]]
)
def test_what_is_no_video_is_refused_before_the_model_runs(vlm_of: Callable[[str], sk.VLM], video: Any) -> None:
    samples = [sk.Sample("Hi"), sk.Sample("So?", videos=(video,))]
    with pytest.raises(sk.errors.MissingImageError, match="sample 1"):
        vlm_of("qwen2_vl").generate(samples, max_new_tokens=1)


def test_models_that_take_no_videos_say_so(vlm_of: Callable[[str], sk.VLM]) -> None:
    sample = sk.Sample("So?", videos=(clip(0),))
    for family in ("llava", "instructblip-llama"):
        with pytest.raises(sk.SteerKitError, match="video"):
            vlm_of(family).inputs([sample])


def test_frames_in_files_are_the_video_that_they_make(tmp_path: Any) -> None:
    frames = clip(0)
    files = [tmp_path / f"{at}.png" for at in range(len(frames))]
    for file, frame in zip(files, frames, strict=True):
        Image.fromarray(frame).save(file)
    assert np.array_equal(opened_video(files), frames)
    Image.fromarray(frames[0, :16]).save(files[1])
    with pytest.raises(sk.SteerKitError, match="differ in size"):
        opened_video(files)
