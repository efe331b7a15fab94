"""Write a small anchor set of the toy world, under two labels of choice, and print the folder of the demo model."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from steerkit.demo import model_path, world


def main(path: Path, *labels: str) -> None:
    """Harmful requests carry the first label, harmless ones the second; images lie beside the file."""
    lines = []
    for kind, label in zip(("harmful", "harmless"), labels, strict=True):
        for index, row in enumerate(world.prompts(kind, "train", 8)):
            image = path.with_name(f"{kind}-{index}.png")
            row.image.save(image)
            lines.append(json.dumps({"text": row.question, "image": image.name, "label": label}))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(model_path("llava"))


main(Path(sys.argv[1]), *sys.argv[2:])
