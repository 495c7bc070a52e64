"""Performs instructions; owns the clock, the tasks and the engine processes of a host.

`paths` names every file below the prefix; `processes` spawns, adopts and watches children; `ranks` and `gateways`
speak to them; `members` keeps the fences of deployments; `store` is the rendezvous store; `weights` has shards
on disk; `instruct` maps an instruction to one of these. On a controller, `reach` gives instructions to members,
`topology` says which rank links to which, `apply` is the transaction (`progress` its events, `clean_up` what goes
before and after, `recovery` what an interrupted one needs, `destroy` the end of a deployment), `bring_up` gives a
generation its links, gateway and proof, `deployment` is what is kept of it, `faults` the book of troubles, and
`controller` watches members and asks `healing` what to do. `supervisor` wires them and is what the API talks to.
"""
