"""The only room that imports torch: `python -m agent.engine CONFIG.json` is one rank, bound to one device.

Two threads. The main one (`process`) is asyncio and never calls torch: it answers the supervisor (`control`) and
speaks to gateways (`step_channel`) whatever the engine does. The engine thread loads weights, builds links and
executes steps in order (`executor`). They share an `inbox` (orders in) and a `status_board` (figures out).

A step: `step_channel` -> `inbox` -> `executor` -> `batch` (what is where) -> `links.pipeline` (hidden states of
the stage before) -> `decoder` (layers, `attention` against the `kv_cache`, `links.group` for tensor parallelism)
-> `links.pipeline` (to the next stage), or `sampling` and back out on the step channel.

| code | trouble |
|---|---|
| E704 | a tensor is missing, cut off, or of a dtype or shape that was not planned |
| E801 | a gateway of another deployment or generation, or the rank is not linked |
| E802 | a link broke, could not be built, or its two ends hold different steps |
| E803 | logits are not finite |
| E804 | memory ran out |
| E805 | the device is not there |
| E806 | a step breaks the contract: slot, position or context out of range |
| E807 | a kernel failed |
| E808 | the step channel cannot listen: address or certificates |
"""
