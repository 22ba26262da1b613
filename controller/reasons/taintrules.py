"""DeviceTaintRules as explanations need them, and which taints a request tolerates. Pure.

Used by `tainting` and `fitting`. An administrator's DeviceTaintRule taints devices of any driver. It does not change
their slices: the scheduler adds the taint to what it reads there. Source: KEP-5055;
k8s.io/api/resource/{v1,v1beta2,v1alpha3}.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from sys import intern

from api.claims import Object, Toleration

EFFECTIVE = ("NoSchedule", "NoExecute")
"""Effects that keep claims away; None, and effects of versions to come, do nothing (so says the API)."""


@dataclass(frozen=True, slots=True)
class Taint:
    """A taint of a device."""

    rule: str
    """What puts it there; empty: its slice."""
    key: str
    value: str
    effect: str
    in_doubt: bool = False
    """The rule may select the device or not: CEL decides, which is not evaluated here."""

    def __str__(self) -> str:
        value = f"={self.value}" if self.value else ""
        where = f"DeviceTaintRule {self.rule}: " if self.rule else ""
        return f"{where}{self.key}{value}:{self.effect}"


@dataclass(frozen=True, slots=True)
class TaintRule:
    """A DeviceTaintRule that may select our devices."""

    taint: Taint
    pool: str | None = None
    """The pool of the devices; None: any."""
    device: str | None = None
    """The name of the devices; None: any."""
    device_class: str | None = None
    """A DeviceClass whose selectors the devices pass; of Kubernetes 1.33 and 1.34 alone."""
    selectors: tuple[str, ...] = ()
    """CEL that the devices pass; of Kubernetes 1.33 and 1.34 alone."""


def rule_trimmer(driver: str) -> Callable[[Object], TaintRule | None]:
    """Return the trim of DeviceTaintRules: those that do nothing, or nothing to our devices, are not kept."""

    def trim(obj: Object) -> TaintRule | None:
        spec = obj["spec"]
        selector, taint = spec.get("deviceSelector"), spec["taint"]
        # An empty selector selects all devices; none at all selects none.
        if selector is None or selector.get("driver") not in (None, driver) or taint["effect"] not in EFFECTIVE:
            return None
        return TaintRule(
            Taint(obj["metadata"]["name"], intern(taint["key"]), taint.get("value", ""), intern(taint["effect"])),
            pool=selector.get("pool"),
            device=selector.get("device"),
            device_class=selector.get("deviceClassName"),
            selectors=tuple(entry["cel"]["expression"] for entry in selector.get("selectors") or []),
        )

    return trim


def untolerated(taints: Sequence[Taint], tolerations: Sequence[Toleration]) -> list[Taint]:
    """Return the taints that none of a request's tolerations covers."""
    return [taint for taint in taints if not any(_covers(toleration, taint) for toleration in tolerations)]


def _covers(toleration: Toleration, taint: Taint) -> bool:
    """Compare as the scheduler does: an empty key or effect stands for all of them, Exists for all values."""
    same = toleration.key in ("", taint.key) and toleration.effect in ("", taint.effect)
    if toleration.operator == "Exists":
        return same
    return same and toleration.operator in ("", "Equal") and toleration.value == taint.value
