"""Where the API server is and how to get there: kubeconfig or service account, proxy, TLS. Used by `httpkube`.

The kubernetes package reads the files and refreshes tokens; what it found is checked here, and none of it is ignored.
"""

import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import urllib3
import yaml
from kubernetes import client, config
from kubernetes.client.rest import should_bypass_proxies
from kubernetes.config.config_exception import ConfigException
from urllib3.connection import HTTPConnection

from api.errors import ConfigError
from api.tlscontexts import FreshContext

_CONNECTIONS = 128
"""Kept alive: the node agent answers many kubelet calls at once, each with a GET."""
# A watch may be quiet for minutes: the network is asked whether the server is there, as Go's clients do.
_KEEP_ALIVE = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
)


def load(kubeconfig: str | None) -> Any:
    """Return the client.Configuration of a kubeconfig; without one, of the pod, else of the user ($KUBECONFIG).

    Raises:
        ConfigError: there is no usable configuration, or it asks for something that we cannot do.
    """
    configuration = client.Configuration()
    where = f"Kubernetes configuration {kubeconfig or '(of the pod, else $KUBECONFIG or ~/.kube/config)'}"
    if kubeconfig is not None and os.pathsep not in kubeconfig and not Path(kubeconfig).is_file():
        raise ConfigError(f"{where}: found no such file, expected a kubeconfig")
    try:
        with _heard() as complaints:
            if kubeconfig is not None:
                config.load_kube_config(kubeconfig, client_configuration=configuration)  # type: ignore[no-untyped-call]
            else:
                _load_default(configuration)
    except (ConfigException, OSError) as error:
        raise ConfigError(f"{where}: {error}") from error
    except (ValueError, TypeError, AttributeError, KeyError, yaml.YAMLError) as error:
        raise ConfigError(f"{where}: found {error!r}, expected a kubeconfig") from error
    if complaints and not configuration.cert_file and not configuration.auth_settings():
        raise ConfigError(f"{where}: found no credentials: {'; '.join(complaints)}; expected a token or a certificate")
    _check(configuration, where)
    proxy = proxy_of(configuration)
    if proxy is not None and urllib3.util.parse_url(proxy).scheme not in {"http", "https"}:
        raise ConfigError(f"{where}: proxy-url: found {proxy!r}, expected one that begins with http:// or https://")
    return configuration


@contextlib.contextmanager
def _heard() -> Iterator[list[str]]:
    """Yield what is logged as an error in this block.

    The kubernetes package goes on without credentials where the plug-in of `exec` fails or is not there: it logs why,
    and who uses the configuration is told that he may do nothing.
    """
    complaints: list[str] = []

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            complaints.append(record.getMessage())

    ear = Ear(logging.ERROR)
    logging.getLogger().addHandler(ear)
    try:
        yield complaints
    finally:
        logging.getLogger().removeHandler(ear)


def _check(configuration: Any, where: str) -> None:
    """Refuse what nobody could connect with, such as certificates that are none."""
    try:
        has_host = bool(urlsplit(configuration.host).hostname) and urlsplit(configuration.host).port != 0
        FreshContext(configuration)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{where}: {error}") from error
    if not has_host:
        raise ConfigError(
            f"{where}: server: found {configuration.host!r}, expected a URL such as https://10.0.0.1:6443"
        )


def proxy_of(configuration: Any) -> str | None:
    """Return the proxy on the way to the API server (of the kubeconfig, else of the environment), None for none."""
    if not configuration.proxy or should_bypass_proxies(configuration.host, configuration.no_proxy or ""):
        return None
    return str(configuration.proxy)


def connection_pool(configuration: Any) -> urllib3.PoolManager:
    """Return a pool that connects as the configuration says."""
    options: dict[str, Any] = {
        "maxsize": _CONNECTIONS,
        "cert_reqs": "CERT_REQUIRED" if configuration.verify_ssl else "CERT_NONE",
        "ca_certs": configuration.ssl_ca_cert,
        "cert_file": configuration.cert_file,
        "key_file": configuration.key_file,
        "socket_options": [*HTTPConnection.default_socket_options, *_KEEP_ALIVE],
    }
    if configuration.tls_server_name:
        options["server_hostname"] = configuration.tls_server_name
    proxy = proxy_of(configuration)
    if proxy is None:
        return urllib3.PoolManager(**options)
    return urllib3.ProxyManager(proxy, proxy_headers=configuration.proxy_headers, **options)


def _load_default(configuration: client.Configuration) -> None:
    try:
        config.load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
    except ConfigException:
        config.load_kube_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
