"""The part of one worker among several that know nothing of each other: array jobs, pods, ranks."""

from __future__ import annotations

from collections.abc import Sequence

from steerkit.errors import OptionError


def shard(blocks: Sequence[int], index: int, count: int) -> Sequence[int]:
    """The blocks of one of several workers: neighbours, so that its state stays small.

    Args:
        blocks: All blocks, as of `SteeringMethod.blocks`.
        index: The worker's number, from 0.
        count: The number of workers.

    Raises:
        OptionError: There is no such worker.
    """
    if not 0 <= index < count:
        raise OptionError(
            f"there is no shard {index} of {count}", expected=f"a number from 0 to {count - 1}" if count > 0 else "0/1"
        )
    return blocks[len(blocks) * index // count : len(blocks) * (index + 1) // count]
