"""The node agent: finds the devices of a node, states them, and gives claims their shares when the kubelet asks.

It decides nothing about who gets what: the scheduler allocates, the controller offers. Called by `dra-driver
node-agent`, which builds `kubeletplugin.agent.NodeAgent` from its settings. Where to look:

- `hardware`: what the devices are and how they are; NVIDIA is one backend of `discovery`;
- `state`: what lies on the node for prepared claims: records (`ledgers`), share folders, CDI specs, the library;
- `claims`: from a claim to what its containers get, and back: `planning` decides, `preparing` does it;
- `monitoring`: shares while they run: `bookreading`, `supervising`, `steering`, `metrics`;
- `kubelet`: sockets, registration, and the services that the kubelet calls;
- `agent` puts them together, `enduring` keeps its threads going, `files` is what all of them write with.

Each may import those before it, but `claims` and `monitoring` do without each other.
"""
