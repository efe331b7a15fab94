"""What can go wrong between a reference and a verified file, and on the way out to a hub."""

from __future__ import annotations

from steerkit.errors import SteerKitError


class HubError(SteerKitError):
    """Base of the errors of getting and publishing packs."""


class ReferenceFormatError(HubError, ValueError):
    """A reference can't be read, contradicts itself, or fits several packs."""


class PackNotFoundError(HubError, LookupError):
    """There is no such file, folder, repository, revision or bundled pack, or no pack in it."""


class AccessError(HubError, PermissionError):
    """A hub or a server asks for a login or an agreement, or a path may not be read."""


class DownloadError(HubError, OSError):
    """A transfer failed, broke off or exceeded its bounds."""


class OfflineError(HubError, OSError):
    """Something that is not in the cache was asked for while offline."""


class DigestMismatchError(HubError, ValueError):
    """A file's sha256 is not the one that was pinned or announced; the file is not used."""


class CacheError(HubError, OSError):
    """The cache can't be written."""


class PublishError(HubError, ValueError):
    """A pack lacks what a reader must know before using it, and is not published."""


class IndexFormatError(HubError, ValueError):
    """A file is not an index of packs."""


class SigningError(HubError, RuntimeError):
    """A pack can't be signed, or what signing needs is not installed."""


class SignatureFormatError(HubError, ValueError):
    """A file is not the signature of one pack."""


class TrustFileError(HubError, ValueError):
    """A trust file or a revocation list is missing or malformed; the message names the file and the field."""


class UntrustedPackError(HubError, ValueError):
    """A pack is sound as a file, and a check says that it must not be used."""
