"""A throw-away cluster on this machine: hosts with homes of their own, reached locally or through real sshds."""

from odctl.lab.lab import Lab, LabStatus

__all__ = ["Lab", "LabStatus"]
