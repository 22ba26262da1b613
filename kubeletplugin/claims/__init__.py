"""From a claim to what its containers get, and back: read, plan, prepare, follow, undo, collect."""
