"""What the server is told: `--additional-config '{"steerkit": {"packs": {"name": "REF"}}}'`."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import Field, ValidationError

from steerkit.errors import OptionError
from steerkit.interventions import Frozen, Site
from steerkit.policy import Policy
from steerkit_vllm import KEY, __version__

SITES = tuple(site for site in get_args(Site) if site != "head_out")
"""The sites that can be steered; an index of a site is one into this."""


MODULES = {"attn_out": "self_attn", "mlp_out": "mlp"}
"""What of a block has a site's output, by the name that transformers and vLLM share."""


class Room(Frozen):
    """What is allocated before the model is compiled, so that packs can be added later without compiling it again.

    Attributes:
        rows: Changes that can be held at each site; an intervention is one change, or one for each direction of a
            subspace that it removes.
        depth: Changes that one token can undergo at a site.
        sites: Sites that can be steered.
        general: Whether there is more than additions of stored directions.
        gates: Gates on the very token that one intervention can have.
        rule: Whether strengths can be measured on the very token.
        squashed: Whether such a measure can be `tanh_cosine`.
        measured: Whether prompts can be measured before they are steered.
        vectors: Vectors measured on its prompt that one request can need; each takes a row per running request.
    """

    rows: int = Field(default=0, ge=0, le=65_536)
    depth: int = Field(default=0, ge=0, le=64)
    sites: tuple[Site, ...] = ()
    general: bool = False
    gates: int = Field(default=0, ge=0, le=8)
    rule: bool = False
    squashed: bool = False
    measured: bool = False
    vectors: int = Field(default=0, ge=0, le=64)

    def joined(self, other: Room) -> Room:
        """Room for either."""
        mine, theirs = self.model_dump(), other.model_dump()
        found = {name: max(mine[name], theirs[name]) for name in mine if name != "sites"}
        return Room(sites=tuple(site for site in SITES if site in {*self.sites, *other.sites}), **found)

    def lacks(self, other: Room) -> list[str]:
        """What of another's needs there is no room for, but for rows; in words."""
        mine, theirs = self.model_dump(), other.model_dump()
        short = [
            f"{name}={theirs[name]}, and there is room for {mine[name]}"
            for name in mine
            if name not in ("sites", "rows") and theirs[name] > mine[name]
        ]
        missing = [site for site in other.sites if site not in self.sites]
        return [*short, *([f"sites={missing}, and there is room at {list(self.sites)}"] if missing else [])]


class Settings(Frozen):
    """The settings of a server.

    Attributes:
        packs: References by the names that requests use.
        policy: What becomes of a check that fails, as for `steerkit.steer`.
        spare: Rows beyond those of the packs, for packs that are added later.
        room: Room beyond what the packs need.
        recheck: Seconds after which a server verifies its packs again, to take out those that were revoked; 0: never.
        allocated: Filled in when the server starts: what the workers allocate.
        version: Filled in when the server starts: it keeps compiled graphs of another version from being used.
    """

    packs: dict[str, str] = Field(default_factory=dict)
    policy: Policy = "strict"
    spare: int = Field(default=16, ge=0, le=65_536)
    room: Room = Room()
    recheck: float = Field(default=3600.0, ge=0, allow_inf_nan=False)
    allocated: Room | None = None
    version: str = Field(default_factory=lambda: _marker())


@functools.cache
def _marker() -> str:
    """The version with a digest of what is compiled into graphs, because vLLM's cache of graphs does not see hooks."""
    folder = Path(__file__).parent
    code = b"".join((folder / name).read_bytes() for name in ("arithmetic.py", "banks.py"))
    return f"{__version__}+{hashlib.sha256(code).hexdigest()[:16]}"


def settings_of(additional: Mapping[str, Any] | None) -> Settings | None:
    """The settings in vLLM's additional config; None where steering is not asked for.

    Raises:
        OptionError: They are malformed.
    """
    if not isinstance(additional, Mapping) or KEY not in additional:
        return None
    try:
        return Settings.model_validate(additional[KEY])
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()[:5])
        raise OptionError(
            f"--additional-config holds malformed settings of steerkit ({problems})",
            expected='{"steerkit": {"packs": {"NAME": "REF"}}}',
        ) from None
