"""What a node agent is told about its node. Made by `dra-driver node-agent` from its flags, used by the agent."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from api import names
from kubeletplugin.claims.runtimes import DEFAULT_PATTERNS
from kubeletplugin.monitoring.comparing import DEFAULT_SLACK, Slack


@dataclass(frozen=True)
class AgentSettings:
    """What an agent must know about its node."""

    node_name: str
    kubelet_dir: Path = Path(names.KUBELET_DIR)
    cdi_dir: Path = Path(names.CDI_DIR)
    state_dir: Path = Path(names.STATE_DIR)
    driver_root: Path = Path("/")
    driver_root_on_host: Path | None = None
    """The driver root as the container runtime sees it, where that is another path than the agent's."""
    driver_name: str = names.DRIVER_NAME
    pod_uid: str | None = None
    """UID of the agent's pod: lets two instances run side by side."""
    library: Path | None = None
    """The interception library; None: the one that belongs to this program."""
    heartbeat_s: float = 20.0
    retry_s: float = 5.0
    """Between tries while something keeps a heartbeat from being written."""
    monitor_interval_s: float = 1.0
    """Between two looks at the books of all shares."""
    driver_interval_s: float = 5.0
    """Between two looks at what the driver measures."""
    steering_interval_s: float = 0.05
    """Between two looks at the GPU time of devices in use."""
    annotation_interval_s: float = 60.0
    """In which each claim is asked for changes, where no controller tells of them."""
    hold_back: tuple[str, ...] = ()
    """GPUs that are not offered: UUIDs, indices, model:NAME."""
    ignored_xids: tuple[int, ...] = ()
    """Xid errors that do not make a device unhealthy, beside those of programs."""
    uncounted_apis: bool = False
    """Whether containers get the libraries of OpenCL and graphics, whose use of a GPU no share counts."""
    context_bytes: int = 0
    """What a context takes of a device, charged where the driver does not say it in a container; 0: learned."""
    overuse_slack: Slack = DEFAULT_SLACK
    """What a share may have above its limit by the driver's count."""
    refused_runtimes: tuple[str, ...] = DEFAULT_PATTERNS
    """Handlers of RuntimeClasses whose pods get no share."""
    health_interval_s: float = 20.0
    collect_interval_s: float = 600.0
    """Between two looks for what belongs to nobody."""

    def with_absolute_paths(self) -> "AgentSettings":
        """Return these settings fit for others to read: the kubelet and the container runtime run elsewhere."""
        paths: dict[str, Any] = {
            name: value.absolute() for name, value in vars(self).items() if isinstance(value, Path)
        }
        return dataclasses.replace(self, **paths)
