"""A real Kubernetes on one machine, for the demo and the tests.

`python -m deploy.local up` builds the components from pinned Go modules (once, into a cache), starts etcd,
kube-apiserver, kube-controller-manager and kube-scheduler as plain processes, and each node (containerd and kubelet)
in Linux namespaces of its own, so that `down` leaves nothing behind. README.md beside this file tells more.

From Python: `deploy.local.cluster.Cluster`.
"""
