"""The cluster side of the driver: from what nodes state to what is offered, and why a claim cannot be met.

All policy lives here. Decisions are pure functions over plain data; effects are thin and stand at the edge. Where to
look:

- the process: `controller` wires it, `leading` holds the Lease, `terms` works while it is held on what `queueing` has,
  `versionwatching` notices upgrades of the API server, `metrics` counts;
- what is known: `watching` keeps one kind, `kinds` and `records` say which and what of it, `caching` holds all with its
  indexes (`counting`, `snapshots`, `waiting`, `followedclaims`, `rulewatching`);
- how GPUs are offered: `choosing` and `probing` find the mode (`consumable`, `counters`, `slots`; their interface is
  `offering`, their data `forms`), `policies`, `layouts` and `ordering` have the operator's wishes, `migrating` what
  older offers gave away; `composing` makes one offer of it, `remembering` saves it work;
- what is written: `deciding` says whether, `publishing` plans which slices, `comparing` reads them back, `keeping` does
  it; `telling` writes to NodeInventories, `classes` keeps the DeviceClasses, `crds` the CRD;
- why a claim waits: `reasoning` works it out by `fitting`, `selecting`, `tainting` and `taintrules`, `describing` puts
  it in words, `looking` bounds what that costs, `checking` finds wrong parameters; `pending` and `eventing` tell it as
  events, `explaining` on a terminal.
"""
