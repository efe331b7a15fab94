"""The documentation holds what it says: its code runs, its commands exist, its lists are complete."""

import importlib
import inspect
import json
import pkgutil
import re
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import foreign
import pytest
import torch
from doc_code import python_blocks, run_page
from PIL import Image
from pydantic import TypeAdapter
from reference import TEXT_ONLY, WITH_IMAGE, directions, vector
from tiny import decoder
from typer.testing import CliRunner

import steerkit as sk
from demo_training import world
from steerkit import errors
from steerkit.cli.app import Group, Root, app
from steerkit.cli.new import Kind, scaffold
from steerkit.demo import model_path
from steerkit.interventions import (
    Ablate,
    Add,
    AddProjection,
    Clamp,
    Gate,
    Gates,
    LinearStrength,
    Measure,
    MeasuredContrast,
    Scale,
    StoredDirection,
)
from steerkit.vectors import PackMetadata
from steerkit.vectors.formats import v1
from steerkit_vectors_hub import interop

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
README = (ROOT / "README.md").read_text(encoding="utf-8")
RUN = ("tutorial", "add-a-method", "add-a-model", "pack-format", "interop", "screening", "any-model", "composition")
RUN += ("methods", "samples", "hub", "concepts", "evaluation", "workers", "suites", "study")


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("elsewhere")
def test_evaluation_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    run_page(DOCS / "evaluation.md")
    assert "text only 0.0 Estimate(value=0.0" in capsys.readouterr().out


def test_suites_page_runs() -> None:
    names = run_page(DOCS / "suites.md")
    assert [part.size for part in names["parts"].values()] == [180, 420]


def test_study_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    run_page(DOCS / "study.md")
    assert "test text only 0.0 0.0" in capsys.readouterr().out


@pytest.mark.usefixtures("elsewhere")
def test_tutorial_runs(capsys: pytest.CaptureFixture[str]) -> None:
    run_page(DOCS / "tutorial.md")
    assert "steered 8 layers" in capsys.readouterr().out


@pytest.mark.usefixtures("elsewhere")
def test_workers_page_runs() -> None:
    names = run_page(DOCS / "workers.md")
    whole = names["method"].fit(names["vlm"], names["requests"])
    assert all(torch.equal(names["vector"].tensors[key], tensor) for key, tensor in whole.tensors.items())


@pytest.mark.usefixtures("elsewhere")
def test_method_of_the_guide_runs() -> None:
    names = run_page(DOCS / "add-a-method.md")
    assert names["loaded"].metadata.method.name == "mean_centring"
    with pytest.raises(errors.EmptyAnchorSetError, match="target"):
        names["MeanCentring"](layer=4).fit(names["vlm"], [sk.Sample("hello", label="background")])


@pytest.mark.parametrize(
    ("page", "kind", "name"), [("add-a-method", "method", "mean_centring"), ("add-a-model", "adapter", "acme_vl")]
)
def test_guides_show_what_steerkit_new_writes(page: str, kind: Kind, name: str, tmp_path: Path) -> None:
    written = (scaffold(kind, name, tmp_path) / f"steerkit_{name}" / "__init__.py").read_text(encoding="utf-8")
    assert f"```python\n{written}```" in (DOCS / f"{page}.md").read_text(encoding="utf-8")


def test_readme_runs(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = []
    for index, row in enumerate(world.prompts("harmful", "train", 4) + world.prompts("harmless", "train", 4)):
        row.image.save(elsewhere / f"{index}.png")
        rows.append(json.dumps({"text": row.question, "image": f"{index}.png", "label": row.label}))
    for name in ("anchors.jsonl", "prompts.jsonl"):
        (elsewhere / name).write_text("\n".join(rows))
    published = '"llava-hf/llava-1.5-7b-hf", dtype="bfloat16", device_map="auto"'
    assert published in README
    names = run_page(ROOT / "README.md", lambda code: code.replace(published, repr(model_path("llava"))))
    assert len(names["answers"]) == 8
    assert "steered 8 layers" in capsys.readouterr().out


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{page.name}" for page in sorted(DOCS.glob("*.md")))])
def test_every_page_with_code_is_run(page: str) -> None:
    run = {"README.md", *(f"docs/{name}.md" for name in RUN)}
    assert bool(list(python_blocks(ROOT / page))) is (page in run)


def test_methods_page_runs(vlm_of: Any, anchors: list[sk.Sample]) -> None:
    names = run_page(DOCS / "methods.md", sk=sk, replace=replace, vlm=vlm_of("llava"), anchors=anchors, samples=anchors)
    assert len(names["answers"]) == len(anchors)


def test_samples_page_runs() -> None:
    chat = run_page(DOCS / "samples.md")["chat"]
    assert [role for role, _ in chat.turns] == ["user", "assistant", "user"]
    assert chat.images == ("photo.jpg",)
    assert chat.messages(1)[2]["content"][0] == {"type": "image"}


def test_concepts_page_runs(llava: sk.VLM) -> None:
    """The logits are those of plain hooks that add the directions at the last token of the prompt alone."""
    stored = {key.layer: direction for key, direction in directions(llava).items()}
    whole = llava.inputs(WITH_IMAGE[:1])
    prompt = {"input_ids": whole["input_ids"][:, :-2]}  # the last two tokens stand for an answer
    names = run_page(
        DOCS / "concepts.md",
        sk=sk,
        model=llava.model,
        vector=vector(llava, directions(llava), sk.Intervention(phase="prompt")),
        prompt=prompt,
        prompt_and_answer=whole,
    )
    last = prompt["input_ids"].shape[1] - 1

    def adding(layer: int) -> Any:
        def hook(module: Any, args: Any, output: Any) -> Any:
            changed = (output[0] if isinstance(output, tuple) else output).clone()
            changed[:, last] += stored[layer]
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

        return hook

    handles = [
        llava.model.get_submodule(llava.architecture.layers)[layer].register_forward_hook(adding(layer))
        for layer in stored
    ]
    with torch.no_grad():
        expected = llava.model(**whole).logits
    for handle in handles:
        handle.remove()
    with torch.no_grad():
        unsteered = llava.model(**whole).logits
    torch.testing.assert_close(names["logits"].detach(), expected, atol=1e-4, rtol=1e-4)
    assert (expected - unsteered).abs().max() > 1e-2


def test_hub_page_runs(llava: sk.VLM, anchors: list[sk.Sample]) -> None:
    vector = sk.CMRM().fit(llava, anchors, anchor_name="requests")
    published = run_page(DOCS / "hub.md", vector=vector, commit="0123abcdef" * 4)["vector"]
    assert published.metadata.model.id == "owner/base"
    assert published.digest() == vector.digest()


def test_interop_page_runs(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    foreign.control_vector(elsewhere / "happy.gguf", foreign.directions(0, 1, 2, 3))
    run_page(DOCS / "interop.md")
    assert "converted from a repeng ControlVector" in capsys.readouterr().out
    assert (elsewhere / "happy-2-3.gguf").exists()


def test_composition_page_runs(llava: sk.VLM, capsys: pytest.CaptureFixture[str]) -> None:
    safety, style = (vector(llava, directions(llava, seed=seed)) for seed in range(2))
    run_page(
        DOCS / "composition.md", sk=sk, model=llava.model, inputs=llava.inputs(WITH_IMAGE), safety=safety, style=style
    )
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_any_model_page_runs() -> None:
    vlm = sk.wrap(*decoder.build("llama", layers=2))
    steering = vector(vlm, directions(vlm), sk.Intervention(tokens="all")).select([1])
    inputs = vlm.inputs(TEXT_ONLY)
    batch = {**inputs, "labels": inputs["input_ids"]}
    given = {"sk": sk, "torch": torch, "model": vlm.model, "vector": steering, "inputs": inputs, "batches": [batch] * 2}
    names = run_page(
        DOCS / "any-model.md",
        lambda code: code.replace("12", "1").replace("compile(forward)", "compile(forward, backend='eager')"),
        **given,
    )
    torch._dynamo.reset()
    assert (names["direction"] - steering.directions[1]).abs().max() > 1e-4


def test_interop_page_lists_every_format() -> None:
    page = (DOCS / "interop.md").read_text(encoding="utf-8")
    for name in interop.format_names():
        assert f"`{name}`" in page


@pytest.mark.usefixtures("elsewhere")
def test_screening_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    page = (DOCS / "screening.md").read_text(encoding="utf-8")
    canaries = re.findall(r"^```json\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)[0]
    Path("my-canaries.json").write_text(canaries, encoding="utf-8")
    for name in re.findall(r'"image": "(.*?)"', canaries):
        Image.new("RGB", (32, 32)).save(name)
    vlm = sk.load(model_path("llava"))
    vector = sk.CMRM().fit(vlm, [sk.Sample(row.question, (row.image,)) for row in world.prompts("harmful", "train", 4)])
    for name in ("cmrm-llava.safetensors", "other.safetensors"):
        vector.save(name)
    published = '"llava-hf/llava-1.5-7b-hf", dtype="bfloat16", device_map="auto"'
    assert published in page
    run_page(DOCS / "screening.md", lambda code: code.replace(published, repr(model_path("llava"))))
    shown = capsys.readouterr().out
    assert shown.count("screening.refusals") == 2
    for check in ("refusals", "over_refusal", "output", "direction"):
        assert f"screening.{check}" in shown
        assert f"| `screening.{check}` |" in page


# -- the pack format -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_reader_of_the_format_page_reads_packs(tmp_path: Path, dtype: Any) -> None:
    read_pack = run_page(DOCS / "pack-format.md")["read_pack"]
    metadata = PackMetadata.model_validate(
        {
            "method": {"name": "made by hand"},
            "interventions": [{}],
            "model": {"architecture": "Any", "model_type": "any", "hidden_size": 5, "layer_count": 3},
        }
    )
    tensors = {sk.Key(0): torch.randn(5), sk.Key(2): torch.randn(2, 5), sk.Key(1, "mlp_out", "b"): torch.randn(5)}
    vector = sk.SteeringVector(tensors, metadata).to(dtype)
    path = vector.save(tmp_path / "pack.safetensors")
    document, directions = read_pack(path)
    assert document["tensors_sha256"] == vector.digest()
    assert set(directions) == {v1.tensor_name(*key) for key in vector.tensors}
    for key, tensor in vector.tensors.items():
        shape, values = directions[v1.tensor_name(*key)]
        assert torch.equal(torch.tensor(values).reshape(shape), tensor.float())
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match="changed"):
        read_pack(path)


def test_format_page_gives_every_nested_default() -> None:
    """One row for each field of a nested object that may be left out, and the value that it then has."""
    objects = {
        "add": Add,
        "ablate": Ablate,
        "add_projection": AddProjection,
        "clamp": Clamp,
        "scale": Scale,
        "measure": Measure,
        "direction, stored": StoredDirection,
        "direction, contrast": MeasuredContrast,
        "gate": Gate,
        "gates": Gates,
        "linear strength": LinearStrength,
    }
    page = (DOCS / "pack-format.md").read_text(encoding="utf-8")
    rows = page.split("| object | field | default |\n")[1].split("\n\n")[0].splitlines()[1:]
    listed = {}
    for row in rows:
        names, field, default = (cell.strip().replace("`", "") for cell in row.strip("|").split("|"))
        for name in [names] if names in objects else names.split(", "):
            listed[name, field] = json.loads(default)
    expected = {
        (name, field): json.loads(TypeAdapter(Any).dump_json(info.get_default(call_default_factory=True)))
        for name, kind in objects.items()
        for field, info in kind.model_fields.items()
        if not info.is_required() and field not in ("kind", "source")
    }
    for key, value in expected.items():
        if isinstance(value, dict):
            expected[key] = {"source": value["source"]}
    assert listed == expected


def test_format_page_lists_every_field_of_the_document() -> None:
    page = (DOCS / "pack-format.md").read_text(encoding="utf-8")
    for model in (PackMetadata, *(PackMetadata.model_fields[name].annotation for name in ("method", "model"))):
        for field in model.model_fields:  # type: ignore[union-attr]
            assert re.search(rf"\b{field}\b", page), field
    for field in sk.Intervention.model_fields:
        assert f"`{field}`" in page, field


# -- the record of the guide -----------------------------------------------------------------------------------------


def test_record_of_the_guide_serves_its_family(tmp_path: Path) -> None:
    family = run_page(DOCS / "add-a-model.md")["FAMILY"]
    project = scaffold("adapter", "acme_vl", tmp_path)
    made: dict[str, Any] = {"__name__": "tiny_acme_vl"}
    exec((project / "steerkit_acme_vl" / "tiny.py").read_text(encoding="utf-8"), made)
    model, processor = made["tiny_model"]()
    vlm = sk.wrap(model, processor, family=family)
    picture = Image.effect_noise((32, 32), 80).convert("RGB")
    samples = [sk.Sample("What is this?", (picture,)), sk.Sample("Describe the image in detail.", (picture,))]
    states: list[torch.Tensor] = []
    first, second = model.decoder.layers[:2]
    hooks = [
        first.register_forward_hook(lambda _, args, out: states.append(out)),
        second.register_forward_pre_hook(lambda _, args: states.append(args[0])),
    ]
    with torch.no_grad():
        for sample in samples:
            for images in (False, True):
                model(**vlm.inputs([sample], images=images))
        ends = [state[0, -1] for state in states[::2]]
        expected = (ends[0] - ends[1] + ends[2] - ends[3]) / 2
        vector = sk.CMRM(layers=(0,)).fit(vlm, samples)
        torch.testing.assert_close(vector.directions[0], expected, rtol=1e-4, atol=1e-4)

        states.clear()
        inputs = vlm.inputs(samples)
        with sk.steer(vlm, vector) as receipt:
            model(**inputs)
        model(**inputs)
    for hook in hooks:
        hook.remove()
    (_, steered), (_, plain) = states[:2], states[2:]
    assert receipt.layers == [0]
    torch.testing.assert_close(steered[:, -1], plain[:, -1] + expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(steered[:, :-1], plain[:, :-1])


# -- lists and commands ----------------------------------------------------------------------------------------------


def test_every_error_is_documented() -> None:
    page = (DOCS / "errors.md").read_text(encoding="utf-8")
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and kind.__module__ == errors.__name__]
    for kind in kinds:
        assert kind.__name__ in page
        for base in kind.__bases__:
            if kind is not errors.SteerKitError and base is not errors.SteerKitError:
                assert f"| `{kind.__name__}` | `{base.__name__}` |" in page


def _commands(group: type[Group] = Root, before: str = "") -> list[str]:
    found: list[str] = []
    for section in group.table.values():
        for name, home in section.items():
            found += [f"{before}{name}"] if isinstance(home, str) else _commands(home, f"{before}{name} ")
    return found


def test_every_command_and_option_of_the_pages_exists() -> None:
    known, shown = _commands(), {}
    for path in [*ROOT.glob("*.md"), *DOCS.glob("*.md")]:
        if path.name == "CHANGELOG.md":  # it tells of commands that releases had
            continue
        for block in re.findall(r"^```sh\n(.*?)^```$", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
            for line in re.findall(r"^steerkit .*$", block, re.MULTILINE):
                text = line.partition(" #")[0]
                words = text.split()[1:]
                command = next((each for each in (" ".join(words[:2]), words[0]) if each in known), None)
                assert command, f"{path.name}: {line}"
                if command not in shown:
                    shown[command] = (
                        CliRunner().invoke(app, [*command.split(), "--help"], env={"COLUMNS": "200"}).output
                    )
                for option in re.findall(r"(?<=\s)--?[a-z][a-z-]*", text):
                    found = re.search(rf"(?<![\w-]){option}(?![\w-])", shown[command])
                    assert found, f"{path.name}: {command} {option}"
    page = (DOCS / "command-line.md").read_text(encoding="utf-8")
    for command in known:
        assert re.search(rf"^## .*\b{command.split()[-1]}\b", page, re.MULTILINE), command
        assert re.search(rf"^## .*\b{command.split()[-1]}\b", page, re.MULTILINE), command


def test_readme_and_ci_use_the_same_commands() -> None:
    blocks = re.findall(r"^```sh\n(.*?)\n```$", README, re.MULTILINE | re.DOTALL)
    demo, tests, *_ = blocks
    assert demo.endswith("steerkit demo")
    assert "\n" not in demo + tests
    pattern = re.search(r"grep -E '(.*?)' README.md", (ROOT / ".ci/run").read_text(encoding="utf-8"))
    assert pattern is not None
    assert [line for line in README.splitlines() if re.search(pattern[1], line)] == [tests]
    assert subprocess.run(["bash", "-n", ROOT / ".ci/run"], check=False).returncode == 0


def _exists(name: str) -> bool:
    """Whether `steerkit.room.Class.member` can be reached; fields of dataclasses and pydantic models count."""
    first, *rest = name.split(".")
    found: Any = importlib.import_module("steerkit" if first == "sk" else first)
    for part in rest:
        if isinstance(found, type) and part in inspect.get_annotations(found):
            return True
        if not hasattr(found, part) and isinstance(found, ModuleType):
            with suppress(ModuleNotFoundError):
                importlib.import_module(f"{found.__name__}.{part}")
        if not hasattr(found, part):
            return False
        found = getattr(found, part)
    return True


def test_names_and_files_of_steerkit_in_the_pages_exist() -> None:
    for page in [*ROOT.glob("*.md"), *DOCS.glob("*.md")]:
        text = page.read_text(encoding="utf-8")
        for name in re.findall(r"(?<![\w./@-])(?:sk|steerkit|steerkit_vectors_hub)(?:\.[A-Za-z]\w*)+", text):
            entry_point = name.removeprefix("steerkit.") in ("methods", "adapters", "interop")
            assert entry_point or name.endswith(".whl") or _exists(name), f"{page.name}: {name}"
        for path in re.findall(r"`((?:steerkit|vectors_hub|adapters|tests|benchmarks)/[\w/.-]+(?:/|\.py))`", text):
            assert (ROOT / path).exists(), f"{page.name}: {path}"


def test_what_the_pages_use_is_in_the_api() -> None:
    documented: set[str] = set()
    page = (DOCS / "api.md").read_text(encoding="utf-8")
    for name, members in re.findall(r"^::: (\S+)\n(?:    options:\n      members: \[([^]]*)\])?", page, re.MULTILINE):
        documented |= {name.rpartition(".")[2], *members.split(", ")}
        if not members and _exists(name) and (module := sys.modules.get(name)):
            documented |= {each for each, value in vars(module).items() if getattr(value, "__module__", "") == name}
    used: set[str] = set()
    for path in [*DOCS.glob("*.md"), ROOT / "README.md", *(ROOT / "examples").rglob("*.py")]:
        text = path.read_text(encoding="utf-8")
        used |= {
            name for both in re.findall(r"\bsk\.([a-z]\w*|\w+(?!\w|\.))(?:\.([A-Za-z]\w*))?", text) for name in both
        }
        for given in re.findall(
            r"^from steerkit(?:_vectors_hub)?(?:\.[\w.]+)? import (\([^)]*\)|.*)", text, re.MULTILINE
        ):
            used |= set(re.findall(r"\w+", re.sub(r"#.*| as \w+", "", given)))
    modules = {each.name for each in pkgutil.iter_modules(sk.__path__)} | {"interop", "cmrm", ""}
    assert sorted(used - documented - modules) == []


def test_links_between_pages_lead_somewhere() -> None:
    pages = [*ROOT.glob("*.md"), *DOCS.glob("*.md")]
    for page in pages:
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} -> {target}"
