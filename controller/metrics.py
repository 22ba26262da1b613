"""Figures of the controller for Prometheus: `vgpu_controller_*`. Fed by `keeping`, `pending` and `controller`."""

from prometheus_client import CollectorRegistry, Counter, Gauge


class Metrics:
    """The controller's figures in one registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.leader = Gauge("vgpu_controller_leader", "1 while this controller leads.", registry=registry)
        self.slices = Gauge(
            "vgpu_controller_slices",
            "ResourceSlices of the driver, with the one that holds its name.",
            registry=registry,
        )
        self.devices = Gauge("vgpu_controller_devices", "Devices by state.", ["state"], registry=registry)
        self.writes = Counter(
            "vgpu_controller_slice_writes", "ResourceSlices written.", ["operation"], registry=registry
        )
        self.conflicts = Counter(
            "vgpu_controller_write_conflicts", "Writes that somebody else was faster with.", registry=registry
        )
        self.failures = Counter(
            "vgpu_controller_failures",
            "Attempts at a key that failed and are tried again.",
            ["queue"],
            registry=registry,
        )
        self.pending_claims = Gauge(
            "vgpu_controller_pending_claims",
            "Claims, and pods that ask for extended resources, that no device can serve now.",
            registry=registry,
        )
        self.events = Counter("vgpu_controller_events", "Events written.", ["reason"], registry=registry)
        self.mode = Gauge("vgpu_controller_offer_mode", "1 for the offer mode in use.", ["mode"], registry=registry)
        self.crd_outdated = Gauge(
            "vgpu_controller_crd_outdated",
            "1 while the CRD of NodeInventory is of an older release and drops what the controller writes.",
            registry=registry,
        )

    def retire(self) -> None:
        """Forget what is only true of a controller that leads: its successor says it from now on."""
        for gauge in (self.leader, self.slices, self.pending_claims, self.crd_outdated):
            gauge.set(0)
        self.devices.clear()
        self.mode.clear()
