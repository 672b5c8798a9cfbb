"""Schema migrations: plain SQL triples (deploy, revert, verify) per component, run by Alembic, each step provable.

What belongs here: finding, planning, running, checking and undoing migrations; what a schema looks like and how it
has drifted. What does not: the SQL itself (`sql/migrations/`), the data that a rollback sets aside (`rollback`), the
audit log (whoever calls passes `record`).
"""

from __future__ import annotations

from flexpay_pipelines.migrations.components import COMPONENTS, SCHEMAS, Component
from flexpay_pipelines.migrations.engine import deploy, revert
from flexpay_pipelines.migrations.files import Migration, history
from flexpay_pipelines.migrations.planning import ComponentStatus, Step, deployed, plan_deploy, plan_revert, status
from flexpay_pipelines.migrations.schema import schema_drift, schema_fingerprint
from flexpay_pipelines.migrations.verification import verify

__all__ = [
    "COMPONENTS",
    "SCHEMAS",
    "Component",
    "ComponentStatus",
    "Migration",
    "Step",
    "deploy",
    "deployed",
    "history",
    "plan_deploy",
    "plan_revert",
    "revert",
    "schema_drift",
    "schema_fingerprint",
    "status",
    "verify",
]
