"""DeviceTaintRules against a real API server and a real scheduler: both of us read them in the same way."""

from collections.abc import Callable

import pytest

from controller.cluster.rulewatching import served_rules
from controller.controller import Controller
from controller.explaining import explain_pod
from tests.integration.controller.conftest import Cluster
from tests.integration.controller.test_modes import Tenant, asking, devices_of
from tests.integration.controller.test_publishing import notes, published
from tests.unit.controller.builders import DRIVER, facts, taint_rule, wait_until

pytestmark = pytest.mark.cluster

Start = Callable[..., Controller]


def test_a_gpu_that_a_rule_taints_goes_to_claims_that_tolerate_it_and_the_others_are_told(
    cluster: Cluster, start_controller: Start
) -> None:
    rules = served_rules(cluster.kube)
    if rules is None:
        pytest.skip("this API server serves no DeviceTaintRules; up to 1.36 they are behind a feature gate")
    rule = cluster.create(
        rules, taint_rule("repair-ruled", driver=DRIVER, pool="ruled") | {"apiVersion": rules.api_version}
    )
    tenant = Tenant(cluster, "ruled", facts())
    start_controller("a")
    published(cluster, "ruled")
    tenant.ask("barred", asking(memory="1Gi"))
    tenant.waits("barred")
    heading = f"ResourceClaim {cluster.namespace}/barred: request gpu (memory 1Gi): 0 of 1 device can serve it"
    reason = f"ruled/{facts().name}: CardTainted (DeviceTaintRule repair-ruled: example.com/repair:NoSchedule)"
    wait_until(lambda: notes(cluster, "Pod", "barred") == [f"{heading}: {reason}"])
    assert explain_pod(cluster.kube, cluster.namespace, "barred") == f"{heading}\n  {reason}"
    tolerant = asking(memory="1Gi")
    (request,) = tolerant["devices"]["requests"]
    request["exactly"]["tolerations"] = [{"key": "example.com/repair", "operator": "Exists"}]
    assert tenant.gets("tolerant", tolerant) == [facts().name]
    assert devices_of(cluster, "barred") == []
    cluster.kube.delete(rules, {"metadata": {"name": rule["metadata"]["name"]}})
    wait_until(lambda: devices_of(cluster, "barred") == [facts().name])
