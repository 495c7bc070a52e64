"""All that a host runs. The operator ships this package over SSH; it imports nothing of `odctl`."""

__version__ = "0.1.0"
