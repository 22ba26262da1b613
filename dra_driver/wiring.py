"""Starts the long-running commands, serves their status, and ends them cleanly on SIGTERM or SIGINT.

Called by the CLI.
"""

import gc
import logging
import os
import secrets
import signal
import socket
from collections.abc import Mapping
from pathlib import Path
from queue import SimpleQueue
from typing import Protocol

from api.httpkube import HTTPKubeClient
from dra_driver import __version__
from dra_driver.logs import setup_logging
from dra_driver.serving import StatusServer
from dra_driver.settings import CommonOptions, ControllerOptions, NodeAgentOptions, load_settings

_log = logging.getLogger(__name__)


class Service(Protocol):
    """A long-running component."""

    def start(self) -> None:
        """Begin to work; errors of the start are raised."""

    def alive(self) -> str:
        """Return why a restart would help; an empty string: it is well."""

    def ready(self) -> str:
        """Return why it is not ready; an empty string: it is."""

    def stop(self) -> None:
        """End the work and wait for it."""


def run_controller(config: Path | None, flags: Mapping[str, object]) -> int:
    """Run `dra-driver controller` until a signal ends it."""
    from controller.classes import ClassSettings
    from controller.controller import Controller, ControllerSettings

    options = load_settings(ControllerOptions, config, flags)
    settings = ControllerSettings(
        driver_name=options.driver_name,
        namespace=options.namespace,
        offer_mode=options.offer_mode,
        rules=options.offers,
        classes=ClassSettings(
            options.device_class_vendors if options.device_classes else None, options.device_class_owner
        ),
        update_crd=options.update_crd,
        identity=options.identity or f"{socket.gethostname()}-{secrets.token_hex(4)}",
    )
    _begin(options)
    return _serve(Controller(HTTPKubeClient(options.kubeconfig), settings), options.listen)


def run_node_agent(config: Path | None, flags: Mapping[str, object]) -> int:
    """Run `dra-driver node-agent` until a signal ends it."""
    from kubeletplugin.agent import NodeAgent
    from kubeletplugin.agentsettings import AgentSettings
    from kubeletplugin.monitoring.comparing import Slack

    options = load_settings(NodeAgentOptions, config, flags)
    settings = AgentSettings(
        node_name=options.node_name,
        kubelet_dir=options.kubelet_dir,
        cdi_dir=options.cdi_dir,
        state_dir=options.state_dir,
        driver_root=options.driver_root,
        driver_root_on_host=options.driver_root_on_host,
        driver_name=options.driver_name,
        pod_uid=options.pod_uid,
        hold_back=options.hold_back,
        ignored_xids=options.ignored_xids,
        uncounted_apis=options.uncounted_apis,
        monitor_interval_s=options.monitor_interval_s,
        driver_interval_s=options.driver_interval_s,
        steering_interval_s=options.steering_interval_s,
        annotation_interval_s=options.annotation_interval_s,
        context_bytes=options.context_bytes,
        overuse_slack=Slack(options.overuse_slack_memory, options.overuse_slack_percent),
        refused_runtimes=options.refused_runtimes,
    )
    _begin(options)
    return _serve(NodeAgent(HTTPKubeClient(options.kubeconfig), settings), options.listen)


def keep_what_is_loaded() -> None:
    """Tell the garbage collector to pass over all that there is now: modules and clients, which live as long as we.

    Else it looks at some 200,000 objects again and again, for tens of milliseconds in the middle of a burst of calls.
    """
    gc.collect()
    gc.freeze()


def _begin(options: CommonOptions) -> None:
    setup_logging(options.log_format, options.log_level)
    _log.info("starting", extra={"version": __version__, "pid": os.getpid(), **options.model_dump(mode="json")})


def _serve(service: Service, listen: str) -> int:
    # No Event: a handler that sets it while this thread is about to wait for it waits for this thread.
    signals: SimpleQueue[int] = SimpleQueue()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _frame: signals.put(number))
    status = StatusServer(listen, service.alive, service.ready)
    status.start()
    try:
        service.start()
        keep_what_is_loaded()
        signals.get()
        _log.info("stopping")
        service.stop()
    finally:
        status.stop()
    _log.info("stopped")
    return 0
