"""What steering costs in vLLM, as ratios of one run: `python benchmark.py MODEL NAME=REF [NAME=REF ...]`.

For batches of 1, 8 and 64 requests: seconds without steering (idle), with one pack in every request (steered), and
with another pack in each (distinct), in turns, so that what else the machine does strikes all alike. Ratios are medians
of the turns' ratios to the idle run of the same turn, with the lowest and the highest.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("packs", nargs="+", metavar="NAME=REF")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--options", type=json.loads, default={}, help="further arguments of vllm.LLM, as JSON")
    given = parser.parse_args()
    from vllm import LLM, SamplingParams

    packs = dict(each.split("=", 1) for each in given.packs)
    settings = {"packs": packs, "policy": "off"}
    llm = LLM(given.model, additional_config={"steerkit": settings}, enable_prefix_caching=False, **given.options)
    names = list(packs)

    def seconds(count: int, name: Any, tokens: int) -> float:
        prompts = [{"prompt_token_ids": [1, *range(20 + at, 52 + at)]} for at in range(count)]
        asked = [None if name(at) is None else {"steerkit_pack": name(at)} for at in range(count)]
        sampling = [
            SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False, extra_args=each)
            for each in asked
        ]
        start = time.perf_counter()
        llm.generate(prompts, sampling, use_tqdm=False)
        return time.perf_counter() - start

    kinds = {"idle": lambda at: None, "steered": lambda at: names[0], "distinct": lambda at: names[at % len(names)]}
    print(f"{'batch':>5} {'requests':<9} {'whole answer':<20} first token")
    for count in given.batches:
        turns: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds}
        for turn in range(given.turns + 1):  # the first warms up
            order = list(kinds) if turn % 2 else list(kinds)[::-1]
            found = {
                kind: (seconds(count, kinds[kind], given.tokens), seconds(count, kinds[kind], 1)) for kind in order
            }
            for kind in kinds if turn else ():
                turns[kind].append(found[kind])
        for kind in kinds:
            shown = []
            for which in (0, 1):
                ratios = [one[which] / idle[which] for one, idle in zip(turns[kind], turns["idle"], strict=True)]
                shown.append(f"{statistics.median(ratios):.3f} ({min(ratios):.2f}-{max(ratios):.2f})")
            print(f"{count:>5} {kind:<9} {shown[0]:<20} {shown[1]}")


if __name__ == "__main__":
    main()
