"""Readings of this host, once a second: `gpu` (NVML, in a subprocess), `cpu`, `host`, kept by `history`."""
