"""Links between ranks: one seam (`carrier.Carrier`), a carrier per kind, and what a step needs on top of it.

`pipeline` moves hidden states along one directed link, `group` reduces and gathers inside a tensor-parallel
group, `build` makes all links of a rank under one generation and takes them down together.
"""
