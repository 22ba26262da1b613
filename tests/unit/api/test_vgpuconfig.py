"""VGPUConfig: strict, with a message of its own for each thing that can be wrong."""

import pytest

from api.errors import ConfigError
from api.vgpuconfig import Policy, parse_config

_HEAD = {"apiVersion": "vgpu.dra-driver.io/v1alpha1", "kind": "VGPUConfig"}
_WHERE = "ResourceClaim team-a/train"


def test_all_fields_are_read_in_base_units() -> None:
    config = parse_config(_HEAD | {"memory": "4Gi", "cores": 30, "policy": "Burst"}, _WHERE)
    assert (config.memory, config.cores, config.policy) == (4 << 30, 30, Policy.BURST)


def test_what_is_left_out_is_left_to_the_allocation() -> None:
    config = parse_config(_HEAD, _WHERE)
    assert (config.memory, config.cores, config.policy) == (None, None, None)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"core": 30},
            "core: unknown field, expected one of memory, cores, policy, priority, overuse, apiVersion, kind",
        ),
        ({"memory": "-1Gi"}, 'memory: found \'-1Gi\', expected a quantity of memory above 0 such as "8Gi" or "500Mi"'),
        ({"memory": "0"}, 'memory: found \'0\', expected a quantity of memory above 0 such as "8Gi" or "500Mi"'),
        ({"memory": "8GB"}, 'memory: found \'8GB\', expected a quantity of memory above 0 such as "8Gi" or "500Mi"'),
        ({"memory": "1e30"}, "memory: found '1e30', expected at most 9223372036854775807 bytes"),
        ({"cores": 0}, "cores: found 0, expected a whole number from 1 to 100 (percent of one device)"),
        ({"cores": -5}, "cores: found -5, expected a whole number from 1 to 100 (percent of one device)"),
        ({"cores": 101}, "cores: found 101, expected a whole number from 1 to 100 (percent of one device)"),
        ({"cores": "30"}, "cores: found '30', expected a whole number from 1 to 100 (percent of one device)"),
        ({"cores": 30.5}, "cores: found 30.5, expected a whole number from 1 to 100 (percent of one device)"),
        ({"policy": "burst"}, 'policy: found \'burst\', expected "Fixed" or "Burst"'),
        ({"kind": "GPUConfig"}, "kind: found 'GPUConfig', expected \"VGPUConfig\""),
        ({"apiVersion": "v1"}, "apiVersion: found 'v1', expected \"vgpu.dra-driver.io/v1alpha1\""),
    ],
)
def test_each_mistake_has_its_own_message(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_config(_HEAD | fields, _WHERE)
    assert str(error.value) == f"{_WHERE}: {message}"


def _brackets(depth: int) -> object:
    found: object = 1
    for _ in range(depth):
        found = [found]
    return found


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"\ud800": 1},
            "found a key that is no text, expected one of memory, cores, policy, priority, overuse, apiVersion",
        ),
        ({"memory": _brackets(5000)}, "found {'apiVersion': 'vgpu.dra-driver.io/v1alpha1', "),
        ({"cores": _brackets(5000)}, "cores: found [[[[[[[...]]]]]]], expected a whole number from 1 to 100"),
        ({"policy": _brackets(5000)}, 'policy: found [[[[[[[...]]]]]]], expected "Fixed" or "Burst"'),
    ],
)
def test_keys_that_are_no_text_and_brackets_in_brackets_are_mistakes_like_others(
    fields: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError) as error:
        parse_config(_HEAD | fields, _WHERE)
    assert str(error.value).startswith(f"{_WHERE}: {message}")


def test_several_mistakes_are_all_named() -> None:
    with pytest.raises(ConfigError) as error:
        parse_config({"cores": 0, "memori": 1}, _WHERE)
    assert str(error.value).splitlines() == [
        f'{_WHERE}: apiVersion: missing, expected "vgpu.dra-driver.io/v1alpha1"',
        f'{_WHERE}: kind: missing, expected "VGPUConfig"',
        f"{_WHERE}: cores: found 0, expected a whole number from 1 to 100 (percent of one device)",
        f"{_WHERE}: memori: unknown field, expected one of memory, cores, policy, priority, overuse, apiVersion, kind",
    ]


def test_of_very_many_and_long_mistakes_a_few_are_named() -> None:
    """There is room for thousands of them in a claim; the controller keeps what is told, for each claim."""
    keys = {f"key{number}": 0 for number in range(1000)}
    with pytest.raises(ConfigError) as error:
        parse_config(_HEAD | {"memory": "9" * 9000, "evil\n" + "x" * 9000: 1} | keys, _WHERE)
    first, second, *_, last = lines = str(error.value).splitlines()
    assert len(lines) == 9
    assert first.startswith(f"{_WHERE}: memory: found '99999")
    assert first.endswith("""99999', expected a quantity of memory above 0 such as "8Gi\"""")
    assert second.startswith(f"{_WHERE}: 'evil\\nxxx")
    assert all(len(line) < 300 for line in lines)
    assert last == f"{_WHERE}: and 994 more"


@pytest.mark.parametrize("parameters", [None, "memory: 4Gi", 7, []])
def test_parameters_that_are_no_object_are_refused(parameters: object) -> None:
    with pytest.raises(ConfigError, match="expected an object of kind VGPUConfig"):
        parse_config(parameters, _WHERE)
