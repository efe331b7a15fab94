"""Fuzzing of everything that reads untrusted files: packs above all, and indexes, references and other formats.

    python benchmarks/fuzz_loader.py [--target pack] [--runs 1000000] [--seed 0] [--json FILE]

A target may only return, or raise the errors that it documents. A pack that is accepted must be one that can be saved
and read again as the same (one in eight is). With atheris (`pip install atheris`) mutations are kept where they reach
new code; without it, or with `--plain`, they are drawn blindly. Inputs at fault are written to `--faults`, and the exit
code is 1.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import random
import resource
import struct
import sys
import tempfile
import time
import tracemalloc
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

MAX_INPUT = 4_096
"""Bytes of a mutated file."""

GROWTH = 64
"""MiB by which the process may grow over all blind runs, whatever it is fed."""

WARM_UP = 2_000
TRACED = 500
"""Of so many runs, the memory of one is traced."""

PLAIN = "--plain" in sys.argv or importlib.util.find_spec("atheris") is None
INSTRUMENTED = [
    "steerkit.vectors.formats",
    "steerkit.vectors._vector",
    "steerkit.vectors._metadata",
    "steerkit.interventions._schema",
]
INSTRUMENTED += ["steerkit_vectors_hub.index", "steerkit_vectors_hub.refs", "steerkit_vectors_hub.interop"]
if not PLAIN:
    import atheris
with nullcontext() if PLAIN else atheris.instrument_imports(include=INSTRUMENTED):
    import torch

    import steerkit_vectors_hub.index
    from steerkit.errors import NonFiniteError, PackFormatError, SteerKitError
    from steerkit.vectors import Key, PackMetadata, SteeringVector
    from steerkit.vectors.formats import parse_pack
    from steerkit_vectors_hub import interop
    from steerkit_vectors_hub.errors import IndexFormatError, ReferenceFormatError
    from steerkit_vectors_hub.index import Index, read_index
    from steerkit_vectors_hub.plots import norm_series
    from steerkit_vectors_hub.refs import parse_ref

# -- mutations -------------------------------------------------------------------------------------------------------

NUMBERS: list[Any] = [0, -0.0, 1, -1, 2, 7, 8, 16, 31, 255, 4095, 4096, 2**16, 2**20, 2**31, 2**32, 2**53, 2**63, 2**64]
NUMBERS += [10**30, 10**400, -(10**18), 0.5, 1e-320, 1e300, -1e308, float("inf"), float("nan"), 10**999]
TEXTS = ["", "x", "F32", "F16", "BF16", "F64", "I8", "float16", "bfloat16", "all", "last", "stored", "contrast", "add"]
TEXTS += ["ablate", "clamp", "scale", "add_projection", "blank", "text", "noise", "prompt", "resid_post", "vision"]
TEXTS += ["../../etc/passwd", "\ud800", "\udfff\ud800", "\0", "a" * 600, "é" * 100, "\u202e", "1", "01", "1_0", "{}"]
NAMES = ["directions.0.resid_post", "directions.3.mlp_out.gate", "directions.00.resid_post", "directions.9.attn_out"]
NAMES += ["directions.99999.resid_post", "directions.4095.resid_post", "directions.0.nowhere", "__metadata__", "", "x"]
NAMES += ["directions.1.resid_post." + "n" * 65, "directions.1.resid_post.../x", "directions.-1.resid_post", "\ud800"]
STORED, CONTRAST = {"source": "stored"}, {"source": "contrast", "positive": "text", "negative": "blank"}
MEASURE = {"kind": "cosine", "direction": {**STORED, "layer": 1}, "layer": 0}
PARTS: list[Any] = [
    *(STORED, {**STORED, "layer": 2}, {**STORED, "name": "gate"}, CONTRAST, {**CONTRAST, "form": "literal"}, MEASURE),
    {"kind": "add", "direction": CONTRAST},
    {"kind": "ablate", "direction": STORED},
    {"kind": "add_projection", "contrast": CONTRAST},
    {"kind": "clamp", "minimum": -1.0},
    {"kind": "scale", "factor": 0.0},
    {"measure": MEASURE, "slope": 1.0, "minimum": 0.0, "maximum": 2.0},
    {"measure": MEASURE, "threshold": 0.1},
    *({"0": 1.0, "3": -2.0}, {"1": 1, "01": 2}, [0], [3, 0], [0, 0], {"operation": {"kind": "add"}, "layers": [1]}),
]
SPECIAL = [b"\0" * 4, b"\0\0\x80\x7f", b"\0\0\xc0\x7f", b"\x01\0\x80\x7f", b"\xff\xff\x7f\x7f", b"\1\0\0\0", b"\0|\1|"]


def any_value(rng: random.Random, depth: int = 0) -> Any:
    """A JSON value: a plausible one, a vicious one, or a structure of either."""
    kind = rng.randrange(12 if depth < 2 else 10)
    if kind < 4:
        return copy.deepcopy(rng.choice(PARTS))
    if kind < 7:
        return rng.choice(NUMBERS)
    if kind < 9:
        return rng.choice(TEXTS)
    if kind == 9:
        return copy.copy(rng.choice([None, True, False, [], {}]))
    value = any_value(rng, depth + 1)
    if kind == 10:
        return [copy.deepcopy(value) for _ in range(rng.choice([1, 2, 3, 30 if depth == 0 else 3]))]
    for _ in range(rng.choice([1, 3, 40])):
        value = [value] if rng.random() < 0.5 else {rng.choice(TEXTS[:8]): value}
    return value


def plant(root: Any, rng: random.Random) -> None:
    """Change one random place of a JSON document."""
    place = root
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys or rng.random() < 0.1:
            break
        key = rng.choice(keys)
        inner = place[key]
        if isinstance(inner, dict | list) and inner and rng.random() < 0.7:
            place = inner
            continue
        act = rng.randrange(4)
        if act == 0:
            del place[key]
        elif act == 1 and isinstance(inner, int | float) and not isinstance(inner, bool):
            place[key] = inner + rng.choice([-1, 1, 4, -4])
        else:
            place[key] = any_value(rng)
        return
    if isinstance(place, dict):
        place[rng.choice(TEXTS + NAMES)] = any_value(rng)
    else:
        place.append(copy.deepcopy(place[0]) if place and rng.random() < 0.5 else any_value(rng))


def split(data: bytes) -> tuple[dict[str, Any], dict[str, Any], bytes] | None:
    """Header, document and the rest; None where a mutation made it something else."""
    try:
        (length,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + length])
        document = json.loads(header["__metadata__"]["steerkit"])
        return (header, document, data[8 + length :]) if isinstance(document, dict) else None
    except (struct.error, ValueError, KeyError, TypeError, RecursionError, OverflowError):
        return None


def seal(header: dict[str, Any], document: dict[str, Any], body: bytes) -> None:
    """Make the digest agree, as the specification says, so that what is behind it is reached."""
    state = hashlib.sha256()
    for name in sorted(set(header) - {"__metadata__"}):
        entry = header[name]
        begin, end = entry["data_offsets"]
        state.update(json.dumps([name, entry["dtype"], entry["shape"]], separators=(",", ":")).encode() + b"\n")
        state.update(body[begin:end])
    document["tensors_sha256"] = state.hexdigest()
    document.pop("document_sha256", None)  # optional, and wrong by now


def mutated_tensors(header: dict[str, Any], body: bytes, rng: random.Random) -> bytes:
    """Change the table of tensors, or their values; sometimes all of it consistently."""
    names = [name for name in header if name != "__metadata__" and isinstance(header[name], dict)]
    if not names or rng.random() < 0.1:
        header[rng.choice(NAMES)] = {"dtype": "F32", "shape": [8], "data_offsets": [len(body), len(body) + 32]}
        return body + rng.randbytes(32)
    name = rng.choice(names)
    act = rng.randrange(6)
    if act == 0:
        header[rng.choice(NAMES)] = header.pop(name)
    elif act == 1:
        header[rng.choice(NAMES)] = dict(header[name])
    elif act == 2:
        header[name][rng.choice(["dtype", "shape", "data_offsets", "more"])] = any_value(rng)
    elif act == 3:
        del header[name]
    elif act == 4 and body:
        at = rng.randrange(len(body)) & ~3
        body = body[:at] + rng.choice(SPECIAL) + body[at + 4 :]
    else:
        plant(header[name], rng)
    return body


def mutated_bytes(data: bytes, rng: random.Random) -> bytes:
    """Cut, append, repeat, flip and splice, wherever."""
    forged = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 5])):
        at, length = rng.randrange(len(forged) + 1), rng.choice([0, 1, 1, 4, 8, 40])
        act = rng.randrange(6)
        if act == 0:
            del forged[at:]
        elif act == 1:
            forged += rng.randbytes(length)
        elif act == 2 and at < len(forged):
            forged[at] ^= 1 << rng.randrange(8)
        elif act == 3:
            forged[:8] = struct.pack("<Q", rng.choice([0, 1, len(data), len(data) // 2, 2**23, 2**23 + 1, 2**63]))
        elif act == 4:
            forged[at : at + length] = forged[:length]
        else:
            forged[at : at + length] = rng.randbytes(length)
    return bytes(forged)


def mutated_pack(data: bytes, rng: random.Random, blind: Callable[[bytes], bytes]) -> bytes:
    """A mutant of a pack, or of what an earlier mutation made of one."""
    found = split(data)
    if found is None or rng.random() < 0.2:
        return blind(data)
    header, document, body = found
    try:
        for _ in range(rng.choice([1, 1, 1, 2, 4])):
            if rng.random() < 0.35:
                body = mutated_tensors(header, body, rng)
            else:
                plant(document, rng)
        if rng.random() < 0.7:
            seal(header, document, body)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        pass  # an earlier mutation left nothing to agree with
    text = json.dumps(document, ensure_ascii=rng.random() < 0.5)
    if rng.random() < 0.05:
        text = text[:-1] + ',"format_version":1}'
    metadata = header.get("__metadata__")
    if not isinstance(metadata, dict):
        return blind(data)
    metadata["steerkit"] = text
    if rng.random() < 0.05:
        plant(metadata, rng)
    encoded = json.dumps(header, indent=rng.choice([None, None, None, 1])).encode()
    if rng.random() < 0.3:
        encoded += b" " * rng.choice([1, 7, 64])
    return struct.pack("<Q", len(encoded)) + encoded + body


def mutated_json(data: bytes, rng: random.Random, blind: Callable[[bytes], bytes]) -> bytes:
    """A mutant of a JSON file."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return blind(data)
    if not isinstance(document, dict | list) or rng.random() < 0.2:
        return blind(data)
    for _ in range(rng.choice([1, 1, 2, 4])):
        plant(document, rng)
    return json.dumps(document).encode()


def mutated_any(data: bytes, rng: random.Random, blind: Callable[[bytes], bytes]) -> bytes:
    """A mutant of anything."""
    return blind(data)


# -- targets ---------------------------------------------------------------------------------------------------------


def packs() -> list[bytes]:
    """Small packs, each of another kind."""
    generator = torch.Generator().manual_seed(0)
    model = {"architecture": "A", "model_type": "a", "hidden_size": 8, "layer_count": 4, "config_sha256": "0" * 64}
    full = {
        "anchors": {"name": "n", "sha256": "1" * 64, "size": 7, "labels": {"harmful": 3}},
        "metrics": [{"name": "unsafe_rate", "value": 0.5, "judge": "j"}],
        "strength": {"recommended": 1.0, "minimum": 0.0, "maximum": 2.0},
        **{"versions": {"torch": "2"}, "authors": ["A"], "license": "MIT", "history": ["scaled"]},
    }
    kinds: list[tuple[list[Any], torch.dtype]] = [
        ([{}], torch.float32),
        ([{"strength": {"0": 1.0, "3": 2.0}, "tokens": "all"}], torch.float16),
        ([{"operation": {"kind": "ablate"}, "layers": [1, 2], "gate": PARTS[12]}], torch.bfloat16),
        ([{"strength": PARTS[11]}, {"operation": {"kind": "clamp", "minimum": 0.0}}], torch.float32),
        ([{"operation": {"kind": "add", "direction": CONTRAST}}], torch.float32),
    ]
    made = []
    for index, (interventions, dtype) in enumerate(kinds):
        shape = (2, 8) if index == 3 else (8,)
        keys = [] if index == 4 else [Key(layer) for layer in range(4)]
        document = {"method": {"name": "m", "config": {"a": 1.0}}, "interventions": interventions, "model": model}
        metadata = PackMetadata.model_validate({**document, **(full if index % 2 else {})})
        made.append(SteeringVector({k: torch.randn(shape, generator=generator).to(dtype) for k in keys}, metadata))
    return [each.to_bytes() for each in made]


def read_a_pack(data: bytes) -> str:
    """Load; of those that are accepted, save and load one in eight again."""
    try:
        vector = SteeringVector.from_bytes(data)
    except (PackFormatError, NonFiniteError) as error:
        return refusal(error)
    if sum(data[-4:]) % 8:
        return "accepted"
    norm_series(parse_pack(data))
    again = SteeringVector.from_bytes(vector.to_bytes())
    assert again.digest() == vector.digest(), "saved and read, the tensors differ"
    plain = {"tensors_sha256": None}
    assert again.metadata.model_copy(update=plain) == vector.metadata.model_copy(update=plain), "the document differs"
    return "accepted"


def refusal(error: SteerKitError) -> str:
    """Its name; it must be whole, of a sane length, and printable."""
    text = str(error)
    assert error.problem
    assert error.expected, f"no expectation: {text}"
    assert len(text) < 20_000, f"a message of {len(text)} characters"
    text.encode()
    return type(error).__name__


def read_an_index(path: Path) -> Callable[[bytes], str]:
    """Through a file, as users do."""

    def target(data: bytes) -> str:
        path.write_bytes(data)
        try:
            read_index(path)
        except IndexFormatError as error:
            return refusal(error)
        return "accepted"

    return target


def read_a_reference(data: bytes) -> str:
    """As text, which must be read back as the same."""
    text = data.decode(errors="replace")
    try:
        found = parse_ref(text)
    except ReferenceFormatError as error:
        return refusal(error)
    assert parse_ref(str(found)) == found or found.kind in ("path", "web"), f"{text!r} is read as {found}"
    return "accepted"


def read_foreign(format_name: str, path: Path) -> Callable[[bytes], str]:
    """A file of another library."""
    facts = interop.ModelFacts("Any", "any", 4)
    choice = interop.Choice(
        layers=(1,) if format_name == "astra" else None,
        reference=path if format_name == "astra" else None,
        site="resid_post" if format_name == "steering-vectors" else None,
    )

    def target(data: bytes) -> str:
        path.write_bytes(data)
        try:
            interop.read(path, format_name, model=facts, choice=choice)
        except SteerKitError as error:
            return refusal(error)
        return "accepted"

    return target


REFERENCES = [b"packs/a.safetensors", b"cmrm-llava-demo", b"hf://owner/name@v1%2Fx/a/b.safetensors"]
REFERENCES += [b"https://example.org:8080/a?b=c#sha256=" + b"a" * 64, b"s3://bucket/x", b"file:///tmp/a%20b", b"./x"]
REFERENCES += [b"http://127.0.0.1:1/a", b"https://[::1]/x", b"hf://owner/name@refs/pr/1#sha256=" + b"0" * 64]


def index_file() -> bytes:
    """An index of the bundled packs."""
    return json.dumps(steerkit_vectors_hub.index.bundled_index().model_dump(mode="json")).encode()[:MAX_INPUT]


def small_index() -> bytes:
    """One entry of it."""
    whole = steerkit_vectors_hub.index.bundled_index()
    return json.dumps(Index(packs=whole.packs[:1]).model_dump(mode="json")).encode()


def foreign_files() -> dict[str, Path]:
    """A whole file of every other format, written as the tests of interop write them."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    import foreign

    folder = Path(tempfile.mkdtemp(prefix="foreign-"))
    small = foreign.directions(0, 1, 2, width=8)
    return {
        "llamacpp": foreign.control_vector(folder / "l.gguf", small),
        "repeng": foreign.control_vector(folder / "r.gguf", small),
        "steering-vectors": foreign.pickled(folder / "s.pt", small),
        "easyedit": foreign.pickled(folder / "layer_1.pt", small[1]),
        "astra": foreign.astra(folder / "a.pt", small),
        "activation-steering": foreign.svec(folder / "i.svec", small),
        "steering-lite": foreign.lite(folder / "t.safetensors", small),
        "steerkit-probe": foreign.probe(folder / "p.safetensors", 1, small[1]),
    }


Mutator = Callable[[bytes, random.Random, Callable[[bytes], bytes]], bytes]


def target_of(name: str) -> tuple[Callable[[bytes], str], Mutator, list[bytes]]:
    """What is called, how its input is mutated, and what to begin with."""
    if name == "pack":
        return read_a_pack, mutated_pack, packs()
    if name == "reference":
        return read_a_reference, mutated_any, REFERENCES
    if name == "index":
        path = Path(tempfile.mkdtemp(prefix="index-")) / "index.json"
        return read_an_index(path), mutated_json, [small_index(), index_file()]
    path = foreign_files()[name]
    mutator = mutated_json if name == "activation-steering" else mutated_any
    return read_foreign(name, path), mutator, [path.read_bytes()]


# -- running ---------------------------------------------------------------------------------------------------------


class Campaign:
    """Counts outcomes, watches time and memory, keeps what is at fault.

    Args:
        target: Called with each input.
        runs: How many.
        faults: Folder for inputs at fault.
    """

    def __init__(self, target: Callable[[bytes], str], runs: int, faults: Path) -> None:
        self.target, self.runs, self.faults = target, runs, faults
        self.outcomes: Counter[str] = Counter()
        self.count = self.largest = 0
        self.slowest = self.ratio = 0.0
        self.warm = 0
        self.began = time.monotonic()

    def one(self, data: bytes) -> None:
        """Run the target once."""
        self.count += 1
        self.largest = max(self.largest, len(data))
        if self.count == WARM_UP:
            self.warm = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        traced = self.count % TRACED == 0
        if traced:
            tracemalloc.start()
        begin = time.perf_counter()
        try:
            self.outcomes[self.target(data)] += 1
        except Exception as error:
            self.outcomes["FAULT"] += 1
            if self.outcomes["FAULT"] <= 20:
                print(f"run {self.count}: {type(error).__name__}: {error!s:.300}", file=sys.stderr, flush=True)
                self.faults.mkdir(parents=True, exist_ok=True)
                (self.faults / f"{type(error).__name__}-{hashlib.sha256(data).hexdigest()[:12]}").write_bytes(data)
        if traced:
            self.ratio = max(self.ratio, tracemalloc.get_traced_memory()[1] / max(len(data), 1024))
            tracemalloc.stop()
        else:
            self.slowest = max(self.slowest, time.perf_counter() - begin)

    def figures(self, name: str, seed: int) -> dict[str, Any]:
        """What is reported."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return {
            "target": name,
            "engine": "own mutator" if PLAIN else f"atheris {importlib.metadata.version('atheris')}",
            "seed": seed,
            "runs": self.count,
            "outcomes": dict(sorted(self.outcomes.items())),
            "largest_input_bytes": self.largest,
            "slowest_run_s": round(self.slowest, 3),
            "traced_peak_by_input_size": round(self.ratio, 1),
            "growth_mib": round((peak - self.warm) / 1024, 1),
            "seconds": round(time.monotonic() - self.began),
        }


def finish(campaign: Campaign, name: str, seed: int, output: Path | None) -> int:
    """Print and write the figures; 1 if anything was wrong."""
    found = campaign.figures(name, seed)
    print(json.dumps(found, indent=1), flush=True)
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(found, indent=1) + "\n")
    if PLAIN and campaign.warm and found["growth_mib"] > GROWTH:  # atheris keeps something of every input
        print(f"the process grew by {found['growth_mib']} MiB, more than {GROWTH}", file=sys.stderr)
        return 1
    return int("FAULT" in campaign.outcomes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ["pack", "index", "reference", *interop.format_names()]
    parser.add_argument("--target", choices=names, default="pack")
    parser.add_argument("--runs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--faults", type=Path, default=Path(tempfile.gettempdir()) / "steerkit-faults")
    parser.add_argument("--plain", action="store_true", help="draw mutations blindly, without atheris")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    target, mutate, seeds = target_of(given.target)
    campaign = Campaign(target, given.runs, given.faults)
    if PLAIN:
        rng = random.Random(given.seed)
        while campaign.count < given.runs:
            data = rng.choice(seeds)
            for _ in range(rng.choice([1, 1, 1, 2])):
                data = mutate(data, rng, lambda data: mutated_bytes(data, rng))[:MAX_INPUT]
            campaign.one(data)
            if campaign.count % 100_000 == 0:
                print(campaign.count, dict(campaign.outcomes), file=sys.stderr, flush=True)
        sys.exit(finish(campaign, given.target, given.seed, given.json))

    def one(data: bytes) -> None:
        campaign.one(data)
        if campaign.count >= given.runs:
            code = finish(campaign, given.target, given.seed, given.json)
            sys.stdout.flush()
            os._exit(code)  # libFuzzer would go on

    def mutator(data: bytes, most: int, seed: int) -> bytes:
        rng = random.Random(seed)
        if not data or rng.random() < 0.3:
            data = rng.choice(seeds)

        def blind(data: bytes) -> bytes:
            return mutated_bytes(data, rng) if rng.random() < 0.5 else atheris.Mutate(data[:most], most)

        return mutate(data, rng, blind)[:most]

    corpus = Path(tempfile.mkdtemp(prefix="corpus-"))
    for index, data in enumerate(seeds):
        (corpus / str(index)).write_bytes(data)
    options = [f"-seed={given.seed + 1}", f"-max_len={MAX_INPUT}", "-timeout=20", "-rss_limit_mb=4096", "-verbosity=0"]
    atheris.Setup([sys.argv[0], *options, "-len_control=0", str(corpus)], one, custom_mutator=mutator)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
