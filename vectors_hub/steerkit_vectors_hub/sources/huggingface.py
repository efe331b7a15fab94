"""Repositories of the Hugging Face hub, through the huggingface_hub client."""

from __future__ import annotations

import errno
import importlib
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from steerkit._internal.faults import faults
from steerkit._internal.files import read_bounded
from steerkit._text import first_line
from steerkit.errors import SteerKitError
from steerkit_vectors_hub.cache import saving, unwritable
from steerkit_vectors_hub.errors import (
    AccessError,
    DownloadError,
    OfflineError,
    PackNotFoundError,
    ReferenceFormatError,
)
from steerkit_vectors_hub.refs import ENDPOINT, Ref, checked_url, is_commit
from steerkit_vectors_hub.sources.base import (
    MAX_FILE,
    MAX_SIGNATURE,
    SIGNATURE,
    Source,
    Target,
    check_size,
    require_network,
    the_only_pack,
    untransferred,
)

if TYPE_CHECKING:
    from huggingface_hub import HfApi

MOST_PUBLISHED = 200
"""Repositories that a search of the hub returns at most."""

MAX_ANSWER = 2**24
"""Bytes of a hub's description of a repository, or of its list of them."""

_PACKED = 64
"""By how much less is read of what is compressed, since it is unpacked at once."""

_TIMEOUT = 30.0
_HOOKS = threading.Lock()
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG)


class _Listed(BaseModel):
    id: str


class HuggingFaceSource(Source):
    """`hf://owner/name[@revision][/file]`."""

    def __init__(self, token: bool | str | None = None) -> None:
        self._token = token

    def locate(self, ref: Ref) -> Target:
        """Ask the hub for the commit and the files of a repository."""
        with translated(ref.unpinned, cached=True):
            info = api(self._token).model_info(ref.place, revision=ref.revision, files_metadata=True, timeout=_TIMEOUT)
            files = {each.rfilename: each for each in info.siblings or ()}
            name = ref.file or the_only_pack(files, ref.unpinned)
            if name not in files:
                packs = [each for each in files if each.endswith(".safetensors")]
                raise PackNotFoundError(
                    f"{ref.unpinned}: the repository has no file {name!r}",
                    expected="one of " + (", ".join(sorted(packs)[:10]) or "its files, of which none is a pack"),
                )
            if "\\" in name or any(
                step in ("", ".", "..") for step in name.split("/")
            ):  # the client makes a path of it
                raise DownloadError(f"the hub names a file {name!r}", expected="a path in the repository")
            if not is_commit(info.sha or ""):
                raise DownloadError(f"the hub names the commit {info.sha!r:.80}", expected="40 digits")
            file, lfs = files[name], files[name].lfs
            return Target(
                place=ref.place,
                file=name,
                revision=info.sha,
                version=info.sha,
                size=file.size if lfs is None or file.size is not None else lfs.size,
                sha256=None if lfs is None else lfs.sha256,
                git_sha1=file.blob_id if lfs is None else None,
                signed=name + SIGNATURE in files,
            )

    def download(self, target: Target, folder: Path) -> bytes:
        """Let the client transfer the file; it resumes after a cut by itself. Its own cache is left alone."""
        what = f"hf://{target.place}@{target.revision}/{target.file}"
        limit = MAX_FILE if target.size is None else target.size
        data = self._file(target, what, folder, limit)
        if target.size not in (None, len(data)):
            raise DownloadError(f"{what} arrived with {len(data)} bytes", expected=str(target.size))
        return data

    def signature(self, target: Target, folder: Path) -> bytes | None:
        """The file of the same commit with the ending of a signature behind its name."""
        if not target.signed:
            return None
        signed = replace(target, file=target.file + SIGNATURE)
        return self._file(signed, f"hf://{target.place}/{signed.file}", folder, MAX_SIGNATURE)

    def _file(self, target: Target, what: str, folder: Path, limit: int) -> bytes:
        for left in folder.iterdir():  # the client can't go on with what a killed attempt left, and follows links
            shutil.rmtree(left, ignore_errors=True)
        with saving():
            mine = Path(tempfile.mkdtemp(dir=folder))
        try:
            with translated(what, cached=True):
                path = api(self._token).hf_hub_download(
                    target.place,
                    target.file,
                    revision=target.revision,
                    local_dir=mine,
                    cache_dir=mine / "unused",
                    tqdm_class=bounded(what, limit),
                )
            with saving():
                check_size(Path(path).stat().st_size, what, limit)
                return read_bounded(path, limit, follow=False)
        finally:
            shutil.rmtree(mine, ignore_errors=True)


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


def api(token: bool | str | None = None) -> HfApi:
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
        with _bounded_answers():
            yield
    except SteerKitError:
        raise
    except errors.GatedRepoError as error:
        fix = "ask for access on the hub's page"
        raise AccessError(f"{what} is gated", expected="an account that was granted access", fix=fix) from error
    except errors.RepositoryNotFoundError as error:
        raise _refused(what, error, "no such repository, or a private one") from error
    except (errors.RevisionNotFoundError, errors.EntryNotFoundError) as error:
        missing = "revision" if isinstance(error, errors.RevisionNotFoundError) else "file"
        raise PackNotFoundError(f"{what}: no such {missing}", expected=f"a {missing} of the repository") from error
    except errors.OfflineModeIsEnabled as error:
        raise OfflineError(f"{what} was asked for with HF_HUB_OFFLINE set", expected="a network") from error
    except errors.HfHubHTTPError as error:
        raise _refused(what, error, first_line(error)) from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _OF_THE_DISK:
            raise unwritable(error) from error
        reason = faults(error) if isinstance(error, ValidationError) else first_line(error)
        raise untransferred(what, reason, "an answer of the hub", cached=cached) from error


@contextmanager
def _bounded_answers() -> Iterator[None]:
    """Have the client read at most MAX_ANSWER of anything but files: by itself it reads all, even of an error."""
    from huggingface_hub import get_session

    session, thread = get_session(), threading.get_ident()
    stream_of: Any = importlib.import_module(type(session).__module__.partition(".")[0]).SyncByteStream

    class Bounded(stream_of):
        """A body that ends in an error where it becomes too long."""

        def __init__(self, stream: Any, limit: int) -> None:
            self._stream, self._limit = stream, limit

        def __iter__(self) -> Iterator[bytes]:
            count = 0
            for chunk in self._stream:
                count += len(chunk)
                check_size(count, "an answer of the hub", self._limit)
                yield chunk

        def close(self) -> None:
            self._stream.close()

    def bound(response: Any) -> None:
        if threading.get_ident() == thread and not (response.is_success and "/api/" not in response.url.path):
            packed = "content-encoding" in response.headers
            response.stream = Bounded(response.stream, MAX_ANSWER // (_PACKED if packed else 1))

    with _HOOKS:
        session.event_hooks = {**session.event_hooks, "response": [*session.event_hooks["response"], bound]}
    try:
        yield
    finally:
        with _HOOKS:
            left = [hook for hook in session.event_hooks["response"] if hook is not bound]
            session.event_hooks = {**session.event_hooks, "response": left}


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
    from huggingface_hub import get_session
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

    tags = ["steerkit", *([method] if method else [])]
    asked = {"filter": tags, "limit": limit, **({"search": text} if text else {})}
    with translated("the list of packs"):
        client = api()
        headers = build_hf_headers(library_name=client.library_name, library_version=client.library_version)
        # not `client.list_models`: it goes on to wherever the hub says that the next page is, with the token
        url = f"{client.endpoint.rstrip('/')}/api/models"
        response = get_session().get(url, params=asked, headers=headers, timeout=_TIMEOUT)
        hf_raise_for_status(response)
        return [each.id for each in TypeAdapter(list[_Listed]).validate_json(response.content)][:limit]
