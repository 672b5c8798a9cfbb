"""FlexPay Pipelines: the Dagster code location that makes flexible payments safe to run."""
