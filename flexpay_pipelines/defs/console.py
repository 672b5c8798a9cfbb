"""What a run prints while it works: its own sentences and its errors, without Dagster's bookkeeping.

What belongs here: the console logger. What does not: what is said.
"""

import logging
import sys

import dagster as dg


class _OwnWords(logging.Filter):
    """Lets through what a step says; an engine event of Dagster only when it is an error."""

    def filter(self, record: logging.LogRecord) -> bool:
        meta = getattr(record, "dagster_meta", {})
        is_event = bool(meta.get("dagster_event")) if isinstance(meta, dict) else False
        return not is_event


class _Sentence(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        meta = getattr(record, "dagster_meta", None)
        said = meta.get("orig_message") if isinstance(meta, dict) else None
        return f"    {said or record.getMessage()}"


@dg.logger({}, description="A run's own sentences on standard error.")
def plain_console(init_context: dg.InitLoggerContext) -> logging.Logger:
    """The logger of every job."""
    logger = logging.Logger(f"flexpay.{init_context.run_id}", level=logging.INFO)
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(_OwnWords())
    handler.setFormatter(_Sentence())
    logger.addHandler(handler)
    return logger
