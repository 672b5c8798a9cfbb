"""The sandbox account over HTTP: routes, key, rate limit, idempotency, ordered faults, errors as Stripe words them.

What belongs here: what happens to a request before and after the account does its work. What does not: that work
(`stripe_changes`, `stripe_cycles`).
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from flexpay_pipelines.sandbox import stripe_changes as changes
from flexpay_pipelines.sandbox import stripe_cycles as cycles
from flexpay_pipelines.sandbox import stripe_objects as objects
from flexpay_pipelines.sandbox.stripe_account import Account, Refused, invalid, missing
from flexpay_pipelines.sandbox.stripe_control import REQUEST_FAULTS, control
from flexpay_pipelines.sandbox.stripe_objects import State
from flexpay_pipelines.sandbox.stripe_webhooks import Webhooks

KEEP_REPLIES_SECONDS = 24 * 3600
DEFAULT_RATE_LIMIT = 100.0
_OK, _UNAUTHORIZED, _TOO_MANY, _SERVER_ERROR = 200, 401, 429, 500
_COMPARISONS = {"gt": ">", "gte": ">=", "lt": "<", "lte": "<="}
_PAGES = {"limit", "starting_after", "ending_before"}

Handler = Callable[[Account, str, State], State]


@dataclass(frozen=True)
class Route:
    method: str
    pattern: re.Pattern[str]
    handler: Handler
    takes: frozenset[str]


def nested(pairs: list[tuple[str, str]]) -> State:
    """Stripe's form encoding as nested values: `items[0][price]=p` is `{"items": [{"price": "p"}]}`."""
    found: State = {}
    for name, value in pairs:
        path = re.findall(r"[^\[\]]+", name) or [name]
        if name.endswith("[]"):
            found.setdefault(path[0], {})[str(len(found.get(path[0], {})))] = value
            continue
        place = found
        for part in path[:-1]:
            inner = place.setdefault(part, {})
            if not isinstance(inner, dict):
                raise invalid(f"Invalid hash: {name}", path[0])
            place = inner
        place[path[-1]] = value
    return {name: _lists(value) for name, value in found.items()}


def _lists(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    if value and all(name.isdigit() for name in value):
        return [_lists(value[name]) for name in sorted(value, key=int)]
    return {name: _lists(inner) for name, inner in value.items()}


def _page(account: Account, kind: str, parameters: State, lookup: str | None = None) -> State:
    states, more = account.store.page(
        kind, limit=_limit(parameters), after=parameters.get("starting_after"), before=parameters.get("ending_before"),
        lookup=lookup, status=parameters.get("status"),
    )  # fmt: skip
    if kind == "subscription":
        states = account.show_subscriptions(states)
    elif kind == "invoice":
        states = [objects.invoice(state) for state in states]
    return objects.listing(states, f"/v1/{kind}s", has_more=more)


def _limit(parameters: State) -> int:
    limit = str(parameters.get("limit", 10))
    if not limit.isdigit() or not 1 <= int(limit) <= 100:  # noqa: PLR2004 - Stripe's largest page
        raise invalid("This value must be between 1 and 100 (inclusive).", "limit")
    return int(limit)


def _retrieve(kind: str) -> Handler:
    def handler(account: Account, identifier: str, _parameters: State) -> State:
        if (state := account.store.get(kind, identifier)) is None:
            raise missing(kind, identifier)
        return state

    return handler


def _prices(account: Account, _identifier: str, parameters: State) -> State:
    if "lookup_keys" in parameters:
        return objects.listing(account.store.by_lookup("price", parameters["lookup_keys"]), "/v1/prices")
    return _page(account, "price", parameters)


def _invoice(account: Account, identifier: str, parameters: State) -> State:
    state = _retrieve("invoice")(account, identifier, {})
    expanded = parameters.get("expand", [])
    if "payments.data.payment.payment_intent" in expanded:
        return objects.invoice(state, with_payments="object")
    return objects.invoice(state, with_payments="id" if "payments" in expanded else None)


def _events(account: Account, _identifier: str, parameters: State) -> State:
    created = parameters.get("created", {})
    bounds = [(_COMPARISONS[name], int(value)) for name, value in created.items()]
    types = [parameters["type"]] if "type" in parameters else list(parameters.get("types", []))
    found, more = account.store.events(
        limit=_limit(parameters), after=parameters.get("starting_after"), before=parameters.get("ending_before"),
        types=types, bounds=bounds,
    )  # fmt: skip
    return objects.listing(found, "/v1/events", has_more=more)


def _event(account: Account, identifier: str, _parameters: State) -> State:
    if (found := account.store.event(identifier)) is None:
        raise missing("event", identifier)
    return found


def _route(method: str, path: str, handler: Handler, *takes: str) -> Route:
    pattern = re.compile("^/v1/" + path.replace("{id}", "(?P<id>[^/]+)") + "$")
    return Route(method, pattern, handler, frozenset((*takes, "expand")))


ROUTES = (
    _route("GET", "customers", lambda a, _, p: _page(a, "customer", p), *_PAGES),
    _route("GET", "customers/{id}", _retrieve("customer")),
    _route("GET", "products", lambda a, _, p: _page(a, "product", p), *_PAGES),
    _route("GET", "products/{id}", _retrieve("product")),
    _route("GET", "prices", _prices, "lookup_keys", *_PAGES),
    _route("GET", "prices/{id}", _retrieve("price")),
    _route("GET", "subscriptions", lambda a, _, p: _page(a, "subscription", p), "status", *_PAGES),
    _route("GET", "subscriptions/{id}", lambda a, i, _: a.show_subscription(a.subscription(i))),
    _route(
        "POST", "subscriptions/{id}", changes.update,
        "pause_collection", "items", "proration_behavior", "proration_date", "billing_cycle_anchor", "trial_end",
        "metadata",
    ),
    _route("DELETE", "subscriptions/{id}", changes.cancel),
    _route("POST", "subscriptions/{id}/pause", changes.pause, "bill_for", "invoicing_behavior", "type"),
    _route(
        "POST", "subscriptions/{id}/resume", changes.resume,
        "billing_cycle_anchor", "payment_behavior", "proration_behavior",
    ),
    _route("GET", "invoices", lambda a, _, p: _page(a, "invoice", p, p.get("subscription")),
           "subscription", "status", *_PAGES),
    _route("GET", "invoices/{id}", _invoice),
    _route("POST", "invoices/{id}/pay", cycles.pay),
    _route("GET", "events", _events, "created", "types", "type", *_PAGES),
    _route("GET", "events/{id}", _event),
)  # fmt: skip


class Server:
    """The ASGI application. Everything is done on one thread, one request after the other."""

    def __init__(self, account: Account, api_key: str) -> None:
        self.account = account
        self.store = account.store
        self.api_key = api_key
        self.webhooks = Webhooks()
        self._sent = self.store.last_event()
        self._allowance, self._counted_at = DEFAULT_RATE_LIMIT, time.monotonic()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        request = Request(scope, receive)
        body = await request.body()
        answer, fault = self._answer(request, body)
        self._send_webhooks()
        if fault is not None and fault["kind"].startswith("reset"):
            # uvicorn keeps the connection behind the callable that it hands over.
            send.__self__.transport.abort()  # type: ignore[attr-defined]
            return
        if fault is not None and fault["kind"].startswith("timeout"):
            await asyncio.sleep(fault["seconds"])
        answer.headers["Request-Id"] = f"req_{secrets.token_hex(7)}"
        answer.headers["Stripe-Version"] = objects.API_VERSION
        await answer(scope, receive, send)

    def _answer(self, request: Request, body: bytes) -> tuple[Response, State | None]:
        if request.headers.get("authorization") != f"Bearer {self.api_key}":
            return _json(Refused("Invalid API Key provided.", status=_UNAUTHORIZED).body(), _UNAUTHORIZED), None
        path = request.url.path
        if path.startswith("/_sandbox/"):
            if path == "/_sandbox/webhooks":
                return _json(self.webhooks.counts()), None
            with self.store.transaction():
                return _json(control(self.account, path, json.loads(body or b"{}"))), None
        with self.store.transaction():
            self.store.count_request(f"{request.method} {re.sub('_[0-9a-f]{24}', '', path)}")
            fault = self.store.take_fault(f"{request.method} {path}", REQUEST_FAULTS)
            if self._too_fast() or (fault is not None and fault["kind"] == "429"):
                return self._slow_down(fault), None
            return self._once(request, path, body, fault), fault

    def _send_webhooks(self) -> None:
        """What a request has made happen is sent once it is committed."""
        endpoint = self.store.setting("webhook", "")
        last = self.store.last_event()
        if endpoint and last > self._sent:
            self.webhooks.offer([event for _, event in self.store.events_after(self._sent)], dict(endpoint))
        self._sent = last

    def _too_fast(self) -> bool:
        limit = float(self.store.setting("rate_limit", DEFAULT_RATE_LIMIT))
        now = time.monotonic()
        self._allowance = min(limit, self._allowance + (now - self._counted_at) * limit)
        self._counted_at = now
        if self._allowance < 1:
            return True
        self._allowance -= 1
        return False

    @staticmethod
    def _slow_down(fault: State | None) -> Response:
        refused = Refused("Request rate limit exceeded.", "rate_limit", status=_TOO_MANY)
        answer = _json(refused.body(), _TOO_MANY)
        if fault is not None and fault["seconds"]:
            answer.headers["Retry-After"] = str(int(fault["seconds"]))
        return answer

    def _once(self, request: Request, path: str, body: bytes, fault: State | None) -> Response:
        """Answer, or answer again what a known idempotency key was answered first."""
        key = request.headers.get("idempotency-key") if request.method != "GET" else None
        fingerprint = f"{request.method} {path} {sorted(parse_qsl(body.decode(), keep_blank_values=True))}"
        if key is not None:
            self.store.forget_replies(self.account.now - KEEP_REPLIES_SECONDS)
            if (known := self.store.reply(key)) is not None:
                return self._again(known, fingerprint)
        kind = "" if fault is None else fault["kind"]
        if kind == "reset_before":
            return _json({})
        self.account.request_key = key
        status, found = (_SERVER_ERROR, _server_error()) if kind == "500_before" else self._perform(request, path, body)
        if kind == "500_after" and status == _OK:
            status, found = _SERVER_ERROR, _server_error()
        if kind == "duplicate_events" and "data" in found:
            found["data"] = [entry for entry in found["data"] for _ in range(2)]
        if kind == "shuffled_events" and "data" in found:
            random.Random(self.account.now).shuffle(found["data"])  # noqa: S311 - an order, not a secret
        if key is not None and status in (_OK, 402, _SERVER_ERROR):
            self.store.keep_reply(key, fingerprint, status, json.dumps(found), self.account.now)
        return _json(found, status)

    @staticmethod
    def _again(known: tuple[str, int, str], fingerprint: str) -> Response:
        first, status, body = known
        if first != fingerprint:
            refused = Refused(
                "Keys for idempotent requests can only be used with the same parameters they were first used with.",
                kind="idempotency_error",
            )
            return _json(refused.body(), refused.status)
        answer = _json(json.loads(body), status)
        answer.headers["Idempotent-Replayed"] = "true"
        return answer

    def _perform(self, request: Request, path: str, body: bytes) -> tuple[int, State]:
        raw = request.url.query if request.method == "GET" else body.decode()
        try:
            for route in ROUTES:
                if route.method == request.method and (match := route.pattern.match(path)):
                    parameters = nested(parse_qsl(raw, keep_blank_values=True))
                    for unknown in sorted(set(parameters) - route.takes):
                        raise Refused(f"Received unknown parameter: {unknown}", "parameter_unknown", unknown)
                    return _OK, route.handler(self.account, match.groupdict().get("id", ""), parameters)
            raise Refused(f"Unrecognized request URL ({request.method}: {path}).", status=404)
        except Refused as refused:
            return refused.status, refused.body()


def _server_error() -> State:
    return Refused("An unknown error occurred", status=_SERVER_ERROR, kind="api_error").body()


def _json(found: State, status: int = _OK) -> Response:
    answer = Response(json.dumps(found), status, media_type="application/json")
    if status == _SERVER_ERROR:
        answer.headers["Stripe-Should-Retry"] = "false"
    return answer
