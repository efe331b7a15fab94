"""What can go wrong between a reference and a verified file, and on the way out to a hub."""

from __future__ import annotations

from steerkit.errors import SteerKitError


class ReferenceFormatError(SteerKitError, ValueError):
    """A reference can't be read, contradicts itself, or fits several packs."""


class PackNotFoundError(SteerKitError, LookupError):
    """There is no such file, folder, repository, revision or bundled pack, or no pack in it."""


class AccessError(SteerKitError, PermissionError):
    """A hub or a server asks for a login or an agreement, or a path may not be read."""


class DownloadError(SteerKitError, OSError):
    """A transfer failed, broke off or exceeded its bounds."""


class OfflineError(SteerKitError, OSError):
    """Something that is not in the cache was asked for while offline."""


class DigestMismatchError(SteerKitError, ValueError):
    """A file's sha256 is not the one that was pinned or announced; the file is not used."""


class CacheError(SteerKitError, OSError):
    """The cache can't be written."""


class PublishError(SteerKitError, ValueError):
    """A pack lacks what a reader must know before using it, and is not published."""


class IndexFormatError(SteerKitError, ValueError):
    """A file is not an index of packs."""


class SigningError(SteerKitError, RuntimeError):
    """A pack can't be signed, or what signing needs is not installed."""


class SignatureFormatError(SteerKitError, ValueError):
    """A file is not the signature of one pack."""


class TrustFileError(SteerKitError, ValueError):
    """A trust file or a revocation list is missing or malformed; the message names the file and the field."""


class UntrustedPackError(SteerKitError, ValueError):
    """A pack is sound as a file, and a check says that it must not be used."""
