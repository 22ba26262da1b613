"""What brings the driver onto a cluster: the chart, examples, and a real Kubernetes on one machine."""
