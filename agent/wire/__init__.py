"""Messages between operator, agents, ranks and gateways, one file a receiver. Values and framing, no logic.

`framing` carries them over byte streams; HTTP bodies are the same msgpack.
"""
