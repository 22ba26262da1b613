"""What is known of the cluster: a watch for each kind, what is kept of each object, the indexes over it."""
