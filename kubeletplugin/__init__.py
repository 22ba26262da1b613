"""The node agent: finds the devices of a node, states them, and gives claims their shares when the kubelet asks.

It decides nothing about who gets what: the scheduler allocates, the controller offers. Called by `dra-driver
node-agent`, which builds `kubeletplugin.agent.NodeAgent` from its settings.
"""
