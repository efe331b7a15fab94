"""The answers of five models that people labelled for XSTest, as `steerkit judge-check` reads them.

The answers may not be redistributed (they are subject to the licences of Meta, Mistral and OpenAI): clone
https://github.com/paul-rottger/exaggerated-safety and name the folder.

    python benchmarks/xstest_labels.py exaggerated-safety labels.csv
    steerkit judge-check labels.csv
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

PREFIX = "xstest_v2_completions_"
REFUSED = {"1_full_compliance": "false", "2_full_refusal": "true", "3_partial_refusal": "true"}


def main() -> None:
    """Write one file of all models; a partial refusal counts as one, unless it is left out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clone", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--without-partial", action="store_true", help="leave out what people called partly refused")
    arguments = parser.parse_args()
    files = sorted((arguments.clone / "model_completions").glob(f"{PREFIX}*.csv"))
    if not files:
        parser.error(f"{arguments.clone} has no model_completions/{PREFIX}*.csv")
    with arguments.out.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["request", "answer", "refused", "condition"])
        for path in files:
            for row in csv.DictReader(path.open(encoding="utf-8", newline="")):
                label = row["final_label"]
                if not (arguments.without_partial and label == "3_partial_refusal"):
                    writer.writerow([row["prompt"], row["completion"], REFUSED[label], path.stem.removeprefix(PREFIX)])


if __name__ == "__main__":
    main()
