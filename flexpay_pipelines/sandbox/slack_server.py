"""A stand-in for Slack's Web API on loopback: what alerts are delivered to where nobody has a Slack workspace.

What belongs here: chat.postMessage and auth.test as Slack answers them, and faults that can be ordered. What does not:
anything else of Slack.

What it does as Slack does: HTTP 200 with `ok` false for a refusal, the bearer token checked (`not_authed`,
`invalid_auth`), channels named `#name` or by an id (`channel_not_found`), the limits of text and blocks (`no_text`,
`msg_too_long`, `invalid_blocks`), JSON or form bodies, HTTP 429 with Retry-After. What it does not: it never limits
the rate unless ordered to, and keeps a message that comes twice twice.
Messages are lines of JSON in `messages.jsonl` below its folder, and outlive it.
"""

from __future__ import annotations

import hmac
import json
import os
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from flexpay_pipelines.errors import TransientError
from flexpay_pipelines.sandbox.sharing import running_http_server, serve

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

MODULE = "flexpay_pipelines.sandbox.slack_server"
TOKEN = "xoxb-flexpay-sandbox"  # noqa: S105 - opens the sandbox alone
MESSAGES = "messages.jsonl"
CONTROL_TIMEOUT_SECONDS = 10

# What the next requests meet, in the order in which it was ordered. server_error_after: the message is kept, and the
# answer is an error all the same.
Fault = Literal["rate_limited", "server_error", "server_error_after", "invalid_auth"]

_LONGEST_TEXT, _MOST_BLOCKS, _MOST_FIELDS = 40_000, 50, 10
_LONGEST_OF = {"header": 150, "section": 3000}
_LONGEST_FIELD = 2000


@dataclass(frozen=True, slots=True)
class SlackSandbox:
    """A running stand-in: the address and token that a client needs, and what it has been sent."""

    api_base: str
    token: str
    folder: Path

    def messages(self) -> list[dict[str, Any]]:
        """Every message kept so far, oldest first, as chat.postMessage was given it, with its `ts`."""
        try:
            text = (self.folder / MESSAGES).read_text()
        except FileNotFoundError:
            return []
        # A line without an end was being written when the server was killed: Slack's answer never came either.
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def order_fault(self, fault: Fault, *, times: int = 1, retry_after: int = 30) -> None:
        """Have the next `times` requests fail; `retry_after` seconds is what a 429 says."""
        self._control("order", {"fault": fault, "times": times, "retry_after": retry_after})

    def clear_faults(self) -> None:
        """Forget the faults that have not happened yet."""
        self._control("clear", {})

    def _control(self, what: str, body: dict[str, Any]) -> None:
        import httpx  # noqa: PLC0415 - only where faults are ordered

        try:
            address = f"{self.api_base.removesuffix('/api/')}/_sandbox/{what}"
            httpx.post(address, json=body, timeout=CONTROL_TIMEOUT_SECONDS, trust_env=False).raise_for_status()
        except httpx.HTTPError as error:
            raise TransientError(f"The Slack stand-in does not take the order ({error}): start it again.") from error


@contextmanager
def running_slack_server(folder: Path, *, port: int | None = None) -> Iterator[SlackSandbox]:
    """Have the stand-in running for as long as the block lasts; shared between processes by its folder.

    Raises:
        BadInput: `port` is taken.
    """
    with running_http_server(folder, MODULE, what="the Slack stand-in", port=port) as address:
        yield SlackSandbox(api_base=f"{address}/api/", token=TOKEN, folder=folder)


class _Slack:
    """The server's side: one process, whose requests are answered one after the other by its event loop."""

    def __init__(self, folder: Path) -> None:
        self._messages = os.open(folder / MESSAGES, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._faults: deque[dict[str, Any]] = deque()

    def application(self) -> Starlette:
        from starlette.applications import Starlette  # noqa: PLC0415 - the server's process alone needs it
        from starlette.routing import Route  # noqa: PLC0415

        return Starlette(
            routes=[
                Route("/api/{method}", self.call, methods=["POST", "GET"]),
                Route("/_sandbox/order", self.order, methods=["POST"]),
                Route("/_sandbox/clear", self.clear, methods=["POST"]),
            ]
        )

    async def order(self, request: Request) -> Response:
        from starlette.responses import JSONResponse  # noqa: PLC0415 - the server's process alone needs it

        ordered = await request.json()
        self._faults.extend([ordered] * int(ordered["times"]))
        return JSONResponse({"waiting": len(self._faults)})

    async def clear(self, _request: Request) -> Response:
        from starlette.responses import JSONResponse  # noqa: PLC0415 - the server's process alone needs it

        self._faults.clear()
        return JSONResponse({"waiting": 0})

    async def call(self, request: Request) -> Response:
        from starlette.responses import JSONResponse  # noqa: PLC0415 - the server's process alone needs it

        arguments = await _arguments(request)
        ordered = self._faults.popleft() if self._faults else {"fault": None}
        fault = ordered["fault"]
        if fault == "rate_limited":
            headers = {"Retry-After": str(ordered["retry_after"])}
            return JSONResponse({"ok": False, "error": "ratelimited"}, status_code=429, headers=headers)
        if fault == "server_error":
            return JSONResponse({"ok": False, "error": "internal_error"}, status_code=500)
        refused = "invalid_auth" if fault == "invalid_auth" else _refused_token(request)
        answer = {"ok": False, "error": refused} if refused else self._answer(request.path_params["method"], arguments)
        if fault == "server_error_after":
            return JSONResponse({"ok": False, "error": "internal_error"}, status_code=500)
        return JSONResponse(answer)

    def _answer(self, method: str, arguments: dict[str, Any]) -> dict[str, Any]:
        if method == "auth.test":
            names = {"team": "FlexPay sandbox", "user": "flexpay", "team_id": "T0SANDBOX", "user_id": "U0SANDBOX"}
            return {"ok": True, "url": "https://flexpay-sandbox.slack.com/", "bot_id": "B0SANDBOX", **names}
        if method != "chat.postMessage":
            return {"ok": False, "error": "unknown_method", "req_method": method}
        error = _refused_message(arguments)
        if error:
            return {"ok": False, "error": error}
        message = {**arguments, "ts": f"{time.time():.6f}"}
        os.write(self._messages, json.dumps(message).encode() + b"\n")
        return {"ok": True, "channel": arguments["channel"], "ts": message["ts"], "message": message}


async def _arguments(request: Request) -> dict[str, Any]:
    """The call's arguments, from JSON or a form (in which Slack takes blocks and metadata as JSON text)."""
    body = await request.body()
    if request.headers.get("content-type", "").startswith("application/json"):
        try:
            given = json.loads(body or b"{}")
        except ValueError:
            return {}
        return given if isinstance(given, dict) else {}
    from urllib.parse import parse_qsl  # noqa: PLC0415 - beside its only use

    arguments: dict[str, Any] = dict(parse_qsl(body.decode(errors="replace")))
    for name in ("blocks", "metadata"):
        if name in arguments:
            try:
                arguments[name] = json.loads(arguments[name])
            except ValueError:
                arguments[name] = None
    return arguments


def _refused_token(request: Request) -> str | None:
    given = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
    if not given:
        return "not_authed"
    return None if hmac.compare_digest(given.encode(), TOKEN.encode()) else "invalid_auth"


def _refused_message(arguments: dict[str, Any]) -> str | None:
    channel, text = str(arguments.get("channel") or ""), str(arguments.get("text") or "")
    if len(channel) < 2 or channel[0] not in "#CGD":  # noqa: PLR2004 - a sign and at least a letter
        return "channel_not_found"
    if not text and not arguments.get("blocks"):
        return "no_text"
    if len(text) > _LONGEST_TEXT:
        return "msg_too_long"
    blocks = arguments.get("blocks", [])
    fine = isinstance(blocks, list) and len(blocks) <= _MOST_BLOCKS and all(map(_block_fits, blocks))
    return None if fine else "invalid_blocks"


def _block_fits(block: Any) -> bool:
    if not isinstance(block, dict) or block.get("type") not in ("header", "section", "context", "divider"):
        return False
    fields = block.get("fields", [])
    text = block.get("text")
    has_text = isinstance(text, dict) and 0 < len(str(text.get("text", ""))) <= _LONGEST_OF.get(block["type"], 0)
    return (
        (text is None or has_text)
        and len(fields) <= _MOST_FIELDS
        and all(0 < len(field["text"]) <= _LONGEST_FIELD for field in fields)
        and (block["type"] not in _LONGEST_OF or has_text or bool(fields))
    )


if __name__ == "__main__":
    serve(_Slack(Path(sys.argv[1])).application(), sys.argv[1:])
