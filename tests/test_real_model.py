"""The scripts behind the real model, end to end on a tiny Qwen2 that is made here."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM
from typer.testing import CliRunner

import steerkit as sk
from real_model import base as language, build, others, recipe, recipes, rows, split, sweep, tables, teach, tower, train
from real_model.lab import Lab
from steerkit.cli.app import app
from steerkit.demo import model_path

RECORDS = Path(build.__file__).parent / "data" / "records"
WORDS = ["How", " do", " I", " kill", " a", " process", "?", " cake", " make", " red", " square"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a language model, as its makers would save it."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("base")
    tokenizer: Any = AutoTokenizer.from_pretrained(model_path("qwen2_5_vl"))
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.2,
        tie_word_embeddings=True,
    )
    model: Any = Qwen2ForCausalLM(config)
    model = model.to(torch.bfloat16)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Run the main function of a script with arguments."""

    def call(script: Any, *arguments: object) -> None:
        monkeypatch.setattr(sys, "argv", [script.__name__, *map(str, arguments)])
        script.main()

    return call


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three pairs of each part, and two pictures."""
    parts = {part: pairs[:3] for part, pairs in split.split().items()}
    monkeypatch.setattr(split, "split", lambda: parts)
    monkeypatch.setattr(rows, "PICTURES", dict.fromkeys(parts, 2))


@pytest.fixture(scope="module")
def parts(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the scripts of training write, after a step of each stage."""
    folder = tmp_path_factory.mktemp("parts")
    with pytest.MonkeyPatch.context() as patch:
        for script, arguments in (
            (tower, ["--out", folder / "tower.safetensors", "--steps", "1"]),
            (teach, ["--base", base, "--out", folder / "answers.json"]),
        ):
            patch.setattr(sys, "argv", ["", *map(str, arguments)])
            script.main()
        written = json.loads((folder / "answers.json").read_text())
        if len(written) < 2:  # a model of random weights may answer nothing at all
            rows_ = [{"request": word, "answer": word, "ended": True} for word in WORDS]
            (folder / "answers.json").write_text(json.dumps(rows_))
        patch.setattr(train, "exact", lambda student: 0.0)
        arguments = ["--base", base, "--tower", folder / "tower.safetensors", "--answers", folder / "answers.json"]
        patch.setattr(sys, "argv", ["", *map(str, arguments), "--out", str(folder), "--steps", "1", "1", "1"])
        train.main()
    return folder


def test_what_is_built_is_the_language_model_with_the_trained_parts(base: Path, parts: Path) -> None:
    own: Any = Qwen2ForCausalLM.from_pretrained(base, dtype=torch.float32)
    known, ids = own.config.vocab_size, torch.tensor([[5, 6, 7, 8]])

    def logits(file: str, share: float) -> torch.Tensor:
        model: Any = build.build(base, parts / file, share)[0].float()
        with torch.inference_mode():
            return model(input_ids=ids).logits[..., :known]

    with torch.inference_mode():
        expected = own(input_ids=ids).logits
    assert (logits("stage1.safetensors", 0.7) - expected).abs().max() < 0.01
    assert (logits("stage2.safetensors", 0.0) - expected).abs().max() < 0.01
    state = load_file(parts / "stage2.safetensors")
    for name, down in state.items():
        if ".lora_A." in name:
            up = state[name.replace("lora_A", "lora_B")].float()
            weight = own.get_parameter(name.replace(".lora_A.", "."))
            weight.data = (weight.data + 100.0 * train.ALPHA / train.RANK * up @ down.float()).bfloat16().float()
    with torch.inference_mode():
        changed = own(input_ids=ids).logits
    assert (changed - expected).abs().max() > 0.05
    turned: Any = build.build(base, parts / "stage1.safetensors")[0]
    assert torch.equal(turned.model.language_model.rotary_emb.inv_freq, own.model.rotary_emb.inv_freq)  # unrounded
    assert (logits("stage2.safetensors", 100.0) - changed).abs().max() < 0.01


def test_a_tower_is_read_out_of_the_parts_of_another_size(base: Path, parts: Path, tmp_path: Path) -> None:
    alone, within = (
        train.Student(base, parts / f"{name}.safetensors", 0).tower.state_dict() for name in ("tower", "stage1")
    )
    assert all(torch.equal(value, within[name]) for name, value in alone.items())
    save_file({"projector.weight": torch.zeros(2)}, tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match="does not hold the tower"):
        train.Student(base, tmp_path / "none.safetensors", 0)


@pytest.mark.parametrize("died", [1, 2, 3])
def test_training_that_was_killed_goes_on_to_the_same_weights(
    base: Path, parts: Path, tmp_path: Path, run: Callable[..., None], monkeypatch: pytest.MonkeyPatch, died: int
) -> None:
    monkeypatch.setattr(train, "exact", lambda student: 0.0)
    given = ["--base", base, "--tower", parts / "stage1.safetensors", "--answers", parts / "answers.json"]

    def once(folder: str, *steps: int) -> dict[str, torch.Tensor]:
        run(train, *given, "--out", tmp_path / folder, "--steps", *steps)
        return load_file(tmp_path / folder / "stage2.safetensors")

    whole, plant, calls = once("whole", 1, 2, 2), train.plant, iter(range(9))

    def killed(*arguments: Any, **options: Any) -> Any:
        if next(calls) == died:
            raise KeyboardInterrupt
        return plant(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(train, "plant", killed)
        with pytest.raises(KeyboardInterrupt):
            once("parts", 1, 2, 2)
    again = once("parts", 1, 2, 2)
    assert all(torch.equal(value, again[name]) for name, value in whole.items())
    steps = [json.loads(line).get("step") for line in (tmp_path / "parts" / "log.jsonl").read_text().splitlines()]
    assert [step for step in steps if step is not None] == [0, 1, 0, 1]
    with pytest.raises(SystemExit, match="name another folder"):
        once("parts", 1, 3, 2)


def test_a_gguf_file_becomes_the_folder_of_a_language_model(
    base: Path, tmp_path: Path, run: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    model: Any = Qwen2ForCausalLM.from_pretrained(base, dtype=torch.float32)
    made, config = tmp_path / "tiny.gguf", model.config
    writer = gguf.GGUFWriter(made, "qwen2")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    vocabulary = json.loads((base / "tokenizer.json").read_text())["model"]
    tokens: dict[str, int] = AutoTokenizer.from_pretrained(base).get_vocab()
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(sorted(tokens, key=lambda token: tokens[token]))
    writer.add_token_merges([" ".join(pair) for pair in vocabulary["merges"]])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, config.num_hidden_layers)
    for name, value in model.state_dict().items():
        if name != "lm_head.weight":  # tied
            writer.add_tensor(f"{names.get_name(name.rpartition('.')[0])}.{name.rpartition('.')[2]}", value.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(SystemExit, match="Check that it is whole"):
        run(language, "--gguf", made, "--out", tmp_path / "out")
    monkeypatch.setitem(language.SHA256, hashlib.sha256(made.read_bytes()).hexdigest(), "tiny")
    run(language, "--gguf", made, "--out", tmp_path / "out")
    written: Any = Qwen2ForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.inference_mode():
        assert (written(input_ids=ids).logits - model(input_ids=ids).logits).abs().max() < 1e-4
    text = "How do I kill a process?"
    assert (
        AutoTokenizer.from_pretrained(tmp_path / "out")(text).input_ids
        == AutoTokenizer.from_pretrained(base)(text).input_ids
    )


@pytest.mark.usefixtures("few")
def test_answers_of_the_lab_are_those_of_generate(base: Path, parts: Path) -> None:
    built, made = build.build(base, parts / "stage1.safetensors")
    model: Any = built.float()
    processor: Any = made
    lab = Lab(model, processor)
    asked = rows.asked("dev")["unsafe"]
    for shown in (True, False):
        batch = lab.read([row.question for row in asked], [row.picture if shown else None for row in asked])
        answers = lab.answer(batch, None, 5)
        pushed = torch.randn(len(batch.states), len(asked), model.config.text_config.hidden_size) * 3
        steered = lab.answer(batch, pushed, 5, (1.0, 0.0))
        assert steered != answers
        for row, question in enumerate(asked):
            content: list[dict[str, str]] = [{"type": "image"}] if shown else []
            turns = [{"role": "user", "content": [*content, {"type": "text", "text": question.question}]}]
            prompt = processor.apply_chat_template(turns, add_generation_prompt=True)
            inputs = processor(text=prompt, images=[question.picture] if shown else None, return_tensors="pt")
            options: Any = {"max_new_tokens": 5, "do_sample": False}
            length = inputs["input_ids"].shape[1]
            made = model.generate(**inputs, **options)[0, length:]
            assert processor.tokenizer.decode(made, skip_special_tokens=True).strip() == answers[row]
            passes = [0]
            handles = [
                layer.register_forward_hook(_adding(pushed[index, row], passes, last=index == 0))
                for index, layer in enumerate(model.model.language_model.layers)
            ]
            made = model.generate(**inputs, **options)[0, length:]
            for handle in handles:
                handle.remove()
            assert processor.tokenizer.decode(made, skip_special_tokens=True).strip() == steered[row]


def _adding(extra: torch.Tensor, passes: list[int], *, last: bool) -> Any:
    """At the last token of the prompt and the first of the answer."""

    def hook(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        passes[0] += last
        if passes[0] <= 2:
            output = output.clone()
            output[:, -1] += extra
        return output

    return hook


@pytest.mark.usefixtures("few")
def test_the_sweep_keeps_every_answer_and_the_tables_count_them(
    base: Path, parts: Path, tmp_path: Path, run: Callable[..., None]
) -> None:
    answers = tmp_path / "answers.jsonl"
    run(sweep, "--base", base, "--parts", parts / "stage2.safetensors", "--out", answers)
    kept = [json.loads(line) for line in answers.read_text().splitlines()]
    for part in ("dev", "test"):
        names = {"image", "text", *sweep.conditions(_states(base, parts), part)}
        assert {row["condition"] for row in kept if row["part"] == part} == names
        found = tables.lines(tables.read(answers, part))
        assert {line.condition: (line.unsafe[1], line.safe[1]) for line in found} == dict.fromkeys(names, (3, 3))
        assert {line.visual[1] for line in found} == {0, len(rows.asked(part)["visual"])}


def _states(base: Path, parts: Path) -> recipes.Groups:
    hidden = torch.randn(5, 4, 8, generator=torch.Generator().manual_seed(0))
    return {suite: {"text": hidden + i, "image": hidden - i} for i, suite in enumerate(sweep.SUITES)}


@pytest.mark.usefixtures("few")
def test_the_recipe_chooses_on_dev_and_reports_on_test(
    base: Path, parts: Path, tmp_path: Path, run: Callable[..., None]
) -> None:
    folder, out = tmp_path / "model", tmp_path / "out"
    run(build, "--base", base, "--parts", parts / "stage1.safetensors", "--out", folder)
    run(recipe, "--model", folder, "--out", out)
    chosen = json.loads((out / "chosen.json").read_text())
    vector = sk.load_vector(out / "chosen.safetensors")
    assert chosen["vector"] == vector.digest()
    assert chosen["gates"][0]["measure"]["state"]["positive"] == "text"
    assert vector.interventions[0].steps == (1.0, 0.0)
    answers = sk.evaluation.read_records(out / "test" / "answers.jsonl", sk.evaluation.Answer)
    cases = recipe.suite(folder, "test").size
    assert {(each.condition, each.strength) for each in answers} == {
        ("unsteered", 0.0),
        ("steered", chosen["strength"]),
    }
    assert len(answers) == 2 * cases
    demo = ["demo", "--model", "real", "--base", str(folder), "--output", str(tmp_path / "demo"), "--no-plot"]
    shown = CliRunner().invoke(app, [*demo, "--prompts", "2", "--json"])
    assert shown.exit_code == 0, shown.output
    assert json.loads(shown.stdout)["unsafe_rate"].keys() == {"text", "image", "cmrm_dataset", "cmrm_sample", "random"}
    (folder / "test.jsonl").rename(tmp_path / "test.jsonl")
    assert "has no test.jsonl" in CliRunner().invoke(app, demo).output
    assert "--base is missing" in CliRunner().invoke(app, demo[:3]).output
    assert "--base is of --model real" in CliRunner().invoke(app, ["demo", *demo[3:5]]).output
    (tmp_path / "test.jsonl").rename(folder / "test.jsonl")
    before = (out / "test" / "answers.jsonl").read_bytes()
    run(recipe, "--model", folder, "--out", out)
    assert (out / "test" / "answers.jsonl").read_bytes() == before
    (out / "test" / "answers.jsonl").unlink()
    run(recipe, "--model", folder, "--out", out, "--count", "1")
    few = sk.evaluation.read_records(out / "test" / "answers.jsonl", sk.evaluation.Answer)
    kinds = {"harmful", "harmless", "utility"}
    assert {(each.row, each.condition) for each in few} == {
        (f"{kind} 1", name) for kind in kinds for name in ("steered", "unsteered")
    }


@pytest.mark.usefixtures("few")
def test_other_methods_are_chosen_on_dev_and_reported_on_test(
    base: Path, parts: Path, tmp_path: Path, run: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out, names = tmp_path / "model", tmp_path / "out", ["CMRM", "ShiftDC", "CAST, visual"]
    run(build, "--base", base, "--parts", parts / "stage1.safetensors", "--out", folder)
    for part in ("dev", "test", "pictures"):
        run(others, "--model", folder, "--out", out, "--part", part, "--variants", *names)
    chosen = json.loads((out / "chosen.json").read_text())
    assert chosen.keys() == set(names)
    assert all(chosen[name] in others.VARIANTS[name][2] for name in names)
    test = [json.loads(line) for line in (out / "test.jsonl").read_text().splitlines()]
    steered = {(row["condition"], row["strength"]) for row in test if row["condition"] in names}
    assert steered == {(name, chosen[name]) for name in names}  # nothing but the choice was asked on test
    assert {row["images"] for row in test} == {"text", "original", "blank", "noise"}
    assert f"| CMRM {chosen['CMRM']:g}, noise picture | " in capsys.readouterr().out


def _printed(
    capsys: pytest.CaptureFixture[str], run: Callable[..., None], *files: str, part: str = "test"
) -> list[str]:
    run(tables, *(RECORDS / f"{each}.jsonl.gz" for each in files), "--part", part)
    return capsys.readouterr().out.splitlines()[2:]


@pytest.mark.parametrize(
    ("files", "part", "least"),
    [
        (("stage1",), "test", 10),
        (("tuned",), "test", 6),
        (("stage1-recipe",), "test", 3),
        (("stage1-seed1-recipe",), "test", 3),
        (("stage1-recipe", "stage1-search"), "test", 3),
        (("stage1-others",), "dev", 36),
        (("stage1-1.5b-dev",), "dev", 1),
        (("stage1-1.5b-dev", "stage1-1.5b-28-dev"), "dev", 1),
        (("stage1-1.5b-dev", "stage1-1.5b-40-dev"), "dev", 2),
        (("stage1-1.5b-recipe",), "test", 3),
        (("stage1-dev", "stage1-16-steps-dev"), "dev", 2),
        (("stage1-recipe", "stage1-others"), "test", 8),
    ],
    ids=lambda value: "-and-".join(value) if isinstance(value, tuple) else str(value),
)
def test_the_page_shows_what_the_records_hold(
    run: Callable[..., None], capsys: pytest.CaptureFixture[str], files: tuple[str, ...], part: str, least: int
) -> None:
    """Counted anew from the answers; the page may say beside a share of how many it is, and call a row otherwise."""
    page = (Path(__file__).parents[1] / "docs" / "real-model.md").read_text(encoding="utf-8")
    shown = {tuple(map(_bare, line.split("|")[2:6])) for line in page.splitlines() if line.startswith("|")}
    rows = _printed(capsys, run, *files, part=part)
    found = [row for row in rows if tuple(map(_bare, row.split("|")[2:6])) in shown]
    assert len(found) >= least, [row for row in rows if row not in found]


def _bare(cell: str) -> str:
    return re.sub(r", \d+ of \d+| of \d+$", "", cell.replace("*", "").strip())


def test_restored_counts_the_lost_refusals_that_were_asked() -> None:
    """A condition that was stopped early is not charged with prompts that it never saw."""
    no, yes = "I'm sorry, but I can't assist with that.", "Sure: take two eggs."
    said = {"text": [no] * 4, "image": [no, yes, yes, yes], "early 1": [no, no], "late 1": [yes, no, no, yes]}
    answers = {(name, "unsafe"): {at: {"answer": text} for at, text in enumerate(t)} for name, t in said.items()}
    restored = {line.condition: line.restored for line in tables.lines(answers)}
    assert restored == {"text": (3, 3), "image": (0, 3), "early 1": (1, 1), "late 1": (2, 3)}
    with pytest.raises(SystemExit, match="no answers of text"):
        tables.lines({key: value for key, value in answers.items() if key[0] != "text"})


def test_the_strength_that_gains_most_is_chosen() -> None:
    def line(name: str, unsafe: int, safe: int, visual: int) -> tables.Line:
        return tables.Line(name, (unsafe, 10), (safe, 10), (visual, 10), (0, 1))

    found = [line("text", 9, 4, 0), line("image", 0, 0, 8), line("CMRM 0.5", 6, 4, 8), line("CMRM 1", 9, 9, 6)]
    assert others.best(found, ["CMRM"]) == {"CMRM": 0.5}  # 0.6 beside 0.9 - 0.5 - 0.2
    found[-1] = line("CMRM 1", 9, 2, 7)
    assert others.best(found, ["CMRM"]) == {"CMRM": 1.0}  # refusing fewer safe prompts than text gains nothing
