"""The demo: two tenants share one simulated GPU on a real Kubernetes, one pod waits with its reason.

`containers` brings it up on a real node, `processes` where containers cannot run; `looking` says what became of it. The
end-to-end tests use all but the command.
"""
