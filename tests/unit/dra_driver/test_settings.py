"""Settings: which source wins, and what is said about a wrong one."""

from pathlib import Path

import pytest

from api.errors import ConfigError
from dra_driver.settings import ControllerOptions, NodeAgentOptions, load_settings


def _file(folder: Path, text: str) -> Path:
    file = folder / "config.yaml"
    file.write_text(text)
    return file


def test_flags_go_before_environment_before_file_before_defaults(tmp_path: Path) -> None:
    file = _file(tmp_path, "node_name: from-file\nlog_level: debug\nlog_format: json\n")
    environment = {"DRA_DRIVER_NODE_NAME": "from-environment", "DRA_DRIVER_LOG_FORMAT": "text"}
    options = load_settings(NodeAgentOptions, file, {"node_name": "from-flag", "log_format": None}, environment)
    assert options.node_name == "from-flag"
    assert options.log_format == "text"
    assert options.log_level == "debug"
    assert options.state_dir == Path("/var/lib/dra-driver-vgpu")


def test_an_unknown_key_is_refused_with_its_file_and_the_known_ones(tmp_path: Path) -> None:
    file = _file(tmp_path, "log_levl: debug\n")
    with pytest.raises(ConfigError) as error:
        load_settings(ControllerOptions, file, {}, {})
    assert str(error.value) == (
        f"setting log_levl (file {file}): unknown, expected one of "
        "device_class_owner, device_class_vendors, device_classes, driver_name, identity, kubeconfig, "
        "listen, log_format, log_level, namespace, offer_mode, offers, update_crd"
    )


def test_rules_of_the_offer_stand_in_the_file(tmp_path: Path) -> None:
    rule = "- nodeLabels: {pool: a}\n  models: ['*H100*']\n  order: spread\n  slots: [{memory: 10Gi, count: 4}]\n"
    options = load_settings(ControllerOptions, _file(tmp_path, f"offers:\n{rule}"), {"offer_mode": "slots"}, {})
    (found,) = options.offers
    assert found.matches({"pool": "a", "zone": "z"}, "NVIDIA H100 80GB HBM3")
    assert not found.matches({"pool": "b"}, "NVIDIA H100 80GB HBM3")
    assert not found.matches({"pool": "a"}, "NVIDIA A10")
    assert found.order == "spread"
    assert [(size.memory_bytes, size.cores, size.count) for size in found.slots or ()] == [(10 << 30, None, 4)]


def test_a_wrong_rule_names_its_place(tmp_path: Path) -> None:
    file = _file(tmp_path, "offers: [{order: spread}, {ordr: spread, slots: [{memory: 1Gi, count: 0}]}]\n")
    with pytest.raises(ConfigError) as error:
        load_settings(ControllerOptions, file, {}, {})
    assert str(error.value).splitlines() == [
        f"setting offers.1.slots.0.count (file {file}): found 0, expected greater than or equal to 1",
        f"setting offers.1.ordr (file {file}): unknown",
    ]


def test_a_wrong_value_names_where_it_was_set() -> None:
    with pytest.raises(ConfigError) as error:
        load_settings(ControllerOptions, None, {}, {"DRA_DRIVER_LOG_FORMAT": "xml"})
    assert str(error.value) == "setting log_format (environment): found 'xml', expected 'json' or 'text'"


@pytest.mark.parametrize("listen", [":9400", "127.0.0.1:9400", "localhost:1", "[::1]:9400", "[fe80::1%eth0]:9400"])
def test_an_address_to_listen_on_may_be_of_either_ip_version(listen: str) -> None:
    assert load_settings(ControllerOptions, None, {"listen": listen}, {}).listen == listen


@pytest.mark.parametrize("listen", ["9400", "::1:9400", "[::1]", "[::1]:", "127.0.0.1:port", ":65536"])
def test_an_address_that_is_none_is_refused_with_examples(listen: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_settings(ControllerOptions, None, {"listen": listen}, {})
    assert str(error.value) == (
        f"setting listen (command line): found '{listen}', "
        'expected address:port such as ":9400", "127.0.0.1:9400" or "[::1]:9400"'
    )


@pytest.mark.parametrize("namespace", ["", "Team-A", "a/b", "a" * 64])
def test_a_namespace_in_which_no_lease_can_be_is_refused(namespace: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_settings(ControllerOptions, None, {"namespace": namespace}, {})
    assert str(error.value) == (
        f'setting namespace (command line): found {namespace!r}, expected the name of a namespace such as "vgpu-system"'
    )


_NO_NAME = 'expected a name such as "vgpu.example.com", in lower case and with a letter first'


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a" * 28, "expected at most 27 characters"),
        *((name, _NO_NAME) for name in ("1.example.com", "Not a Name", "a..b", "a.-b", "")),
    ],
)
def test_a_driver_name_with_which_nothing_would_work_is_refused(name: str, expected: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_settings(ControllerOptions, None, {"driver_name": name}, {})
    assert str(error.value) == f"setting driver_name (command line): found '{name}', {expected}"


@pytest.mark.parametrize(
    ("setting", "value", "expected"),
    [
        ("monitor_interval_s", "often", "expected a number"),
        ("monitor_interval_s", "0", "expected greater than or equal to 0.1"),
        ("context_bytes", "300MB", 'expected a quantity of memory above 0 such as "8Gi" or "500Mi"'),
        ("overuse_slack_percent", "5.5", "expected an integer"),
    ],
)
def test_what_was_found_and_what_was_expected_is_said_of_a_value(setting: str, value: str, expected: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_settings(NodeAgentOptions, None, {"node_name": "n", setting: value}, {})
    assert str(error.value) == f"setting {setting} (command line): found '{value}', {expected}"


def test_a_missing_setting_says_how_to_give_it() -> None:
    with pytest.raises(ConfigError) as error:
        load_settings(NodeAgentOptions, None, {}, {})
    assert str(error.value) == "setting node_name: missing, give --node-name or DRA_DRIVER_NODE_NAME"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n", "found list, expected a mapping of settings"),
        ("a: [\n", "line 2, column 1: while parsing a flow node expected the node content, but found '<stream end>'"),
        ("\x00", "special"),
    ],
)
def test_a_file_that_holds_no_settings_is_refused_by_name(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        load_settings(ControllerOptions, _file(tmp_path, text), {}, {})
    assert str(error.value).startswith(f"file {tmp_path / 'config.yaml'}: ")


def test_a_file_that_is_not_there_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"nowhere.yaml: found No such file or directory, expected a YAML file of settings$"
    ):
        load_settings(ControllerOptions, tmp_path / "nowhere.yaml", {}, {})
