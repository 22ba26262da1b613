"""What the kubelet speaks to: sockets, registration, the DRA and health services."""
