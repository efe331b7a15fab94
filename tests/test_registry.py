"""Methods and adapters by name: through entry points of distributions that are really there."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import steerkit as sk
from steerkit import registry
from steerkit.errors import PluginError, UnknownNameError, UnsupportedModelError
from steerkit.registry import adapter_for

METHOD = """
from steerkit.method import Fit, Plan, SteeringMethod

class Mine(SteeringMethod):
    name = "mine"
    paper = "none"
    def plan(self, model, anchors): return Plan([0])
    def observe(self, model, batch, layers): return {}
    def solve(self, model, found, layers): return Fit({}, ())

class Unfinished(SteeringMethod):
    name = "unfinished"
    paper = "none"

class Nameless(Mine):
    pass
del Mine.paper
class Whole(Mine):
    paper = "none"
"""
ADAPTER = """
from steerkit.adapter import ModelAdapter

class Toy(ModelAdapter):
    name = "toy"
    model_types = ("toy_vl",)
    def architecture(self, model): ...
    def load_processor(self, source, **options): ...
    def render(self, processor, sample, image_count): ...
    def encode(self, processor, texts, images): ...
    def image_sizes(self, processor, inputs): ...

class Untyped(Toy):
    pass
del Toy.model_types
class Typed(Toy):
    model_types = ("toy_vl",)
"""
Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """`install(distribution, source, group, name=Class, ...)`: a package and its .dist-info, on the path."""
    monkeypatch.syspath_prepend(str(tmp_path))
    modules: list[str] = []

    def forget() -> None:
        registry._points.cache_clear()
        registry._load.cache_clear()

    def made(distribution: str, source: str, group: str, **points: str) -> None:
        module = distribution.replace("-", "_")
        modules.append(module)
        (tmp_path / f"{module}.py").write_text(source)
        info = tmp_path / f"{module}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        lines = "".join(f"{name} = {module}:{kind}\n" for name, kind in points.items())
        (info / "entry_points.txt").write_text(f"[{group}]\n{lines}")
        forget()

    yield made
    forget()
    for module in modules:
        sys.modules.pop(module, None)
    monkeypatch.undo()
    forget()


def assert_built_ins_work() -> None:
    assert sk.get_method("cmrm") is sk.CMRM
    assert sk.get_method("caa") is sk.CAA
    assert adapter_for("llava").name == "llava"


def test_the_built_in_names() -> None:
    assert {"cmrm", "caa", "refusal_direction"} <= set(sk.method_names())
    assert {"llava", "qwen_vl", "instructblip"} <= set(sk.adapter_names())
    assert sk.method_names() == sorted(sk.method_names())


@pytest.mark.parametrize("name", ["cmrm", "caa", "refusal_direction"])
def test_a_method_is_registered_under_its_own_name(name: str) -> None:
    assert sk.get_method(name).name == name


def test_an_installed_method_is_found_beside_the_built_in_ones(install: Install) -> None:
    install("my-method", METHOD, registry.METHODS, whole="Whole")
    assert "whole" in sk.method_names()
    assert "my_method" not in sys.modules, "names are listed without importing"
    assert sk.get_method("whole").__name__ == "Whole"
    assert_built_ins_work()


def test_an_installed_adapter_serves_its_model_type(install: Install) -> None:
    with pytest.raises(UnsupportedModelError):
        adapter_for("toy_vl")
    install("my-adapter", ADAPTER, registry.ADAPTERS, toy="Typed")
    assert adapter_for("toy_vl").name == "toy"
    assert sk.get_adapter("toy").__name__ == "Typed"
    assert_built_ins_work()


@pytest.mark.parametrize(
    ("wrong", "right"), [("cmmr", "cmrm"), ("CAA", None), ("refusal-direction", "refusal_direction")]
)
def test_an_unknown_method_is_answered_with_the_nearest_and_all_names(wrong: str, right: str | None) -> None:
    with pytest.raises(UnknownNameError, match=f"unknown method '{wrong}'") as caught:
        sk.get_method(wrong)
    assert (f"Did you mean '{right}'?" in str(caught.value)) is (right is not None)
    assert "caa, cmrm, refusal_direction" in str(caught.value)


def test_an_unknown_adapter_is_answered_with_the_nearest_name() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown adapter 'lava'\. Did you mean 'llava'"):
        sk.get_adapter("lava")


def test_a_plugin_that_fails_to_import_is_named_and_the_rest_works(install: Install) -> None:
    install("broken-method", "import does_not_exist_anywhere", registry.METHODS, broken="Broken")
    install("broken-adapter", "raise RuntimeError('no luck')", registry.ADAPTERS, broken="Broken")
    with pytest.raises(PluginError, match=r"'broken-method'.*ModuleNotFoundError.*does_not_exist_anywhere") as caught:
        sk.get_method("broken")
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)
    with pytest.raises(PluginError, match=r"'broken-adapter'.*RuntimeError: no luck"):
        sk.get_adapter("broken")
    assert_built_ins_work()
    assert "broken" in sk.method_names()
    with pytest.raises(PluginError, match=r"no working adapter.*broken-adapter"):
        adapter_for("toy_vl")


def test_a_plugin_without_its_class_is_named(install: Install) -> None:
    install("empty-method", "", registry.METHODS, missing="Missing")
    with pytest.raises(PluginError, match=r"'empty-method'.*AttributeError"):
        sk.get_method("missing")
    assert_built_ins_work()


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("Fit", "subclass of steerkit.SteeringMethod"),
        ("METHOD", "AttributeError"),
        ("Unfinished", "observe"),
        ("Nameless", "paper"),
    ],
)
def test_a_plugin_that_is_no_whole_method_is_refused(install: Install, kind: str, words: str) -> None:
    install("odd-method", METHOD, registry.METHODS, odd=kind)
    with pytest.raises(PluginError, match="'odd-method'") as caught:
        sk.get_method("odd")
    assert words in str(caught.value)
    assert_built_ins_work()


def test_an_adapter_without_model_types_does_not_stop_the_others(install: Install) -> None:
    install("odd-adapter", ADAPTER, registry.ADAPTERS, aaa="Untyped")
    with pytest.raises(PluginError, match="model_types"):
        sk.get_adapter("aaa")
    assert_built_ins_work()


def test_a_name_that_two_distributions_claim_fails_alone(install: Install) -> None:
    install("first-method", METHOD, registry.METHODS, twice="Whole")
    install("second-method", METHOD, registry.METHODS, twice="Whole")
    with pytest.raises(PluginError, match="both register the method 'twice'") as caught:
        sk.get_method("twice")
    assert "'first-method'" in str(caught.value)
    assert "'second-method'" in str(caught.value)
    assert sk.method_names().count("twice") == 1
    assert_built_ins_work()


def test_an_unsupported_model_type_is_answered_with_what_is_supported() -> None:
    with pytest.raises(UnsupportedModelError, match="'blip_9'") as caught:
        adapter_for("blip_9")
    assert "qwen2_vl" in str(caught.value.expected)
    assert "steerkit.adapters" in str(caught.value.fix)


def test_the_first_qwen_vl_is_answered_with_its_successor() -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        adapter_for("qwen")
    assert "Qwen2-VL" in str(caught.value.fix)
