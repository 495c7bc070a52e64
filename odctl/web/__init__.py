"""The terminal UI in a browser: a guarded server on loopback; each tab is an `odctl` of its own."""
