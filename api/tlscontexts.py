"""The TLS side of connections that are kept: certificates as their files are now. Used by `keptconnections`.

The kubelet brings the API server's next CA, and rotated client certificates, into a running pod by replacing files.
What was read at the start would be refused from then on, for ever.
"""

import logging
import ssl
import threading
from pathlib import Path
from typing import Any

_log = logging.getLogger(__name__)
_Stamp = tuple[int, int, int] | None


class FreshContext:
    """A context for new connections, made anew after its files have changed. Safe to use from several threads."""

    def __init__(self, configuration: Any) -> None:
        """Take the certificates of a kubernetes.client.Configuration.

        Raises:
            OSError: they cannot be read (ssl.SSLError is one).
        """
        self._configuration = configuration
        self._lock = threading.Lock()
        self._stamps = self._look()
        self._context = _make(configuration)

    def get(self) -> ssl.SSLContext:
        """Return the context for a connection that is made now."""
        with self._lock:
            stamps = self._look()
            if stamps != self._stamps:
                try:
                    self._context = _make(self._configuration)
                    self._stamps = stamps
                except OSError as error:
                    # In the middle of the replacement: a certificate may be there without its key. Tried again.
                    _log.warning("cannot read new certificates yet, going on with the former", extra={"error": error})
            return self._context

    def _look(self) -> tuple[_Stamp, ...]:
        given = self._configuration
        return tuple(_stamp(path) for path in (given.ssl_ca_cert, given.cert_file, given.key_file) if path)


def _stamp(path: str) -> _Stamp:
    try:
        found = Path(path).stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _make(configuration: Any) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if not configuration.verify_ssl:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif configuration.ssl_ca_cert:
        context.load_verify_locations(configuration.ssl_ca_cert)
    else:
        context.load_default_certs()
    if configuration.cert_file:
        context.load_cert_chain(configuration.cert_file, configuration.key_file)
    return context
