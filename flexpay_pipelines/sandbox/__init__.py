"""The sandbox: what a machine without PostgreSQL or a Stripe account runs on.

What belongs here: embedded PostgreSQL, the Stripe server, the demo company. What does not: anything production uses.
"""

from flexpay_pipelines.sandbox.postgres import THROWAWAY, Cluster, embedded_bin, in_use, scratch_cluster
from flexpay_pipelines.sandbox.sharing import in_use_elsewhere

__all__ = ["THROWAWAY", "Cluster", "embedded_bin", "in_use", "in_use_elsewhere", "scratch_cluster"]
