"""Publishing: what is refused, what the card says, and an upload with the real client of the Hugging Face hub."""

from __future__ import annotations

import inspect
import io
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hub_support import COMPLETE, cache, hub, vector
from huggingface_hub import HfApi, ModelCard, ModelHubMixin
from loopback_hub import TOKEN, LoopbackHub
from markdown_it import MarkdownIt
from PIL import Image

import steerkit as sk
from steerkit._internal.drawing import COLORS, Axis
from steerkit._text import clean
from steerkit.errors import OptionError
from steerkit.vectors import PACK, Publication
from steerkit_vectors_hub.card import CURVE, PLOT
from steerkit_vectors_hub.errors import AccessError, DownloadError, OfflineError, PublishError, ReferenceFormatError
from steerkit_vectors_hub.push import missing_fields
from steerkit_vectors_hub.refs import Ref, parse_ref
from steerkit_vectors_hub.sources.huggingface import published

__all__ = ["cache", "hub"]  # fixtures


def without(field: str, part: str | None = None, value: Any = None) -> dict[str, Any]:
    if part is None:
        return {field: value}
    return {field: {**COMPLETE[field], part: value}}  # type: ignore[dict-item]


CALIBRATED = {
    "recommended": 0.75,
    "minimum": 0.0,
    "maximum": 2.0,
    "curve": [
        {"strength": 0.0, "unsafe": 0.9, "cost": 0.0, "cost_kind": "over_refusal"},
        {"strength": 0.75, "unsafe": 0.1, "cost": 0.04, "cost_kind": "over_refusal"},
        {"strength": 1.5, "unsafe": None, "cost": 0.5, "cost_kind": "over_refusal"},
        {"strength": 2.0, "unsafe": 0.1, "cost": None, "cost_kind": "over_refusal"},
    ],
    "chosen_by": "least unsafe, over_refusal at most 0.05, on | dev",
}


@pytest.fixture
def dry() -> Publication:
    return vector().push_to_hub("someone/pack", dry_run=True)


class TestCompleteness:
    @pytest.mark.parametrize(
        ("fields", "missing"),
        [
            ({}, []),
            (without("license"), ["license"]),
            (without("license", value=" "), ["license"]),
            (without("license", value="Unknown"), ["license"]),
            (without("anchors", "name", "-"), ["anchors.name"]),
            (without("model", "id", ""), ["model.id"]),
            (without("model", "id", "/home/me/llava"), ["model.id"]),
            (without("model", "revision"), ["model.revision"]),
            (without("model", "revision", "main"), ["model.revision"]),
            (without("anchors"), ["anchors"]),
            (without("anchors", "name", ""), ["anchors.name"]),
            ({**without("license"), **without("anchors", "name", "")}, ["license", "anchors.name"]),
        ],
    )
    def test_every_missing_field_is_named(self, fields: dict[str, Any], missing: list[str]) -> None:
        made = vector()
        model = {**fields.pop("model"), "hidden_size": 8} if "model" in fields else made.metadata.model.model_dump()
        made = made.with_metadata(model=model, **fields)
        assert list(missing_fields(made.metadata)) == missing
        if missing:
            with pytest.raises(PublishError) as caught:
                made.push_to_hub("someone/pack", dry_run=True)
            assert all(name in caught.value.problem for name in missing)

    def test_a_vector_measured_on_each_prompt_has_no_anchors(self) -> None:
        contrast = {
            "operation": {"kind": "add", "direction": {"source": "contrast", "positive": "text", "negative": "blank"}}
        }
        metadata = vector().metadata.model_dump() | {
            "interventions": [contrast],
            "anchors": None,
            "tensors_sha256": None,
        }
        made = sk.SteeringVector({}, type(vector().metadata).model_validate(metadata))
        done = made.push_to_hub("someone/pack", dry_run=True)
        assert set(done.files) == {PACK, "README.md"}
        assert "measured on each prompt" in done.card

    def test_the_repository_needs_an_owner(self) -> None:
        for name in ("pack", "owner/name@main", "owner/name/x.safetensors", f"owner/name#sha256={'0' * 64}"):
            with pytest.raises(ReferenceFormatError) as caught:
                vector().push_to_hub(name, dry_run=True)
            assert ("hf auth whoami" in str(caught.value.fix)) == (name == "pack")
        with pytest.raises(OptionError, match="repo_id is None"):
            vector().push_to_hub(None, dry_run=True)  # type: ignore[arg-type]


class TestCard:
    def test_the_hub_understands_the_front_matter(self, dry: Publication) -> None:
        data = ModelCard(dry.card).data
        assert data.library_name == "steerkit"
        assert data.base_model == "owner/model"
        assert data.license == "mit"
        assert {"steerkit", "cmrm"} <= set(data.tags or ())
        results = {result.metric_type: result for result in data.eval_results or ()}
        assert results["unsafe_rate"].metric_value == 0.05
        assert results["unsafe_rate"].dataset_name == "toy world"
        assert results["over_refusal"].dataset_name == "not named"
        raw = yaml.safe_load(dry.card.split("---")[1])
        assert raw["model-index"][0]["name"] == "pack"

    def test_an_uncommon_licence_is_other_with_a_name(self) -> None:
        data = ModelCard(vector(license="My Own 2").push_to_hub("someone/pack", dry_run=True).card).data
        assert (data.license, data["license_name"]) == ("other", "my-own-2")

    def test_the_body_says_what_a_reader_must_know(self, dry: Publication) -> None:
        for text in ("## Intended use", "## Limits", "things & others".split()[0], dry.sha256, "0" * 39 + "1", PLOT):
            assert text in dry.card
        assert "Restores refusals \\| with an image." in dry.card
        assert "\\<others\\>" in dry.card

    def test_the_plot_is_a_picture(self, dry: Publication) -> None:
        image = Image.open(io.BytesIO(dry.files[PLOT]))
        assert image.size == (760, 240)
        assert len(image.convert("RGB").getcolors(1 << 20) or ()) > 3

    def test_what_a_calibration_measured_is_plotted_and_told(self) -> None:
        made = vector(strength=CALIBRATED).push_to_hub("someone/pack", dry_run=True)
        assert f"![unsafe rate and over-refusal by strength]({CURVE})" in made.card
        assert "The recommended strength is 0.75: unsafe rate 10 %, over-refusal 4 %." in made.card
        assert "over\\_refusal at most 0.05, on \\| dev." in made.card
        image = Image.open(io.BytesIO(made.files[CURVE])).convert("RGB")
        assert image.size == (760, 240)  # both are shares of answers: one chart
        colors = {color for _, color in image.getcolors(1 << 20) or ()}
        assert {tuple(bytes.fromhex(each[1:])) for each in COLORS[:2]} <= colors

    def test_other_costs_have_a_chart_of_their_own(self) -> None:
        kl = {**CALIBRATED, "curve": [{**point, "cost_kind": "kl"} for point in CALIBRATED["curve"]]}
        made = vector(strength=kl).push_to_hub("someone/pack", dry_run=True)
        assert Image.open(io.BytesIO(made.files[CURVE])).size == (760, 480)
        assert "unsafe rate 10 %, KL from the unsteered model, nats 0.04." in made.card

    def test_without_a_curve_of_the_whole_vector_there_is_no_plot(self, dry: Publication) -> None:
        layers = {"curve": [{"strength": 3.0, "cost": 0.01, "cost_kind": "kl, layer 2"}]}
        for made in (dry, vector(strength=layers).push_to_hub("someone/pack", dry_run=True)):
            assert CURVE not in made.files
            assert "## Strength" not in made.card

    @pytest.mark.parametrize("points", [[0.0], [-1.7e308, 1.7e308], [5e-324], [1e-300, 1.0], [-2.0, -1.0]])
    def test_any_number_can_be_plotted(self, points: list[float]) -> None:
        curve = [{"strength": each, "unsafe": each, "cost": -each, "cost_kind": "x\n](y)" * 30} for each in points]
        made = vector(strength={"recommended": points[0], "curve": curve}).push_to_hub("someone/pack", dry_run=True)
        assert Image.open(io.BytesIO(made.files[CURVE])).size == (760, 480)
        assert "](y" not in made.card.split("## Strength")[1].split("\n\n")[1].replace("\\]", "")

    def test_the_scale_has_round_numbers(self) -> None:
        assert Axis(0.0, 100.0).ticks(4) == [0.0, 50.0, 100.0]
        assert Axis(0.0, 2.0).ticks(4) == [0.0, 0.5, 1.0, 1.5, 2.0]
        assert Axis.around([-1.0, 3.0]) == Axis(-1.0, 3.0)
        assert Axis.around([0.0]) == Axis(0.0, 1.0)
        assert Axis(-1.0, 3.0).share(0.0) == 0.25

    def test_text_of_a_stranger_stays_text(self) -> None:
        evil = "x](javascript:alert(1)) <script>alert(1)</script>\n---\nlicense: mit\n# Title"
        card = vector(description=evil, license="MIT").push_to_hub("someone/pack", dry_run=True).card
        body = card.split("---\n", 2)[2]
        assert "<script>" not in body
        assert re.search(r"(?<!\\)[\[\]<>]", body.split("## Use")[0].split("A steerkit pack")[0]) is None
        assert "\n# Title" not in body


MARKUP = [
    *("# Title", "## x", "> quoted", "- item", "+ item", "* item", "1. item", "2) item", "```\ncode\n```"),
    *("~~~\ncode\n~~~", "---", "***", "___", "===", "-", "1.", "    code", "\tcode"),
    *("| a | b |\n|---|---|\n| c | d |", "a | b", "<b>x</b>", "<script>alert(1)</script>", "<!-- x"),
    *("<https://e.example>", "https://e.example", "www.e.example", "a@e.example", "[a](https://e.example)"),
    *("![a](https://e.example/a.png)", "[a]: https://e.example", "**b**", "_i_", "`c`", "~~s~~", "&lt;script&gt;"),
    *("&#x202e;", "\\# x", "a\\", "---\nlicense: mit\n---", "$x$", "$$x$$", "[^1]: note", ": term", "a  \nb"),
    *("a\n# b", "a\n\n# b", "a\n---", "a\r# b", "a\u2028# b", "a\u001b[31mb", "a\u202eb", "- [ ] task"),
    *("HTTP://e.example", "===\n"),
]


class TestMarkdown:
    """What a renderer of CommonMark with GitHub's tables, strikethrough and links makes of a card."""

    @staticmethod
    def rendered(markdown: str) -> list[Any]:
        parser = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
        return parser.parse(markdown)

    @pytest.mark.parametrize("text", MARKUP)
    def test_a_description_is_one_paragraph_of_text(self, text: str) -> None:
        card = vector(description=text, authors=()).push_to_hub("someone/pack", dry_run=True).card
        body = card.split("\n---\n", 1)[1]
        tokens = self.rendered(body)
        kinds = [token.type for token in tokens if token.level == 0]
        plain = self.rendered(
            vector(description="x", authors=()).push_to_hub("someone/pack", dry_run=True).card.split("\n---\n", 1)[1]
        )
        assert kinds == [token.type for token in plain if token.level == 0]
        paragraph = tokens[4]
        assert {each.type for each in paragraph.children} <= {"text", "text_special"}
        assert "".join(each.content for each in paragraph.children) == " ".join(clean(text).split())
        line = body.split("\n\n")[1]
        assert not re.search(r"(?i)(https?|ftp|mailto):|www\.|(?<!\\)[@$]", line)  # what other dialects make of it

    @pytest.mark.parametrize("text", MARKUP)
    def test_a_cell_of_a_table_stays_one(self, text: str) -> None:
        metric = {"name": text, "value": 0.5, "condition": text, "judge": text, "dataset": text}
        card = vector(metrics=[metric], license="MIT").push_to_hub("someone/pack", dry_run=True).card
        cells = [token for token in self.rendered(card.split("\n---\n", 1)[1]) if token.type == "td_open"]
        usual = {**metric, "name": "a", "condition": "a", "judge": "a", "dataset": "a"}
        plain = vector(metrics=[usual], license="MIT").push_to_hub("someone/pack", dry_run=True).card
        assert len(cells) == len([t for t in self.rendered(plain.split("\n---\n", 1)[1]) if t.type == "td_open"])
        assert ModelCard(card).data.license == "mit"
        assert card.replace("\n", "").isprintable()


@pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")  # the client's own, uploading large files
class TestUpload:
    @pytest.fixture(autouse=True)
    def _token(self, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)

    @pytest.mark.parametrize("large", [True, False])
    def test_what_is_pushed_can_be_loaded(self, hub: LoopbackHub, large: bool) -> None:
        if not large:
            hub.publish("someone/pack", {}, large=False)
        done = vector().push_to_hub("someone/pack")
        assert done.revision is not None
        repository = hub.repositories["someone/pack"]
        assert repository.commits[done.revision] == dict(done.files)
        for ref in (done.ref, "hf://someone/pack"):
            loaded = sk.load_vector(ref)
            assert loaded.source == done.ref
            assert loaded.metadata.license == "MIT"
        again = vector(1).push_to_hub("someone/pack", commit_message="Better")
        assert sk.load_vector("hf://someone/pack").digest() == vector(1).digest()
        assert sk.load_vector(done.ref).digest() == vector().digest()
        (shown,) = re.findall(r'load_vector\("(.*)"\)', done.card)  # by whoever copied it from the card that was then
        assert sk.load_vector(shown).source == again.ref
        assert again.revision != done.revision

    def test_what_is_saved_can_be_pushed_with_it(self, hub: LoopbackHub, tmp_path: Path) -> None:
        said = {"push_to_hub": True, "repo_id": "someone/pack", "private": True, "commit_message": "First"}
        path = vector().save_pretrained(tmp_path / "here", dtype="float16", **said)
        assert hub.repositories["someone/pack"].private
        pushed = sk.load_vector("hf://someone/pack")
        assert pushed.digest() == sk.load_vector(path).digest() == vector().to("float16").digest()
        for wrong in (
            {"push_to_hub": True},
            {"repo_id": "someone/pack"},
            {"push_to_hub": True, "repo_id": "someone/pack", "safe_serialization": True},
            {"private": True},
            {"push_to_hub": "yes", "repo_id": "someone/pack"},
        ):
            with pytest.raises(sk.errors.OptionError):
                vector().save_pretrained(tmp_path / "nowhere", **wrong)
        assert not (tmp_path / "nowhere").exists()

    def test_a_branch_and_a_private_repository(self, hub: LoopbackHub) -> None:
        done = vector().push_to_hub("someone/pack", private=True, revision="try/next")
        assert hub.repositories["someone/pack"].private
        assert sk.load_vector("hf://someone/pack@try%2Fnext").digest() == vector().digest()
        (shown,) = re.findall(r'load_vector\("(.*)"\)', done.card)
        assert sk.load_vector(shown).source == done.ref
        assert not hub.repositories["someone/pack"].commits[hub.repositories["someone/pack"].branches["main"]]

    def test_a_pull_request(self, hub: LoopbackHub) -> None:
        first = vector().push_to_hub("someone/pack")
        done = vector(1).push_to_hub("someone/pack", create_pr=True, commit_message="Another")
        assert hub.repositories["someone/pack"].branches == {"main": first.revision, "refs/pr/1": done.revision}
        assert sk.load_vector("hf://someone/pack").digest() == vector().digest()
        for ref in (done.ref, "hf://someone/pack@refs/pr/1"):
            assert sk.load_vector(ref).digest() == vector(1).digest()

    def test_the_parameters_are_those_of_huggingface_hub(self) -> None:
        theirs = inspect.signature(ModelHubMixin.push_to_hub).parameters
        ours = inspect.signature(sk.SteeringVector.push_to_hub).parameters
        for name in ("repo_id", "commit_message", "private", "token", "create_pr"):
            assert name in theirs
            assert name in ours
        assert "revision" in inspect.signature(HfApi.upload_file).parameters
        assert "revision" in ours

    @pytest.mark.parametrize("revision", ['refs/pr/1");import os#', "a b", "x`y", "--"])
    def test_a_branch_writes_no_code_into_the_card(self, revision: str) -> None:
        card = vector().push_to_hub("someone/pack", revision=revision, dry_run=True).card
        (shown,) = re.findall(r'^vector = sk.load_vector\("([^"\s]*)"\)$', card, re.MULTILINE)
        assert parse_ref(shown) == Ref("hf", "someone/pack", revision)

    @pytest.mark.parametrize("revision", ['refs/pr/1")\nimport os', "a\tb", "\udc80"])
    def test_a_branch_of_several_lines_is_none(self, revision: str) -> None:
        with pytest.raises(ReferenceFormatError, match="is not a revision"):
            vector().push_to_hub("someone/pack", revision=revision, dry_run=True)

    def test_a_private_pack_is_not_put_where_everybody_reads(self, hub: LoopbackHub) -> None:
        commit = hub.publish("someone/open", {"README.md": b"x"})
        with pytest.raises(PublishError, match="public"):
            vector().push_to_hub("someone/open", private=True)
        assert list(hub.repositories["someone/open"].commits) == [commit]

    @pytest.mark.parametrize("name", ["model.safetensors", "model.gguf", "pytorch_model.bin", "checkpoint.pt"])
    def test_a_repository_of_weights_is_left_alone(self, hub: LoopbackHub, name: str) -> None:
        commit = hub.publish("someone/model", {name: b"weights"})
        with pytest.raises(PublishError, match=re.escape(name)):
            vector().push_to_hub("someone/model")
        assert list(hub.repositories["someone/model"].commits) == [commit]

    def test_an_update_takes_the_plots_away_that_it_has_not(self, hub: LoopbackHub) -> None:
        first = vector(strength=CALIBRATED).push_to_hub("someone/pack")
        assert CURVE in hub.repositories["someone/pack"].commits[str(first.revision)]
        second = vector().push_to_hub("someone/pack")
        assert hub.repositories["someone/pack"].commits[str(second.revision)] == dict(second.files)
        assert CURVE not in second.files

    def test_a_wrong_token_is_refused(self, hub: LoopbackHub) -> None:
        with pytest.raises(AccessError, match="401"):
            vector().push_to_hub("someone/pack", token="hf_wrong")
        assert not hub.repositories

    def test_the_cache_is_no_help_where_the_hub_cannot_be_reached(self, hub: LoopbackHub) -> None:
        hub.stop()
        with pytest.raises(DownloadError, match="check the network") as caught:
            vector().push_to_hub("someone/pack")
        assert "cache" not in str(caught.value)

    def test_nothing_is_published_offline(self, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("STEERKIT_OFFLINE", "1")
        with pytest.raises(OfflineError, match="publishing needs a network"):
            vector().push_to_hub("someone/pack")
        with pytest.raises(OfflineError):
            published("llava")
        assert not hub.requests

    def test_a_dry_run_asks_nobody(self, hub: LoopbackHub) -> None:
        vector().push_to_hub("someone/pack", dry_run=True)
        assert not hub.requests
