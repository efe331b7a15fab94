"""Write a small anchor set of the demo, under two labels of choice, and print the folder of the demo model."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from steerkit.demo import anchors, model_path


def main(path: Path, *labels: str) -> None:
    """Harmful requests carry the first label, harmless ones the second; images lie beside the file."""
    lines = []
    for kind, label in zip(("harmful", "harmless"), labels, strict=True):
        for sample in anchors(8, [kind]):
            lines.append(json.dumps({"text": sample.text, "image": sample.images[0], "label": label}))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(model_path("llava"))


main(Path(sys.argv[1]), *sys.argv[2:])
