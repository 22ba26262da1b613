"""Errors of the driver, and who can do something about them.

    VGPUError
    ├── PermanentError            trying again changes nothing
    │   ├── ConfigError           parameters that a user wrote (VGPUConfig, quantities, settings)
    │   ├── ClaimError            a claim or its allocation that cannot be served as it stands
    │   ├── CapacityError         more was promised than the device has
    │   └── StateError            a file of ours that cannot be read as what it should be
    └── TransientError            worth another try after `delay_s`
        └── KubeError             the API server said no, or nothing (`status` is None then)
            ├── NotFoundError     404
            ├── ConflictError     409: changed meanwhile, or exists already
            └── GoneError         410: the watch is too old, list again

A message names the object, what was found and what was expected. Errors of libraries are translated at the edge that
met them.
"""

from collections.abc import Iterable


class VGPUError(Exception):
    """Base of all errors that the driver raises on purpose."""


class PermanentError(VGPUError):
    """Trying again without a change gives the same error."""


class ConfigError(PermanentError):
    """Parameters that somebody wrote are wrong."""


class ClaimError(PermanentError):
    """A claim cannot be served as it stands."""


class CapacityError(PermanentError):
    """More was promised than the device has."""

    def __init__(self, message: str, holders: Iterable[str] = ()) -> None:
        """Take the UIDs of the claims that hold it already."""
        super().__init__(message)
        self.holders = frozenset(holders)


class StateError(PermanentError):
    """A file of the driver's state is missing, damaged or of another format."""


class TransientError(VGPUError):
    """Worth another try after `delay_s` seconds."""

    def __init__(self, message: str, delay_s: float = 1.0) -> None:
        super().__init__(message)
        self.delay_s = delay_s


class KubeError(TransientError):
    """The API server refused a request, or did not answer (`status` is None)."""

    def __init__(self, message: str, status: int | None = None, delay_s: float = 1.0) -> None:
        super().__init__(message, delay_s)
        self.status = status
        self.wait_s = 0.0
        """So long the API server wants not to be asked again (Retry-After), with 429 and 503."""


class NotFoundError(KubeError):
    """HTTP 404: there is no such object, or no such path: an API server without that version says 404 as well."""

    def __init__(self, message: str, status: int | None = 404, missing: tuple[str, str] | None = None) -> None:
        """Take what the API server says it does not have, by plural and name; None: it does not know the path."""
        super().__init__(message, status)
        self.missing = missing


class ConflictError(KubeError):
    """HTTP 409: the object changed meanwhile, or exists already."""


class GoneError(KubeError):
    """HTTP 410: the watch starts too far in the past; list again."""
