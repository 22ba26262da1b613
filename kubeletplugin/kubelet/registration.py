"""Registers the plugin with the kubelet, which calls us on a socket in its `plugins_registry` folder.

Served by the agent, beside the DRA socket. The kubelet asks again after each of its own restarts.
"""

import logging
import threading
from typing import Any

import grpc

from kubeletplugin.kubelet.services import SUPPORTED_VERSIONS
from kubeletplugin.proto import registration_pb2, registration_pb2_grpc

_log = logging.getLogger(__name__)

PLUGIN_TYPE = "DRAPlugin"


class RegistrationService:
    """Says who we are, and remembers what the kubelet said to that."""

    def __init__(self, driver_name: str, endpoint: str) -> None:
        """Take the driver's name and the absolute path of the DRA socket."""
        self._info = registration_pb2.PluginInfo(
            type=PLUGIN_TYPE, name=driver_name, endpoint=endpoint, supported_versions=SUPPORTED_VERSIONS
        )
        self._lock = threading.Lock()
        self._problem = "the kubelet has not registered the plugin yet"

    def GetInfo(self, request: Any, context: grpc.ServicerContext) -> registration_pb2.PluginInfo:  # noqa: ARG002, N802
        """Tell the kubelet what is served where."""
        return self._info

    def NotifyRegistrationStatus(  # noqa: N802
        self,
        request: registration_pb2.RegistrationStatus,
        context: grpc.ServicerContext,  # noqa: ARG002
    ) -> registration_pb2.RegistrationStatusResponse:
        """Take note of the kubelet's decision."""
        with self._lock:
            self._problem = "" if request.plugin_registered else f"the kubelet refused the plugin: {request.error}"
        if request.plugin_registered:
            _log.info("registered with the kubelet")
        else:
            _log.error("not registered with the kubelet", extra={"error": request.error})
        return registration_pb2.RegistrationStatusResponse()

    def problem(self) -> str:
        """Return why the kubelet does not call us; empty: it does."""
        with self._lock:
            return self._problem


def add_registration_service(server: grpc.Server, service: RegistrationService) -> None:
    """Register the service with a server."""
    registration_pb2_grpc.add_RegistrationServicer_to_server(service, server)  # type: ignore[arg-type]
