"""The kubelet's gRPC APIs: our own .proto files, and what generate.py makes of them (committed, never edited)."""
