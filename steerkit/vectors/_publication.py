"""What publishing a vector gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

PACK = "steering_vector.safetensors"
"""What a pack is called in a repository or a folder of its own."""


@dataclass(frozen=True, slots=True)
class Publication:
    """What was published, or would be.

    Attributes:
        repo_id: The repository.
        files: Its files by name.
        sha256: Digest of the pack.
        revision: The commit; None after a dry run.
        ref: A reference to exactly this pack.
    """

    repo_id: str
    files: Mapping[str, bytes]
    sha256: str
    revision: str | None
    ref: str

    @property
    def card(self) -> str:
        """The model card."""
        return self.files["README.md"].decode()
