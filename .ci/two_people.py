"""README's five commands, as two people would type them, each in an environment, a home and a cache of their own.

    python .ci/two_people.py STEERKIT_OF_ONE STEERKIT_OF_THE_OTHER FOLDER

A hub on the loopback interface holds the bundled LLaVA under the name that README uses. One person publishes a signed
pack; the other trusts their key, and pulls, verifies and steers. Downloads go by xet, as the client prefers; the upload
does not, since the loopback hub takes none by it.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from cryptography.hazmat.primitives import serialization  # noqa: E402
from cryptography.hazmat.primitives.asymmetric import ec  # noqa: E402
from loopback_hub import TOKEN, LoopbackHub, running_hub  # noqa: E402

from steerkit.demo import SUITES, anchors, model_path  # noqa: E402
from steerkit.evaluation import load_suite  # noqa: E402

MODEL = "llava-hf/llava-1.5-7b-hf"


def commands() -> list[str]:
    """The five, in README's order."""
    section = (ROOT / "README.md").read_text(encoding="utf-8").split("## Share it in five commands")[1]
    block = section.split("```sh\n")[1].split("```")[0]
    found = [line.partition("  #")[0].strip() for line in block.splitlines() if line.startswith("steerkit ")]
    assert len(found) == 5, found
    return found


class Person:
    """Somebody with a home, a cache and an installed steerkit of their own."""

    def __init__(self, steerkit: str, home: Path, hub: LoopbackHub, *, xet: bool) -> None:
        home.mkdir(parents=True)
        self.steerkit, self.home = steerkit, home
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "STEERKIT_", "XDG_"))}
        self.environment = {
            **kept,
            "HOME": str(home),
            "HF_ENDPOINT": hub.url,
            "HF_TOKEN": TOKEN,
            "HF_HUB_DISABLE_XET": "0" if xet else "1",
            "HF_HUB_OFFLINE": "0",
        }

    def types(self, command: str) -> str:
        """Run a command, which must succeed; returns what it prints."""
        print(f"{self.home.name}$ {command}", flush=True)
        words = [self.steerkit, *shlex.split(command)[1:]]
        done = subprocess.run(words, cwd=self.home, env=self.environment, capture_output=True, text=True)
        print(done.stdout, end="", flush=True)
        assert done.returncode == 0, f"exit code {done.returncode}\n{done.stderr}"
        return done.stdout


def main(publisher: str, reader: str, folder: Path) -> None:
    """See the module."""
    extract, push, pull, verify, generate = commands()
    with running_hub() as hub:
        hub.publish(MODEL, {path.name: path.read_bytes() for path in Path(model_path("llava")).iterdir()})
        one = Person(publisher, folder / "publisher", hub, xet=False)
        other = Person(reader, folder / "reader", hub, xet=True)

        lines = []
        for index, sample in enumerate(anchors(40)):
            sample.loaded().images[0].save(one.home / f"{index}.png")
            lines.append({"text": sample.text, "image": f"{index}.png", "label": sample.label})
        (one.home / "anchors.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
        key = ec.generate_private_key(ec.SECP256R1())
        (one.home / "lab.key").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        one.types(extract)
        ref = next(word for word in one.types(push).split() if word.startswith("hf://"))
        for repository in hub.repositories.values():
            repository.xet = True

        suite = load_suite(SUITES["test"])
        request = suite.harmful[0]
        request.sample.loaded().images[0].save(other.home / "photo.jpg")
        (other.home / "lab.pub").write_bytes(
            key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        )
        trust = other.home / ".config/steerkit/trust.toml"
        trust.parent.mkdir(parents=True)
        trust.write_text(
            f'require_signature = true\n[[signers]]\nname = "lab"\nkey = "{other.home / "lab.pub"}"\n', encoding="utf-8"
        )
        other.types(pull.replace("REF", ref))
        assert hub.asked("GET", "/xorb/")
        checks = other.types(verify.replace("REF", ref))
        assert "pass  signature: signed by lab" in checks, checks
        other.types(generate.replace("REF", ref))
        question = shlex.quote(str(request.sample.text))
        asked = f"steerkit generate {MODEL} {question} --image photo.jpg --vector {ref} --json"
        answer = json.loads(other.types(asked))["answers"][0]
        assert suite.judge.judge(request, answer["unsteered"]).harmful, answer
        assert suite.judge.judge(request, answer["steered"]).refused, answer


main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
