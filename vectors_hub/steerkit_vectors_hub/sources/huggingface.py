"""Repositories of the Hugging Face hub, through the huggingface_hub client."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steerkit.errors import SteerKitError
from steerkit.vectors.formats.container import MAX_FILE
from steerkit_vectors_hub.errors import (
    AccessError,
    DownloadError,
    OfflineError,
    PackNotFoundError,
    ReferenceFormatError,
)
from steerkit_vectors_hub.refs import Ref, checked_url, is_commit
from steerkit_vectors_hub.sources.base import (
    MAX_SIGNATURE,
    SIGNATURE,
    Source,
    Target,
    check_signature_size,
    is_no_space,
    no_space,
    require_network,
    the_only_pack,
)

if TYPE_CHECKING:
    from huggingface_hub import HfApi

MOST_PUBLISHED = 200
"""Repositories that a search of the hub returns at most."""

ENDPOINT = "HF_ENDPOINT"
"""Environment variable: another hub that speaks the same protocol."""


class HuggingFaceSource(Source):
    """`hf://owner/name[@revision][/file]`."""

    def key(self, ref: Ref) -> str:
        """The reference with its revision, and the hub if it is not the usual one."""
        named = ref if ref.revision else replace(ref, revision="main")
        return f"{os.environ.get(ENDPOINT, '')} {named.unpinned}".strip()

    def locate(self, ref: Ref) -> Target:
        """Ask the hub for the commit and the files of a repository."""
        with translated(ref.unpinned, cached=True):
            info = api().model_info(ref.place, revision=ref.revision, files_metadata=True)
        files = {each.rfilename: each for each in info.siblings or ()}
        name = ref.file or the_only_pack(files, ref.unpinned)
        if name not in files:
            packs = [each for each in files if each.endswith(".safetensors")]
            raise PackNotFoundError(
                f"{ref.unpinned}: the repository has no file {name!r}",
                expected="one of " + (", ".join(sorted(packs)[:10]) or "its files, of which none is a pack"),
            )
        if "\\" in name or any(step in ("", ".", "..") for step in name.split("/")):  # the client makes a path of it
            raise DownloadError(f"{ref.unpinned}: the hub names a file {name!r}", expected="a path in the repository")
        if info.sha is None or not is_commit(info.sha):
            raise DownloadError(f"{ref.unpinned}: the hub names the commit {info.sha!r:.80}", expected="40 digits")
        lfs = files[name].lfs
        size = files[name].size
        return Target(
            place=ref.place,
            file=name,
            revision=info.sha,
            version=info.sha,
            size=size if size is not None or lfs is None else lfs.size,
            sha256=None if lfs is None else lfs.sha256,
            git_sha1=files[name].blob_id if lfs is None else None,
            signed=name + SIGNATURE in files,
        )

    def download(self, target: Target, folder: Path) -> Path:
        """Let the client transfer the file; it resumes after a cut by itself. Its own cache is left alone."""
        for left in folder.iterdir():  # the client can't go on with what a killed attempt left
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        return self._file(target, folder, MAX_FILE if target.size is None else target.size)

    def signature(self, target: Target, folder: Path) -> bytes | None:
        """The file of the same commit with the ending of a signature behind its name."""
        if not target.signed:
            return None
        path = self._file(replace(target, file=target.file + SIGNATURE, size=None), folder, MAX_SIGNATURE)
        check_signature_size(path.stat().st_size, f"hf://{target.place}/{target.file}{SIGNATURE}")
        return path.read_bytes()

    def _file(self, target: Target, folder: Path, limit: int) -> Path:
        what = f"hf://{target.place}@{target.revision}/{target.file}"
        with translated(what, cached=True):
            path = api().hf_hub_download(
                target.place,
                target.file,
                revision=target.revision,
                local_dir=folder,
                cache_dir=folder / "unused",
                tqdm_class=bounded(what, limit),
            )
        path = Path(path)
        size = path.stat().st_size
        if size > limit or target.size not in (None, size):
            raise DownloadError(f"{what} arrived with {size} bytes", expected=str(target.size or f"at most {limit}"))
        return path


def bounded(what: str, limit: int) -> type[Any]:
    """A progress bar that ends a transfer which goes on beyond its bound.

    Transfers by xet leave it to `__init__`: their client swallows what `update` raises, but needs the size before it
    begins, and never writes more than that.
    """
    from huggingface_hub.utils import tqdm

    class Bounded(tqdm):
        """Counts what arrived before it is written."""

        arrived = 0.0

        def __init__(self, *args: Any, **options: Any) -> None:
            """Refuse what is announced as too long before it is transferred."""
            super().__init__(*args, **options)
            if (self.total or 0) > limit:
                self.close()
                raise self._too_long()

        def update(self, n: float | None = 1) -> bool | None:
            """Count more bytes; fewer, where the client starts again."""
            self.arrived += n or 0
            if self.arrived > limit:
                raise self._too_long()
            return super().update(n)

        def update_transfer(self, n: float | None = 1) -> None:
            """Don't count bytes of the network, which xet tells apart: with its headers, they exceed those of the file.

            Without this method, the client would count them with a second bar of this class.
            """

        def set_transfer_postfix_str(self, s: str = "", refresh: bool = True) -> None:
            """Don't show their speed."""

        def _too_long(self) -> DownloadError:
            return DownloadError(f"{what} is longer than announced", expected=f"at most {limit} bytes")

    return Bounded


def api(token: str | None = None) -> HfApi:
    """The client, for the hub that the environment names now.

    Raises:
        ReferenceFormatError: That hub's address is not encrypted, or holds a password.
    """
    from huggingface_hub import HfApi

    from steerkit._version import __version__

    endpoint = os.environ.get(ENDPOINT) or None
    if endpoint is not None:
        try:
            checked_url(endpoint)
        except ReferenceFormatError as error:
            problem = f"the environment variable {ENDPOINT}: {error.problem}"
            raise ReferenceFormatError(problem, expected=error.expected, fix=error.fix) from error
    return HfApi(endpoint=endpoint, token=token, library_name="steerkit", library_version=__version__)


@contextmanager
def translated(what: str, *, cached: bool = False) -> Iterator[None]:
    """Whatever the client raises, as an error of ours that says what to do.

    Args:
        what: What is asked for.
        cached: Whether it is something that the cache may hold.

    Raises:
        PackNotFoundError: No such repository, revision or file.
        AccessError: A login or an agreement is missing.
        OfflineError: The client itself was told to stay offline.
        CacheError: There is no space for what arrives.
        DownloadError: Anything else.
    """
    from huggingface_hub import errors

    try:
        yield
    except SteerKitError:
        raise
    except errors.GatedRepoError as error:
        raise AccessError(
            f"{what} is gated", expected="an account that was granted access", fix="ask for it on the hub's page"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise PackNotFoundError(f"{what}: no such revision", expected="a branch, tag or commit") from error
    except errors.RepositoryNotFoundError as error:
        raise _refused(what, error, "no such repository, or a private one") from error
    except errors.EntryNotFoundError as error:
        raise PackNotFoundError(f"{what}: no such file", expected="a file of the repository") from error
    except errors.OfflineModeIsEnabled as error:
        raise OfflineError(f"{what} was asked for with HF_HUB_OFFLINE set", expected="a network") from error
    except errors.HfHubHTTPError as error:
        raise _refused(what, error, str(error).strip().partition("\n")[0]) from error
    except Exception as error:
        if is_no_space(error):
            raise no_space(error) from error
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise DownloadError(
            f"{what} can't be transferred ({reason})",
            expected="an answer of the hub",
            fix="check the network and try again" + ("; offline=True uses what is in the cache" if cached else ""),
        ) from error


def _refused(what: str, error: Exception, reason: str) -> SteerKitError:
    """The error for an answer with a status of refusal."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return AccessError(
            f"{what}: the hub answers {status} ({reason})",
            expected="a token with access to an existing repository",
            fix="check the name; `hf auth login`, or set HF_TOKEN",
        )
    if status == 404:
        return PackNotFoundError(f"{what}: {reason}", expected="a repository that you can read")
    return DownloadError(f"{what}: {reason}", expected="an answer of the hub", fix="try again later")


def published(text: str = "", method: str | None = None, *, limit: int = MOST_PUBLISHED) -> list[str]:
    """The repositories of the hub that are tagged as packs.

    Args:
        text: What their names must hold.
        method: A method's name, which is a tag as well.
        limit: At most so many.

    Raises:
        DownloadError: The hub can't be reached.
        OfflineError: There must be no network.
    """
    require_network("searching the hub")
    tags = ["steerkit", *([method] if method else [])]
    with translated("the list of packs"):
        return [each.id for each in api().list_models(filter=tags, search=text or None, limit=limit)]
