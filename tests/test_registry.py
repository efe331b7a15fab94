"""Methods and adapters by name: through entry points of distributions that are really there."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import foreign
import pytest
from installing import site_folder
from typer.testing import CliRunner

import steerkit as sk
from steerkit._internal import plugins
from steerkit.cli.app import app
from steerkit.errors import OptionError, PluginError, UnknownNameError, UnsupportedModelError
from steerkit.models import family_for
from steerkit_vectors_hub import interop

METHOD = """
from steerkit.methods import Fit, Plan, SteeringMethod

class Mine(SteeringMethod):
    name = "whole"
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
from steerkit.models import Family

TYPED = Family(types=("toy_vl",))
BOTH = (TYPED, Family(types=("toy_two",)))
"""
Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path) -> Iterator[Install]:
    """`install(distribution, source, group, name=Class, ...)`: a package and its .dist-info, on the path."""
    with site_folder(tmp_path) as site:
        yield site.install


def assert_built_ins_work() -> None:
    assert sk.get_method("cmrm") is sk.CMRM
    assert sk.get_method("caa") is sk.methods.CAA
    assert family_for("llava").image is not None


def test_the_built_in_names() -> None:
    assert {"cmrm", "caa", "refusal_direction"} <= set(sk.methods.method_names())
    assert {"llava", "qwen_vl", "instructblip"} <= set(sk.models.adapter_names())
    assert sk.methods.method_names() == sorted(sk.methods.method_names())


@pytest.mark.parametrize("name", ["cmrm", "caa", "refusal_direction"])
def test_a_method_is_registered_under_its_own_name(name: str) -> None:
    assert sk.get_method(name).name == name


def test_an_installed_method_is_found_beside_the_built_in_ones(install: Install) -> None:
    install("my-method", METHOD, plugins.METHODS.name, whole="Whole")
    assert "whole" in sk.methods.method_names()
    assert "my_method" not in sys.modules, "names are listed without importing"
    assert sk.get_method("whole").__name__ == "Whole"
    assert_built_ins_work()


def test_an_installed_adapter_serves_its_model_type(install: Install) -> None:
    with pytest.raises(UnsupportedModelError):
        family_for("toy_vl")
    install("my-adapter", ADAPTER, plugins.ADAPTERS.name, toy="TYPED")
    assert family_for("toy_vl").types == ("toy_vl",)
    install("my-adapters", ADAPTER, plugins.ADAPTERS.name, toys="BOTH")
    assert family_for("toy_two").types == ("toy_two",)
    assert_built_ins_work()


@pytest.mark.parametrize(
    ("wrong", "right"),
    [("cmmr", "cmrm"), ("CAA", "caa"), ("nothing", None), ("refusal-direction", "refusal_direction")],
)
def test_an_unknown_method_is_answered_with_the_nearest_and_all_names(wrong: str, right: str | None) -> None:
    with pytest.raises(UnknownNameError, match=f"unknown method '{wrong}'") as caught:
        sk.get_method(wrong)
    assert (f"Did you mean '{right}'?" in str(caught.value)) is (right is not None)
    assert ", ".join(sk.methods.method_names()) in str(caught.value)


def test_an_unknown_adapter_is_answered_with_the_nearest_name() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown adapter 'lava'\. Did you mean 'llava'"):
        sk.models.get_adapter("lava")


def test_a_plugin_that_fails_to_import_is_named_and_the_rest_works(install: Install) -> None:
    install("broken-method", "import does_not_exist_anywhere", plugins.METHODS.name, broken="Broken")
    install("broken-adapter", "raise RuntimeError('no luck')", plugins.ADAPTERS.name, broken="Broken")
    with pytest.raises(PluginError, match=r"'broken-method'.*ModuleNotFoundError.*does_not_exist_anywhere") as caught:
        sk.get_method("broken")
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)
    with pytest.raises(PluginError, match=r"'broken-adapter'.*RuntimeError: no luck"):
        sk.models.get_adapter("broken")
    assert_built_ins_work()
    assert "broken" in sk.methods.method_names()
    with pytest.raises(PluginError, match=r"no working adapter.*broken-adapter"):
        family_for("toy_vl")


def test_a_plugin_without_its_class_is_named(install: Install) -> None:
    install("empty-method", "", plugins.METHODS.name, missing="Missing")
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
    install("odd-method", METHOD, plugins.METHODS.name, odd=kind)
    with pytest.raises(PluginError, match="'odd-method'") as caught:
        sk.get_method("odd")
    assert words in str(caught.value)
    assert_built_ins_work()


@pytest.mark.parametrize("value", ["Family", "()", "(TYPED, 5)", "3"])
def test_what_is_no_record_does_not_stop_the_others(install: Install, value: str) -> None:
    install("odd-adapter", f"{ADAPTER}\nODD = {value}", plugins.ADAPTERS.name, aaa="ODD")
    with pytest.raises(PluginError, match="'odd-adapter' is ") as caught:
        sk.models.get_adapter("aaa")
    assert "steerkit.Family" in str(caught.value.expected)
    assert_built_ins_work()


@pytest.mark.parametrize("types", ["None", "5", '"llava_toy"', "(5,)"])
def test_an_adapter_with_odd_model_types_is_named_and_the_rest_works(install: Install, types: str) -> None:
    install("odd-adapter", ADAPTER.replace('("toy_vl",)', types), plugins.ADAPTERS.name, toy="TYPED")
    with pytest.raises(PluginError, match="'odd-adapter' .*the field types of a Family"):
        sk.models.get_adapter("toy")
    assert_built_ins_work()
    with pytest.raises(PluginError, match="no working adapter.*'odd-adapter'"):
        family_for("toy")  # a part of "llava_toy"
    listed = CliRunner().invoke(app, ["models", "--json"])
    assert listed.exit_code == 0
    rows = {row["name"]: row for row in json.loads(listed.stdout)["adapters"]}
    assert "the field types" in rows["toy"]["error"]
    assert rows["llava"]["error"] is None


@pytest.mark.parametrize("paper", ["None", "5"])
def test_a_method_whose_paper_is_no_text_is_named(install: Install, paper: str) -> None:
    source = METHOD.replace('class Whole(Mine):\n    paper = "none"', f"class Whole(Mine):\n    paper = {paper}")
    install("odd-method", source, plugins.METHODS.name, whole="Whole")
    with pytest.raises(PluginError, match=f"'odd-method' has paper = {paper}"):
        sk.get_method("whole")
    assert_built_ins_work()


def test_a_plugin_that_exits_when_it_is_imported_is_named_and_the_rest_works(install: Install) -> None:
    install("leaving-method", "import sys\nsys.exit('bye')", plugins.METHODS.name, leaving="Leaving")
    install("leaving-adapter", "import sys\nsys.exit('bye')", plugins.ADAPTERS.name, leaving="Leaving")
    with pytest.raises(PluginError, match="'leaving-method' failed to import: SystemExit: bye"):
        sk.get_method("leaving")
    assert_built_ins_work()
    for command in ("methods", "models"):
        listed = CliRunner().invoke(app, [command])
        assert listed.exit_code == 0
        assert f"leaving-{command.removesuffix('s')}".replace("model", "adapter") in listed.stdout


def test_a_method_with_a_default_that_can_not_be_made_is_named_and_the_rest_is_listed(install: Install) -> None:
    source = f"from pydantic import Field\n{METHOD}\n    option: int = Field(default_factory=lambda: 1 // 0)\n"
    install("odd-method", source, plugins.METHODS.name, whole="Whole")
    listed = CliRunner().invoke(app, ["methods", "--json"])
    assert listed.exit_code == 0
    rows = {row["name"]: row for row in json.loads(listed.stdout)["methods"]}
    assert "ZeroDivisionError" in rows["whole"]["error"]
    assert "odd-method" in rows["whole"]["distribution"]
    assert rows["cmrm"]["options"]


def test_a_name_that_two_distributions_claim_fails_alone(install: Install) -> None:
    install("first-method", METHOD, plugins.METHODS.name, whole="Whole")
    install("second-method", METHOD, plugins.METHODS.name, whole="Whole")
    with pytest.raises(PluginError, match="both register the method 'whole'") as caught:
        sk.get_method("whole")
    assert "'first-method'" in str(caught.value)
    assert "'second-method'" in str(caught.value)
    assert sk.methods.method_names().count("whole") == 1
    assert_built_ins_work()


def test_an_unsupported_model_type_is_answered_with_what_is_supported() -> None:
    with pytest.raises(UnsupportedModelError, match="'blip_9'") as caught:
        family_for("blip_9")
    assert "qwen2_vl" in str(caught.value.expected)
    assert "`steerkit new adapter`" in str(caught.value.fix)


def test_the_first_qwen_vl_is_answered_with_its_successor() -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        family_for("qwen")
    assert "Qwen2-VL" in str(caught.value.fix)


def test_a_method_that_takes_a_name_of_steerkits_own_is_passed_over_and_named(install: Install) -> None:
    install("bold-method", METHOD.replace('"whole"', '"cmrm"'), plugins.METHODS.name, cmrm="Whole")
    with pytest.warns(plugins.PluginWarning, match="distribution 'bold-method' registers the method 'cmrm'"):
        assert sk.get_method("cmrm") is sk.CMRM
    assert "bold_method" not in sys.modules
    rows = [row for row in plugins.registered(plugins.METHODS, sk.SteeringMethod) if row.name == "cmrm"]
    assert {row.distribution: (row.value, row.error is None) for row in rows} == {
        f"steerkit-vlm {version('steerkit-vlm')}": (sk.CMRM, True),
        "bold-method 1.0": (None, False),
    }
    assert "'bold-method' registers the method 'cmrm'" in str([row.error for row in rows])
    assert_built_ins_work()


def test_a_class_that_is_registered_under_another_name_is_refused(install: Install) -> None:
    install("odd-method", METHOD, plugins.METHODS.name, partial="Whole")
    with pytest.raises(PluginError, match="'partial' of distribution 'odd-method' calls itself 'whole'"):
        sk.get_method("partial")


def test_an_adapter_that_claims_a_model_type_of_steerkits_own_is_passed_over_and_named(install: Install) -> None:
    source = ADAPTER.replace('"toy_vl"', '"llava"')
    install("bold-adapter", source, plugins.ADAPTERS.name, aaa="TYPED")
    with pytest.warns(plugins.PluginWarning, match="'bold-adapter' serves model type 'llava'.*'aaa' is passed over"):
        assert family_for("llava").image is not None
    assert sk.models.get_adapter("aaa")[0].types == ("llava",)


def test_two_adapters_for_one_model_type_are_named(install: Install) -> None:
    install("first-adapter", ADAPTER, plugins.ADAPTERS.name, toy="TYPED")
    install("second-adapter", ADAPTER, plugins.ADAPTERS.name, toy2="TYPED")
    with pytest.raises(PluginError, match="'first-adapter'.*'second-adapter' both serve model type 'toy_vl'"):
        family_for("toy_vl")
    assert_built_ins_work()


def test_a_format_that_fails_to_import_is_named_and_the_rest_works(install: Install, tmp_path: Path) -> None:
    install("torn-format", "raise RuntimeError('no luck')", plugins.FORMATS.name, torn="Torn")
    install("odd-format", "class Odd: pass", plugins.FORMATS.name, odd="Odd")
    with pytest.raises(PluginError, match="format 'torn' of distribution 'torn-format' failed to import.*no luck"):
        interop.get_format("torn")
    with pytest.raises(PluginError, match="'odd-format'.*steerkit_vectors_hub.ForeignReader"):
        interop.get_format("odd")
    errors = {row.name: row.error for row in interop.registered_formats() if row.error}
    assert errors.keys() == {"torn", "odd"}
    (tmp_path / "nothing.bin").write_bytes(b"nothing")
    with pytest.raises(OptionError, match="no format is sure.*'odd-format'.*'torn-format'"):
        interop.detect(tmp_path / "nothing.bin")
    foreign.control_vector(tmp_path / "happy.gguf", foreign.directions(0, 1))
    assert interop.detect(tmp_path / "happy.gguf") in ("llamacpp", "repeng")
    listed = CliRunner().invoke(app, ["formats", "--json"])
    assert listed.exit_code == 0
    assert "torn-format" in listed.stdout
    with pytest.raises(UnknownNameError, match=r"unknown format 'repeg'\. Did you mean 'repeng'"):
        interop.get_format("repeg")
