"""Which offer mode and policy a cluster gets, and when to find out anew. Used by `terms`.

What the API server can carry is found out by `probing`.
"""

from collections.abc import Sequence

from api.kube import KubeClient
from api.offerrules import OfferModeName, OfferRule
from controller.offers.consumable import ConsumableMode
from controller.offers.counters import CountersMode
from controller.offers.offering import NoMode, OfferMode
from controller.offers.policies import Policy
from controller.offers.probing import choose_mode, keeps_taints
from controller.offers.slots import SlotsMode

OFFER_MODES: tuple[OfferMode, ...] = (ConsumableMode(), CountersMode(), CountersMode(together=True), SlotsMode())
"""Modes that are tried, best first."""

_PROBE_AGAIN_S = 60.0
"""While no mode can be used: API servers that restart one by one turn a feature gate on without an outage to see."""
_PROBE_BETTER_S = 900.0
"""While a mode can be used and a better one could be: each try makes the scheduler look at its queue again."""
_FIRST_DECIDES_BEFORE = 35
"""Minor version of Kubernetes from which on the scheduler asks each device of a slice for room (`policies`)."""


class ModeChooser:
    """Chooses for one cluster, as its operator wishes."""

    def __init__(self, kube: KubeClient, driver: str, wish: OfferModeName, rules: Sequence[OfferRule]) -> None:
        """Choose among the modes that `wish` allows; the policy has these rules."""
        self._kube = kube
        self._driver = driver
        self._wish = wish
        self._rules = tuple(rules)
        self._modes = [mode for mode in OFFER_MODES if wish in ("auto", mode.name)]

    def choose(self, version: str) -> tuple[OfferMode, Policy]:
        """Return the best mode that the API server carries, and the policy for it.

        Args:
            version: of resource.k8s.io.

        Raises:
            KubeError: it did not answer.
        """
        mode = choose_mode(self._kube, self._modes, self._driver, version)
        if isinstance(mode, NoMode) and self._wish != "auto":
            mode = NoMode(f"the offer mode is set to {self._wish}, which this cluster cannot carry: {mode.reason}")
        taints = keeps_taints(self._kube, self._driver, version)
        first_decides = mode.name == "consumable" and self._kube.server_minor() < _FIRST_DECIDES_BEFORE
        return mode, Policy(self._rules, taints, menu=mode.name == "counters", first_decides=first_decides)

    def again_s(self, mode: OfferMode, policy: Policy) -> float | None:
        """Return after how many seconds to choose anew; None: there is nothing better."""
        if isinstance(mode, NoMode):
            return _PROBE_AGAIN_S
        return None if mode == self._modes[0] and policy.taints else _PROBE_BETTER_S
