"""A node's key: what signs an agent's requests to the coordinator."""

from __future__ import annotations

from fedrec.flower import _agent_compat


def new_node_key() -> tuple[bytes, bytes]:
    """Private and public key, PEM; NIST P-384, as Flower's link wants it."""
    private = _agent_compat.new_key()
    return private, _agent_compat.public_of(private)
