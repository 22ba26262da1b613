"""The demo: two tenants share one simulated GPU on a real Kubernetes, one pod waits with its reason.

`scenario` brings it up, `checks` looks at what became of it, `report` shows it to a person. The end-to-end tests use
the first two.
"""
