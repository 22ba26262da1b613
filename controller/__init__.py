"""The cluster side of the driver: from what nodes state to what is offered, and why a claim cannot be met.

All policy lives here. Decisions are pure functions over plain data; effects are thin and stand at the edge. Where to
look:

- the process: `controller` wires it, `leading` holds the Lease, `drivernames` the driver's name, `terms` works while
  both are held on what `queueing` has, `versionwatching` notices upgrades of the API server, `metrics` counts;
- `offers`, how GPUs are offered: the modes (`consumable`, `counters`, `slots`; their interface is `offering`, their
  data `forms`), `probing` finds out which the API server carries, `policies`, `layouts` and `ordering` have what
  operators wish, `migrating` what older offers gave away; `composing` makes one offer of it, `publishing` its slices;
- `reasons`, why a claim waits: `reasoning` works it out by `placing`, `fitting`, `capacities`, `selecting`, `tainting`
  and `taintrules`, for pods without a claim by `extendedresources`, `describing` puts it in words, `checking` finds
  wrong parameters;
- `cluster`, what is known: `watching` keeps one kind, `kinds` and `records` say which and what of it, `indexing` what
  follows from a change (`waiting`, `followedclaims`), `caching` holds all, `rulewatching` what few clusters serve;
- what is written: `choosing` the mode, `keeping` the slices (as often as `restoring` lets it), `telling` inventories
  (`damping`), both with a `backoff`, `classes` the DeviceClasses, `crds` the CRD; `pending` and `eventing` tell why
  claims wait, as far as `explanationbudgets` and `eventbudgets` let them, `explaining` on a terminal.
"""
