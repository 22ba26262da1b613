"""What users and the components of the driver say to each other.

Everything that crosses a process border stands here once: names, quantities, parameters, the NodeInventory object,
views of ResourceClaims and ResourceSlices that hide API versions, and the thin edge to the Kubernetes API. Imports
nothing of ours.
"""
