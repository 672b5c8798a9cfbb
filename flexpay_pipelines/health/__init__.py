"""Health: may we begin (the environment), and are we well (after a deploy, and at any time)?

What belongs here: looking, and saying what is wrong and what to do. What does not: mending anything, rates that decide
about a rollback (`monitoring`), and telling somebody (`alerts`).
"""

from flexpay_pipelines.health.cleanup import CleanUp, clean_up
from flexpay_pipelines.health.database import HealthLimits, check_health
from flexpay_pipelines.health.environment import check_environment
from flexpay_pipelines.health.findings import Finding, failing

__all__ = ["CleanUp", "Finding", "HealthLimits", "check_environment", "check_health", "clean_up", "failing"]
