"""The cluster's certificate authority and the leaves of its hosts. Keys of hosts are made on the hosts."""

from odctl.pki.authority import ClusterAuthority, LeafIdentity, open_authority

__all__ = ["ClusterAuthority", "LeafIdentity", "open_authority"]
