"""The index of packs, its schema, searching in it, and the page made from it."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hub_support import vector

from demo_training.write_packs import pack_name, write_bundled_index
from steerkit_vectors_hub import bundled
from steerkit_vectors_hub.catalogue import page
from steerkit_vectors_hub.errors import IndexFormatError
from steerkit_vectors_hub.index import (
    SCHEMA,
    Entry,
    Index,
    bundled_index,
    entry_of,
    json_schema,
    make_index,
    parse_index,
    read_index,
    search,
    write_index,
)
from steerkit_vectors_hub.resolve import resolve

EVIL = "</script><img src=x onerror=alert(1)>\"' onload='alert(1)"


@pytest.fixture
def entry(tmp_path: Path) -> Entry:
    path = vector().save(tmp_path / "cmrm-things.safetensors")
    return entry_of(resolve(str(path)))


class TestIndex:
    def test_an_index_says_what_a_pack_says(self, entry: Entry) -> None:
        assert entry.name == "cmrm-things"
        assert entry.ref.endswith(f"#sha256={entry.sha256}")
        assert (entry.model.id, entry.method, entry.license) == ("owner/model", "cmrm", "MIT")
        (series,) = entry.norms
        assert series.layers == (0, 1, 2, 3)
        for layer, norm in zip(series.layers, series.norms, strict=True):
            assert norm == pytest.approx(float(vector().directions[layer].norm()), rel=1e-5)

    def test_it_is_written_and_read(self, entry: Entry, tmp_path: Path) -> None:
        index = make_index([entry], title="Ours")
        write_index(index, tmp_path / "index.json")
        assert read_index(tmp_path / "index.json") == index

    def test_the_schema_is_checked_in_and_holds(self, entry: Entry) -> None:
        schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
        assert schema == json_schema()
        jsonschema.Draft202012Validator.check_schema(schema)
        document = make_index([entry]).model_dump(mode="json")
        jsonschema.validate(document, schema)
        document["packs"][0]["colour"] = "red"
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(document, schema)

    @pytest.mark.parametrize(
        ("document", "text"),
        [
            ([], "valid dictionary"),
            ({"index_version": 2}, "index_version"),
            ({"packs": [{"name": "x"}]}, "ref"),
            ({"colour": "red"}, "colour"),
        ],
    )
    def test_another_document_is_refused(self, document: Any, text: str) -> None:
        with pytest.raises(IndexFormatError, match=text):
            parse_index(document, name="it")

    @pytest.mark.parametrize("content", [b"", b"{", b"[" * 100_000, b"\xff"])
    def test_a_damaged_file_is_refused(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "index.json"
        path.write_bytes(content)
        with pytest.raises(IndexFormatError):
            read_index(path)
        with pytest.raises(IndexFormatError):
            read_index(tmp_path / "nothing.json")

    def test_it_holds_what_a_pack_may_say_or_says_why_not(self, entry: Entry, tmp_path: Path) -> None:
        long = "x" * 1000
        path = vector(license=long, authors=[long]).save(tmp_path / "long.safetensors")
        assert entry_of(resolve(str(path))).license == long
        with pytest.raises(IndexFormatError, match="name"):
            entry_of(resolve(str(path)), name="x" * 501)
        with pytest.raises(IndexFormatError, match="title"):
            make_index([entry], title=long)

    def test_norms_belong_to_layers(self, entry: Entry) -> None:
        document = make_index([entry]).model_dump(mode="json")
        document["packs"][0]["norms"][0]["norms"].pop()
        with pytest.raises(IndexFormatError, match="4 layers and 3 norms"):
            parse_index(document, name="it")

    def test_search(self, entry: Entry) -> None:
        other = entry.model_copy(update={"name": "other", "method": "caa", "metrics": (), "description": ""})
        both = [entry, other]
        assert search(both) == both
        assert search(both, "REFUSALS things") == [entry]
        assert search(both, method="CAA") == [other]
        assert search(both, metric="unsafe_rate") == [entry]
        assert search(both, model="llava") == both
        assert search(both, "other", model="qwen") == []


class TestBundled:
    def test_the_index_names_packs_as_they_are_loaded(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert pack_name("qwen2_5_vl") == "cmrm-qwen2-5-vl-demo"
        vector().save(tmp_path / "cmrm-llava-demo.safetensors")
        write_bundled_index(tmp_path)
        monkeypatch.setattr(bundled, "FOLDER", tmp_path)
        monkeypatch.setattr("steerkit_vectors_hub.index.FOLDER", tmp_path)
        (entry,) = bundled_index().packs
        assert entry.ref == f"cmrm-llava-demo#sha256={entry.sha256}"
        assert resolve(entry.ref).kind == "bundled"

    def test_what_is_bundled_is_indexed(self) -> None:
        assert [entry.name for entry in bundled_index().packs] == bundled.bundled_names()
        for entry in bundled_index().packs:
            assert resolve(entry.ref).sha256 == entry.sha256


class _Page(HTMLParser):
    """The elements of a page, and the text in them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


class TestPage:
    def test_it_shows_every_pack_and_loads_nothing(self, entry: Entry) -> None:
        other = entry.model_copy(update={"name": "other", "norms": (), "metrics": ()})
        shown = _Page(page(make_index([entry, other], title="Ours")))
        assert sum(tag == "article" for tag, _ in shown.tags) == 2
        assert sum(tag == "rect" for tag, _ in shown.tags) == 4
        names = {name for _, attributes in shown.tags for name in attributes}
        assert not names & {"src", "href", "action", "srcset", "background", "style", "onload"}
        assert not {tag for tag, _ in shown.tags} & {"link", "img", "iframe", "object", "base"}
        assert [tag for tag, _ in shown.tags].count("script") == 1
        policy = next(attributes for tag, attributes in shown.tags if "http-equiv" in attributes)["content"]
        assert str(policy).startswith("default-src 'none'; style-src 'sha256-")
        for text in ("cmrm-things", "unsafe_rate", "MIT", "owner/model"):
            assert text in shown.text

    def test_it_can_be_read_without_eyes(self, entry: Entry) -> None:
        shown = _Page(page(make_index([entry])))
        chart = next(attributes for tag, attributes in shown.tags if tag == "svg")
        assert chart["role"] == "img"
        assert str(chart["aria-label"]).startswith("Norm of resid_post by layer, 0 to 3")
        assert next(attributes for tag, attributes in shown.tags if tag == "html")["lang"] == "en"
        labels = sum(tag == "label" for tag, _ in shown.tags)
        assert labels == sum(tag in ("input", "select") for tag, _ in shown.tags)

    def test_what_a_pack_says_is_text_and_never_markup(self, entry: Entry) -> None:
        plain = _Page(page(make_index([entry])))
        evil = entry.model_copy(
            update={
                **{field: EVIL for field in ("name", "ref", "method", "paper", "license", "description", "created")},
                "authors": (EVIL,),
                "model": entry.model.model_copy(update={"id": EVIL, "revision": EVIL, "architecture": EVIL}),
                "metrics": tuple(
                    each.model_copy(update=dict.fromkeys(("name", "condition", "judge", "dataset"), EVIL))
                    for each in entry.metrics
                ),
                "norms": tuple(each.model_copy(update={"site": EVIL, "name": EVIL}) for each in entry.norms),
            }
        )
        shown = _Page(page(Index(title=EVIL, generated=EVIL, packs=(evil,))))
        assert {tag for tag, _ in shown.tags} <= {tag for tag, _ in plain.tags} | {"dt"}
        assert not any(name.startswith("on") for _, attributes in shown.tags for name in attributes)
        assert [tag for tag, _ in shown.tags].count("script") == 1

    def test_control_characters_are_escaped(self, entry: Entry) -> None:
        evil = "a\u202eb\x1b[31mc\0d\u2028e"
        metric = entry.metrics[0].model_copy(update={"name": evil, "judge": evil})
        series = entry.norms[0].model_copy(update={"name": evil})
        changes = {"name": evil, "ref": evil, "method": evil, "description": evil, "metrics": (metric,)}
        shown = page(Index(title=evil, packs=(entry.model_copy(update={**changes, "norms": (series,)}),)))
        assert not set(evil) & set("\u202e\x1b\0\u2028") & set(shown)
        assert r'<option value="a\u202eb\x1b[31mc\x00d\u2028e">' in shown
        (article,) = (attributes for tag, attributes in _Page(shown).tags if tag == "article")
        assert json.loads(str(article["data-metrics"])) == [r"a\u202eb\x1b[31mc\x00d\u2028e"]

    def test_an_empty_index_has_a_page(self) -> None:
        assert "0 packs" in _Page(page(Index())).text
