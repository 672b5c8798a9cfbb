"""The `flexpay` command: gathers the groups, and turns errors into one sentence and an exit code.

What belongs here: the entry point. What does not: any command's work.
"""

from __future__ import annotations

import signal
import sys
import warnings
from types import FrameType
from typing import NoReturn

import typer

from flexpay_pipelines.cli import (
    analytics,
    backups,
    billing,
    deploy,
    dev,
    operations,
    rewards,
    rollback,
    stripe,
    subscriptions,
)
from flexpay_pipelines.cli.output import say
from flexpay_pipelines.errors import EXIT_FAILED, FlexPayError

INTERRUPTED = 130
TERMINATED = 143

app = typer.Typer(
    name="flexpay",
    help="Deploy, run, watch and take back flexible payments. Every change is a Dagster run that the UI shows.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
for group in (dev, deploy, billing, subscriptions, rewards, analytics, backups, rollback, operations, stripe):
    group.register(app)


def _terminated(_signal: int, _frame: FrameType | None) -> NoReturn:
    # An exception, so that every started server is stopped on the way out.
    raise SystemExit(TERMINATED)


def main() -> None:
    """Run the command. Exit codes: 0 done, 1 failed, 2 wrong usage or bad input, 130 interrupted."""
    signal.signal(signal.SIGTERM, _terminated)
    # A shell that starts us in the background hands on an ignored SIGINT: whoever sends one means it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Dagster warns at each use of a beta parameter; a person at a terminal can do nothing about it.
    warnings.filterwarnings("ignore", message=".* is currently in (beta|preview)")
    try:
        app()
    except FlexPayError as error:
        say(f"flexpay: {error}")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        say("flexpay: interrupted; the next run goes on from here.")
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        sys.exit(EXIT_FAILED)
