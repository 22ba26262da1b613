"""What a node's devices are offered as: the offer modes, policy and order, from facts to slices. Pure."""
