"""Hostile files of other libraries: nothing is executed, nothing unfolds, and every refusal is an error of steerkit."""

from __future__ import annotations

import io
import json
import pickle
import struct
import sys
import types
import warnings
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import foreign
import numpy as np
import pytest
import torch
from hub_support import vector
from hypothesis import HealthCheck, given, settings, strategies as st
from torch import Tensor

from steerkit.errors import NonFiniteError, OptionError, PackFormatError, SteerKitError
from steerkit_vectors_hub import interop
from steerkit_vectors_hub.interop import Choice, ModelFacts, containers

FACTS = ModelFacts("Any", "any", 4)
SMALL = foreign.directions(0, 1, 2, width=8)
PICKLES = ("steering-vectors", "easyedit", "astra")


def read(path: Path, format: str) -> Any:
    choice = Choice(
        layers=(1,) if format == "astra" else None,
        reference=path if format == "astra" else None,
        site="resid_post" if format == "steering-vectors" else None,
    )
    return interop.read(path, format, model=FACTS, choice=choice)


def valid(folder: Path) -> dict[str, Path]:
    """A whole file of every format."""
    return {
        "llamacpp": foreign.control_vector(folder / "l.gguf", SMALL),
        "repeng": foreign.control_vector(folder / "r.gguf", SMALL),
        "steering-vectors": foreign.pickled(folder / "s.pt", SMALL),
        "easyedit": foreign.pickled(folder / "layer_1.pt", SMALL[1]),
        "tensors": foreign.numpy_file(folder / "t.npz", {str(n): d.numpy() for n, d in SMALL.items()}),
        "astra": foreign.astra(folder / "a.pt", SMALL),
        "activation-steering": foreign.svec(folder / "i.svec", SMALL),
        "steering-lite": foreign.lite(folder / "t.safetensors", SMALL),
        "steerkit-probe": foreign.probe(folder / "p.safetensors", 1, SMALL[1]),
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    files = valid(tmp_path_factory.mktemp("whole"))
    assert set(files) == set(interop.format_names())
    for format, path in files.items():
        assert read(path, format).tensors
    return files


def refused(path: Path, format: str) -> SteerKitError:
    """The refusal, which must name problem, expectation and file."""
    with pytest.raises(SteerKitError) as caught:
        read(path, format)
    assert caught.value.problem
    assert caught.value.expected
    return caught.value


# -- any file --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", interop.format_names())
def test_truncated_files(whole: dict[str, Path], tmp_path: Path, format: str) -> None:
    data = whole[format].read_bytes()
    cut = tmp_path / whole[format].name
    for length in {0, 1, 7, 8, 20, len(data) // 3, len(data) // 2, len(data) - 1}:
        cut.write_bytes(data[:length])
        refused(cut, format)


@pytest.mark.parametrize("format", interop.format_names())
def test_files_of_another_kind(whole: dict[str, Path], tmp_path: Path, format: str) -> None:
    path = tmp_path / whole[format].name
    for data in (b"{}", b"[]", b"null", b'{"a": NaN}', b"\xff" * 64, b"[" * 100_000, b"GGUF" + b"\xff" * 60):
        path.write_bytes(data)
        refused(path, format)
    refused(tmp_path / "missing", format)
    (tmp_path / "folder").mkdir()
    refused(tmp_path / "folder", format)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.parametrize("format", interop.format_names())
def test_mutated_files(whole: dict[str, Path], tmp_path: Path, format: str, data: st.DataObject) -> None:
    mutated = bytearray(whole[format].read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(mutated) - 1))
        mutated[at : at + data.draw(st.integers(0, 8))] = data.draw(st.binary(max_size=9))
    path = tmp_path / whole[format].name
    path.write_bytes(mutated)
    with suppress(SteerKitError):
        read(path, format)


WRONG: dict[str, Tensor] = {
    "NaN": torch.full((8,), float("nan")),
    "infinity": torch.full((8,), float("inf")),
    "zero": torch.zeros(8),
    "matrix": torch.ones(2, 8),
    "scalar": torch.tensor(1.0),
    "empty": torch.ones(0),
    "integers": torch.ones(8, dtype=torch.int32),
    "complex": torch.ones(8, dtype=torch.complex64),
    "too large for float32": torch.full((8,), 1e300, dtype=torch.float64),
}


@pytest.mark.parametrize("tensor", WRONG.values(), ids=WRONG)
def test_wrong_directions(tmp_path: Path, tensor: Tensor) -> None:
    refused(foreign.pickled(tmp_path / "layer_1.pt", tensor), "easyedit")
    refused(foreign.pickled(tmp_path / "v.pt", {1: tensor}), "steering-vectors")
    refused(foreign.pickled(tmp_path / "a.pt", {0: {1: [tensor]}}), "astra")
    refused(foreign.probe(tmp_path / "p.safetensors", 1, tensor), "steerkit-probe")
    refused(foreign.lite(tmp_path / "l.safetensors", {1: tensor}), "steering-lite")
    if tensor.is_floating_point():
        refused(foreign.svec(tmp_path / "v.svec", {1: tensor}), "activation-steering")
        if tensor.dim() and tensor.numel():
            refused(foreign.control_vector(tmp_path / "v.gguf", {1: tensor}), "llamacpp")


def test_directions_of_different_widths(tmp_path: Path) -> None:
    uneven = {1: torch.ones(8), 2: torch.ones(9)}
    assert "widths" in refused(foreign.control_vector(tmp_path / "v.gguf", uneven), "llamacpp").problem
    assert "widths" in refused(foreign.pickled(tmp_path / "v.pt", uneven), "steering-vectors").problem
    assert "widths" in refused(foreign.svec(tmp_path / "v.svec", uneven), "activation-steering").problem


# -- pickles ---------------------------------------------------------------------------------------------------------


class Bomb:
    """Would write a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("format", PICKLES)
@pytest.mark.parametrize("zipped", [True, False])
def test_pickles_are_never_executed(tmp_path: Path, format: str, zipped: bool) -> None:
    fired = tmp_path / "fired"
    path = tmp_path / "layer_1.pt"
    for value in (Bomb(fired), {1: Bomb(fired)}, {0: {1: [Bomb(fired)]}}, {"layer_activations": {1: Bomb(fired)}}):
        torch.save(value, path, _use_new_zipfile_serialization=zipped)
        assert "executed" in refused(path, format).problem or not zipped
        path.write_bytes(pickle.dumps(value))
        refused(path, format)
    assert not fired.exists()
    torch.load(foreign.pickled(path, Bomb(fired)), weights_only=False)
    assert fired.exists(), "the bomb is no bomb"


def test_a_forged_steering_vector_class_stays_inert(tmp_path: Path) -> None:
    """The class that is let through is ours: its attributes are filled and nothing else happens."""
    fired = tmp_path / "fired"
    record = type("SteeringVector", (), {"__module__": "steering_vectors.steering_vector"})
    path = tmp_path / "v.pt"
    module = types.ModuleType("steering_vectors.steering_vector")
    module.SteeringVector = record  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "steering_vectors", types.ModuleType("steering_vectors"))
        patch.setitem(sys.modules, "steering_vectors.steering_vector", module)
        good, evil = record(), record()
        vars(good).update(layer_activations=SMALL, layer_type="decoder_block")
        vars(evil).update(layer_activations={1: Bomb(fired)}, layer_type="decoder_block")
        foreign.pickled(path, good)
        assert set(read(path, "steering-vectors").directions) == {1, 2}
        foreign.pickled(path, evil)
        refused(path, "steering-vectors")
        vars(good).update(extra=1)
        foreign.pickled(path, good)
        assert "extra" in refused(path, "steering-vectors").problem
    assert not fired.exists()


def test_archives_that_unfold(whole: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "layer_1.pt"
    with zipfile.ZipFile(whole["easyedit"]) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    assert "compressed" in refused(path, "easyedit").problem


def test_tensors_that_claim_more_than_they_hold(tmp_path: Path) -> None:
    path = foreign.pickled(tmp_path / "layer_1.pt", torch.ones(1).expand(2**20))
    assert "1048576 elements in 4 bytes" in refused(path, "easyedit").problem
    sparse = torch.sparse_coo_tensor([[0]], [1.0], (2**20,), check_invariants=True)
    assert "dense" in (refused(foreign.pickled(path, sparse), "easyedit").expected or "")
    refused(foreign.pickled(path, torch.ones(8, device="meta")), "easyedit")


def test_an_old_torch_is_not_trusted(whole: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containers.torch, "__version__", "2.5.1+cpu")
    with pytest.raises(OptionError, match="safely"):
        read(whole["easyedit"], "easyedit")


@pytest.mark.parametrize(
    "value",
    [
        {-1: torch.ones(8)},
        {True: torch.ones(8)},
        {"1": torch.ones(8)},
        {10**9: torch.ones(8)},
        {1: [1.0, 2.0]},
        {},
        [],
        {"layer_activations": []},
        {"layer_activations": {1: torch.ones(8)}, "layer_type": ["mlp"]},
    ],
)
def test_strange_structures(tmp_path: Path, value: Any) -> None:
    path = foreign.pickled(tmp_path / "v.pt", value)
    refused(path, "steering-vectors")
    refused(path, "astra")
    refused(path, "easyedit")


# -- GGUF ------------------------------------------------------------------------------------------------------------


def gguf(*entries: bytes, tensors: bytes = b"", counts: tuple[int, int] | None = None, version: int = 3) -> bytes:
    counted = counts or (1 if tensors else 0, len(entries))
    return b"GGUF" + struct.pack("<IQQ", version, *counted) + b"".join(entries) + tensors


def text(value: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(value) if length is None else length) + value


@pytest.mark.parametrize(
    "data",
    [
        gguf(counts=(2**63, 0)),
        gguf(counts=(0, 2**63)),
        gguf(text(b"a", 2**62), counts=(0, 1)),
        gguf(text(b"a") + struct.pack("<IIQ", 9, 0, 2**60)),
        gguf(text(b"a") + struct.pack("<IIQ", 9, 9, 1) + struct.pack("<IQ", 0, 0)),
        gguf(text(b"a") + struct.pack("<I", 99)),
        gguf(text(b"general.alignment") + struct.pack("<II", 4, 0)),
        gguf(text(b"general.alignment") + struct.pack("<II", 4, 2**31)),
        gguf(version=1),
        gguf(version=0x03000000),
        gguf(tensors=text(b"direction.1") + struct.pack("<IQIQ", 1, 2**40, 0, 0)),
        gguf(tensors=text(b"direction.1") + struct.pack("<IQIQ", 1, 8, 0, 2**40)),
        gguf(tensors=text(b"direction.1") + struct.pack("<IQIQ", 1, 8, 0, 1)),
        gguf(tensors=text(b"direction.1") + struct.pack("<IQIQ", 1, 8, 2, 0)),
        gguf(tensors=text(b"direction.1") + struct.pack("<I", 2**31)),
        gguf(tensors=text(b"d" * 100) + struct.pack("<IQIQ", 1, 8, 0, 0)),
    ],
)
def test_gguf_bombs(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "v.gguf"
    path.write_bytes(data)
    for format in ("llamacpp", "repeng"):
        assert isinstance(refused(path, format), PackFormatError)


def test_gguf_of_other_things(tmp_path: Path) -> None:
    path = tmp_path / "v.gguf"
    foreign.control_vector(path, SMALL, architecture="llama")
    assert "general.architecture is 'llama'" in refused(path, "llamacpp").problem
    for layer in ("-1", "01", "1.5", "99999", "one"):
        foreign.control_vector(path, {layer: SMALL[1]})  # type: ignore[dict-item]
        assert "named" in refused(path, "repeng").problem
    foreign.control_vector(path, {1: SMALL[1].half()})
    assert "float32" in refused(path, "llamacpp").problem
    assert read(path, "repeng").metadata.dtype == "float16"


# -- JSON and safetensors --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "document",
    [
        '{"model_type": "m", "directions": {"1": [1.0, NaN]}}',
        '{"model_type": "m", "directions": {"1": [1e400]}}',
        '{"model_type": "m", "directions": {"1": [1' + "0" * 400 + "]}}",
        '{"model_type": "m", "directions": {"1": [1.0], "1": [2.0]}}',
        '{"model_type": "m", "directions": {"-1": [1.0]}}',
        '{"model_type": "m", "directions": {"1": "abc"}}',
        '{"model_type": "m", "directions": {"1": [true]}}',
        '{"model_type": "m", "directions": {}}',
        '{"model_type": 1, "directions": {"1": [1.0]}}',
        '{"model_type": "m", "directions": {"1": [1.0]}, "code": "x"}',
        '{"model_type": ' + "[" * 5000 + "]" * 5000 + "}",
    ],
)
def test_svec_documents(tmp_path: Path, document: str) -> None:
    path = tmp_path / "v.svec"
    path.write_text(document)
    refused(path, "activation-steering")


@pytest.mark.parametrize("format", ["steering-lite", "steerkit-probe"])
def test_safetensors_headers(whole: dict[str, Path], tmp_path: Path, format: str) -> None:
    path = tmp_path / "v.safetensors"
    path.write_bytes(struct.pack("<Q", 2**40) + b"{}")
    assert str(2**40) in refused(path, format).problem
    (length,) = struct.unpack("<Q", whole[format].read_bytes()[:8])
    header = json.loads(whole[format].read_bytes()[8 : 8 + length])
    values = whole[format].read_bytes()[8 + length :]

    def write(changed: dict[str, Any]) -> None:
        raw = json.dumps(changed).encode()
        path.write_bytes(struct.pack("<Q", len(raw)) + raw + values)

    write({**header, "__metadata__": {"cfg": 1}})
    refused(path, format)
    write({key: value for key, value in header.items() if key != "__metadata__"})
    refused(path, format)
    for key, entry in header.items():
        if key != "__metadata__":
            write({**header, key: {**entry, "shape": [2**40]}})
            refused(path, format)
            write({**header, key: {**entry, "data_offsets": [0, 2**40]}})
            refused(path, format)
            write({**header, key: {**entry, "dtype": "F4"}})
            refused(path, format)


@pytest.mark.parametrize(
    "metadata",
    [
        {"layer": "one"},
        {"layer": "9" * 30},
        {"layer": "7"},
        {"schema_version": "4"},
        {"hook_site": "q"},
        {"hook_name": "blocks.2.hook_resid_post"},
        {"auto_alpha": "nan"},
        {"auto_alpha": "x"},
        {"kind": "multinomial"},
    ],
)
def test_probe_metadata(tmp_path: Path, metadata: dict[str, str]) -> None:
    refused(foreign.probe(tmp_path / "p.safetensors", 1, SMALL[1], settings=metadata), "steerkit-probe")


def test_configurations_are_bounded(tmp_path: Path) -> None:
    path = foreign.lite(tmp_path / "l.safetensors", SMALL, comment="x" * 70_000)
    assert "characters" in refused(path, "steering-lite").problem


def test_long_texts_are_cut(tmp_path: Path) -> None:
    path = foreign.control_vector(tmp_path / "v.gguf", SMALL, hint="x" * 50_000)
    assert all(len(line) < 1000 for line in read(path, "llamacpp").metadata.history)
    path = foreign.svec(tmp_path / "v.svec", SMALL, model_type="x" * 50_000)
    assert all(len(line) < 1000 for line in read(path, "activation-steering").metadata.history)


def test_numpy_arrays_in_pickles_are_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({1: np.ones(8)}, buffer)
    (tmp_path / "v.pt").write_bytes(buffer.getvalue())
    refused(tmp_path / "v.pt", "steering-vectors")


# -- numpy -----------------------------------------------------------------------------------------------------------


def npy(shape: str, data: bytes = b"\0" * 192, dtype: str = "'<f4'", version: bytes = b"\x01\x00") -> bytes:
    """An `.npy` file with a header of one's own."""
    header = f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY" + version + len(header).to_bytes(2 if version[0] == 1 else 4, "little") + header + data


@pytest.mark.parametrize(
    "data",
    [
        npy("(100000000000,)"),
        npy("(2**62, 2**62)"),
        npy("(-48,)"),
        npy("(49,)"),
        npy("(47,)"),
        npy("(48,)", dtype="'|O'"),
        npy("(48,)", dtype="[('a', '<f4')]"),
        npy("(48,)", dtype="'<i4'"),
        npy("(24,)", dtype="'<c8'"),
        npy("(12,)", dtype="'<f16'"),
        npy("(48,)", dtype="'<M8[s]'"),
        npy("(__import__('os').system('true'),)"),
        npy("(" * 200 + ")" * 200),
        npy("(48,)", version=b"\x07\x00"),
        npy("(48,)", data=struct.pack("<48f", *[float("nan")] * 48)),
        b"\x93NUMPY",
        b"\x93NUMPY\x01\x00\xff\xff",
        b"PK\x03\x04",
        b"",
    ],
)
def test_arrays_that_are_not_what_they_say(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "v.npy").write_bytes(data)
    with pytest.raises((PackFormatError, NonFiniteError)):
        interop.read(tmp_path / "v.npy", model=FACTS, choice=Choice(layers=(1,)))


def test_an_array_of_objects_is_not_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", np.array([Path("a"), 1.0], dtype=object), allow_pickle=True)
    with pytest.raises(PackFormatError, match="numbers of type object"):
        interop.read(tmp_path / "v.npy", model=FACTS, choice=Choice(layers=(1,)))


def test_archives_of_numpy_that_unfold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "v.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(3):
            archive.writestr(f"{number}.npy", npy("(262144,)", b"\0" * 2**20))
    monkeypatch.setattr(containers, "MAX_FILE", 2**21)
    with pytest.raises(PackFormatError, match="3 arrays of"):
        interop.read(path, model=FACTS)
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w") as archive:
        warnings.simplefilter("ignore")
        for _ in range(2):
            archive.writestr("1.npy", npy("(48,)"))
    with pytest.raises(PackFormatError, match="two arrays of one name"):
        interop.read(path, model=FACTS)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("1.npz", path.read_bytes())
    with pytest.raises(PackFormatError):
        interop.read(path, model=FACTS)


@pytest.mark.parametrize("format", interop.format_names())
def test_a_pack_is_not_read_as_plain_tensors(format: str, tmp_path: Path) -> None:
    """It would come out as another pack, under whose digest nobody has revoked it."""
    path = vector().save(tmp_path / "layer_1.safetensors")
    error = refused(path, format)
    if format in ("tensors", "steering-lite", "steerkit-probe"):
        assert "is a pack of steerkit" in error.problem
