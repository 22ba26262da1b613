"""What the devices of a node are, and how they are: found, watched, stated. NVIDIA is behind one small interface."""
