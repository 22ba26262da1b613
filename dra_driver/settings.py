"""Settings of the long-running commands: defaults < file < environment < flags.

Each field can stand in the YAML file of `--config` under its own name, in the environment as `DRA_DRIVER_<NAME>`, and
on the command line as `--<name>`. An unknown key is refused: a setting with a typing error must not be a setting that
is ignored.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from api import names
from api.errors import ConfigError
from api.offerrules import OfferModeName, OfferRule
from api.quantities import parse_bytes

ENV_PREFIX = "DRA_DRIVER_"
FILE_ONLY = frozenset({"offers"})
"""Fields that no flag can say."""
_MAX_PORT = 65535


def _listen(value: object) -> object:
    if isinstance(value, str):
        found = re.fullmatch(r"([^:\[\]]*|\[[0-9A-Fa-f:.%\w]+\]):(\d{1,5})", value)
        if not found or int(found[2]) > _MAX_PORT:
            raise ValueError('expected address:port such as ":9400", "127.0.0.1:9400" or "[::1]:9400"')
    return value


def _driver_name(value: object) -> object:
    if isinstance(value, str):
        if len(value) > names.MAX_DRIVER_NAME:
            raise ValueError(f"expected at most {names.MAX_DRIVER_NAME} characters")
        if not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*", value):
            raise ValueError('expected a name such as "vgpu.example.com", in lower case and with a letter first')
    return value


_Port = Annotated[
    str,
    BeforeValidator(_listen),
    Field(description="address:port to serve /metrics and probes on, an IPv6 address in brackets"),
]


def _namespace(value: object) -> object:
    if isinstance(value, str) and not re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", value):
        raise ValueError('expected the name of a namespace such as "vgpu-system"')
    return value


def _split(value: object) -> object:
    """Take a list as the command line and the environment give it: separated by commas."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _bytes(value: object) -> object:
    """Take a quantity of memory such as "256Mi"."""
    if not isinstance(value, str) or value == "0":
        return value
    try:
        return parse_bytes(value, "memory")
    except ConfigError as error:
        raise ValueError(str(error)) from error


class CommonOptions(BaseModel):
    """What every long-running command has."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kubeconfig: Annotated[
        str | None,
        Field(description="kubeconfig file; default: the pod's service account, else $KUBECONFIG or ~/.kube/config"),
    ] = None
    driver_name: Annotated[
        str,
        BeforeValidator(_driver_name),
        Field(description="DRA driver name, the same for controller and node agents"),
    ] = names.DRIVER_NAME
    log_format: Annotated[Literal["json", "text"], Field(description="form of the log")] = "text"
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Field(description="least severe level that is logged")
    ] = "info"


class ControllerOptions(CommonOptions):
    """Settings of `dra-driver controller`."""

    listen: _Port = ":9400"
    namespace: Annotated[str, BeforeValidator(_namespace), Field(description="namespace of the leader's Lease")] = (
        "default"
    )
    offer_mode: Annotated[
        OfferModeName, Field(description="how GPUs are offered; auto: the best mode that the API server supports")
    ] = "auto"
    offers: Annotated[
        tuple[OfferRule, ...], Field(description="what is offered of which GPUs; in the file of --config only")
    ] = ()
    device_classes: Annotated[bool, Field(description="make the DeviceClasses for the driver's devices")] = True
    device_class_vendors: Annotated[
        tuple[str, ...], BeforeValidator(_split), Field(description="vendors with a DeviceClass of their own")
    ] = ("nvidia",)
    device_class_owner: Annotated[
        str,
        Field(
            description="ClusterRole with which the DeviceClasses are removed, and by which releases of one driver "
            "know each other; default: none, they stay"
        ),
    ] = ""
    update_crd: Annotated[bool, Field(description="update the CRD of an older release")] = True
    identity: Annotated[
        str | None, Field(description="name among the replicas; default: host name and a random part")
    ] = None


class NodeAgentOptions(CommonOptions):
    """Settings of `dra-driver node-agent`."""

    listen: _Port = ":9401"
    node_name: Annotated[str, Field(min_length=1, description="name of the Node object")]
    kubelet_dir: Annotated[Path, Field(description="the kubelet's root directory")] = Path(names.KUBELET_DIR)
    cdi_dir: Annotated[Path, Field(description="where CDI specs are written")] = Path(names.CDI_DIR)
    state_dir: Annotated[Path, Field(description="folder of the agent's own state")] = Path(names.STATE_DIR)
    driver_root: Annotated[Path, Field(description="where the GPU driver is installed")] = Path("/")
    driver_root_on_host: Annotated[
        Path | None, Field(description="path of the driver root on the host; default: the same")
    ] = None
    hold_back: Annotated[
        tuple[str, ...],
        BeforeValidator(_split),
        Field(description="GPUs that are not offered: UUID, index, or model:NAME with * and ?"),
    ] = ()
    ignored_xids: Annotated[
        tuple[int, ...], BeforeValidator(_split), Field(description="Xid errors that leave a device healthy")
    ] = ()
    uncounted_apis: Annotated[
        bool, Field(description="give containers the libraries of OpenCL and graphics, which no share holds to limits")
    ] = False
    monitor_interval_s: Annotated[
        float, Field(ge=0.1, le=60, description="seconds between two looks at the books of all shares")
    ] = 1.0
    driver_interval_s: Annotated[
        float, Field(ge=1, le=600, description="seconds between two looks at what the driver measures")
    ] = 5.0
    steering_interval_s: Annotated[
        float, Field(ge=0.01, le=1, description="seconds between two looks at the GPU time of devices in use")
    ] = 0.05
    annotation_interval_s: Annotated[
        float,
        Field(
            ge=1, le=3600, description="seconds in which each claim is read once, if no controller announces changes"
        ),
    ] = 60.0
    context_bytes: Annotated[
        int,
        BeforeValidator(_bytes),
        Field(
            ge=0,
            le=1 << 30,
            description='what a CUDA context takes, where NVML names no process in containers: "300Mi"; 0: learned',
        ),
    ] = 0
    overuse_slack_memory: Annotated[
        int,
        BeforeValidator(_bytes),
        Field(ge=0, description="what the driver may count above a share's limit before it is overuse"),
    ] = 256 << 20
    overuse_slack_percent: Annotated[
        int, Field(ge=0, le=100, description="the same in percent of the limit; the larger of the two counts")
    ] = 5
    refused_runtimes: Annotated[
        tuple[str, ...],
        BeforeValidator(_split),
        Field(description="handlers of RuntimeClasses whose pods get no share, with * and ?"),
    ] = ("kata*", "runsc*", "gvisor*")
    pod_uid: Annotated[
        str | None, Field(description="UID of the agent's pod: lets two agents run side by side during an update")
    ] = None


_Options = TypeVar("_Options", bound=CommonOptions)


def load_settings(
    kind: type[_Options], file: Path | None, flags: Mapping[str, Any], environment: Mapping[str, str] = os.environ
) -> _Options:
    """Return the settings of a command.

    Args:
        kind: the settings class.
        file: YAML file with settings; None: no file.
        flags: what the command line gave; None values count as not given.
        environment: the process environment.

    Raises:
        ConfigError: one line for each problem: where it was set, what was found, what was expected.
    """
    layers = {
        f"file {file}": _read_file(file) if file else {},
        "environment": _read_environment(kind, environment),
        "command line": {key: value for key, value in flags.items() if value is not None},
    }
    merged: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for origin, layer in layers.items():
        merged |= layer
        origins |= dict.fromkeys(layer, origin)
    try:
        return kind.model_validate(merged)
    except ValidationError as error:
        raise ConfigError("\n".join(_describe(dict(problem), origins, kind) for problem in error.errors())) from error


def _read_file(file: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(file.read_text())
    except OSError as error:
        raise ConfigError(f"file {file}: found {error.strerror}, expected a YAML file of settings") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"file {file}: {_in_a_line(error)}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"file {file}: found {type(content).__name__}, expected a mapping of settings")
    return content


def _read_environment(kind: type[CommonOptions], environment: Mapping[str, str]) -> dict[str, Any]:
    variables = {f"{ENV_PREFIX}{field.upper()}": field for field in kind.model_fields}
    return {field: environment[variable] for variable, field in variables.items() if variable in environment}


def _in_a_line(error: Exception) -> str:
    """Return what is wrong with a YAML file, and where, if that is known."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return " ".join(str(error).split())
    mark = error.problem_mark
    said = " ".join(part for part in (error.context, error.problem) if part)
    return f"line {mark.line + 1}, column {mark.column + 1}: {said}"


def _describe(problem: dict[str, Any], origins: Mapping[str, str], kind: type[CommonOptions]) -> str:
    field = str(problem["loc"][0])
    inside = ".".join(str(part) for part in problem["loc"])
    origin = origins.get(field, "default")
    if problem["type"] == "missing":
        if inside != field:
            return f"setting {inside} ({origin}): missing"
        return f"setting {field}: missing, give --{field.replace('_', '-')} or {ENV_PREFIX}{field.upper()}"
    if problem["type"] == "extra_forbidden":
        known = f", expected one of {', '.join(sorted(kind.model_fields))}" if inside == field else ""
        return f"setting {inside} ({origin}): unknown{known}"
    return f"setting {inside} ({origin}): found {problem['input']!r}, {_expected(problem['msg'])}"


def _expected(message: str) -> str:
    """Return what a validator says as our own words: "expected ..."."""
    said = message.removeprefix("Value error, ")
    if ", expected " in said:  # with what was found, as those of api.quantities are
        return f"expected {said.partition(', expected ')[2]}"
    if said.startswith("expected "):
        return said
    said = (
        said.removeprefix("Input should be ")
        .replace("a valid integer", "an integer")
        .replace("a valid ", "a ")
        .partition(", unable to parse")[0]
    )
    return f"expected {said}"
