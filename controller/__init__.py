"""The cluster side of the driver: from what nodes state to what is offered, and why a claim cannot be met.

All policy lives here. Decisions (`offering`, `consumable`, `publishing`, `reasoning`, `checking`) are pure functions
over plain data; the effects (`leading`, `watching`, `keeping`, `eventing`) are thin and stand at the edge.
`controller.Controller` wires them.
"""
