"""Performs instructions; owns the clock, the tasks and the engine processes of a host.

`paths` names every file below the prefix; `processes` spawns, adopts and watches children; `ranks` and `gateways`
speak to them; `members` keeps the fences of deployments; `store` is the rendezvous store; `weights` has shards
on disk; `instruct` maps an instruction to one of these. On a controller, `apply` is the transaction, `rebuild`
gives a deployment a new generation after a fault, and `controller` watches members and asks `healing` what to do.
`supervisor` wires them and is what the API talks to.
"""
