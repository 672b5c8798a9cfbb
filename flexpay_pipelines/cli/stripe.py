"""`flexpay stripe`: what waits for Stripe and what it refused. `flexpay webhook`: Stripe's events as they happen.

What belongs here: the commands over the exchange with Stripe. What does not: its rules (`payments`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flexpay_pipelines.cli.output import AsJson, PlanOnly, Yes, plain, planned, say, show
from flexpay_pipelines.cli.runs import recorder, require, run_job
from flexpay_pipelines.cli.sockets import LOOPBACK, listening
from flexpay_pipelines.errors import BadInput, disk_errors
from flexpay_pipelines.payments.webhook import PATH
from flexpay_pipelines.session import session

STOP_SECONDS = 10
MOST_AT_ONCE = 200
WEBHOOK_EXAMPLES = """
Examples:

- `FLEXPAY_STRIPE_WEBHOOK_SECRET=whsec_… flexpay webhook` : behind a proxy on the same machine

- `flexpay webhook --socket /run/flexpay/webhook.sock`

- `stripe listen --forward-to localhost:8722/stripe/webhook` sends it the events of a test account
"""
PARKED = ("command_id", "subscription_ref", "operation", "reason")

stripe = typer.Typer(help="What waits to be told to Stripe, and what it refused.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(stripe, name="stripe")
    app.command("webhook", epilog=WEBHOOK_EXAMPLES)(webhook)


@stripe.command("parked", epilog="Example: `flexpay stripe parked --json`")
def parked(as_json: AsJson = False) -> None:
    """Commands that Stripe refused for good, with the reason of each."""
    from flexpay_pipelines.payments import parked_commands

    with session("list parked commands") as opened:
        rows = [plain(one) for one in parked_commands(opened.billing)]
    show(rows, as_json=as_json, title="Parked", columns=PARKED)


@stripe.command("retry", epilog="Examples: `flexpay stripe retry 17 18`, `flexpay stripe retry --all --yes`")
def retry(
    commands: Annotated[list[int] | None, typer.Argument(help="Ids of parked commands.", show_default=False)] = None,
    every: Annotated[bool, typer.Option("--all", help="Every parked command.")] = False,
    plan: PlanOnly = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Put parked commands back into the outbox, once the reason is mended; the next delivery sends them."""
    from flexpay_pipelines.payments import parked_commands

    if bool(commands) == every:
        raise BadInput("Name the commands to retry, or --all: `flexpay stripe parked` lists them.")
    with recorder() as on:
        with session("plan retry") as opened:
            rows = [plain(one) for one in parked_commands(opened.billing)]
        unknown = set(commands or ()) - {row["command_id"] for row in rows}
        if unknown:
            names = ", ".join(str(one) for one in sorted(unknown))
            raise BadInput(f"Not parked: command {names}. `flexpay stripe parked` lists those that are.")
        chosen = [row for row in rows if every or row["command_id"] in (commands or ())]
        if planned(chosen, plan_only=plan, yes=yes, as_json=as_json, question="Try these again?"):
            config = {} if every else {"command_ids": commands}
            outcome = require(run_job("retry_stripe_commands", on=on, ops={"retry_commands": config}))
            say("The next exchange sends them; `flexpay stripe deliver` does it now.")
            show({"run_id": outcome.run_id, **outcome.outputs["retry_commands"]}, as_json=as_json, title="Retried")


@stripe.command("deliver", epilog="Example: `flexpay stripe deliver --yes`")
def deliver(plan: PlanOnly = False, yes: Yes = False, as_json: AsJson = False) -> None:
    """Tell Stripe what waits in the outbox."""
    from flexpay_pipelines.payments import pending_commands

    with recorder() as on:
        with session("plan delivery") as opened:
            waiting = pending_commands(opened.billing)
        if planned({"waiting": waiting}, plan_only=plan, yes=yes, as_json=as_json, question="Tell Stripe now?"):
            outcome = require(run_job("deliver_stripe_commands", on=on))
            result = outcome.outputs["billing/stripe_delivery"]
            show({"run_id": outcome.run_id, **result}, as_json=as_json, title="Delivered")


def webhook(
    host: Annotated[str, typer.Option(help="Address to listen on; others than loopback need TLS in front.")] = LOOPBACK,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8722,
    socket: Annotated[Path | None, typer.Option(help="Listen on this Unix socket instead.", show_default=False)] = None,
) -> None:
    """Take Stripe's events in as they happen, until Ctrl-C or SIGTERM; the exchange every five minutes goes on."""
    import uvicorn

    from flexpay_pipelines.defs.payments import webhook_of

    with session("webhook") as opened:
        application = webhook_of(opened)
        with disk_errors("opening the webhook's socket"), listening(host, port, socket) as (listener, where):
            configuration = uvicorn.Config(
                application, log_level="warning", access_log=False, lifespan="on", server_header=False,
                timeout_graceful_shutdown=STOP_SECONDS, limit_concurrency=MOST_AT_ONCE,
            )  # fmt: skip
            server = uvicorn.Server(configuration)
            say(f"Stripe's webhooks are taken in at {where}{PATH}. Ctrl-C stops it.")
            try:
                server.run(sockets=[listener])
            except (KeyboardInterrupt, SystemExit):
                # The server has stopped already, and hands the signal on: that was what was asked for.
                if not server.should_exit:
                    raise
    say("The webhook has stopped; the exchange every five minutes still brings every event.")
