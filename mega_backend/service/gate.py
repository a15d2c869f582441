"""Who may come in: the right token, and no web page of another site in somebody's browser.

A page can make a browser send requests to loopback; it cannot hide its Origin, and a rebound name shows in Host. The
token is a bearer token; a browser that opens the page asks for it as a password (any user name).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import ipaddress

from fastapi.responses import JSONResponse
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mega_backend import protocol

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "X-Frame-Options": "DENY",
}
API_POLICY = "default-src 'none'; frame-ancestors 'none'"
CHALLENGE = 'Basic realm="MEGA: the token is the password", charset="UTF-8"'
# What scripts send without being asked (curl, forms) is no message; refusing it also keeps simple cross-site posts out.
REFUSED_TYPES = (b"application/x-www-form-urlencoded", b"multipart/form-data", b"text/plain")


class Gate:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, token: str = "", loopback: bool = True) -> None:
        self.app, self.loopback = app, loopback
        self._expected = _digest(token.encode()) if token else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                headers.setdefault("Content-Security-Policy", API_POLICY)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        refusal = self._refusal(scope)
        if refusal is None:
            await self.app(scope, receive, guarded)
            return
        status, text, extra = refusal
        await JSONResponse({"detail": text}, status, extra)(scope, receive, guarded)

    def _refusal(self, scope: Scope) -> tuple[int, str, dict[str, str]] | None:
        headers = dict(scope["headers"])
        host, origin = headers.get(b"host", b""), headers.get(b"origin")
        if self.loopback and not is_loopback(host_name(host.decode("latin-1"))):
            return 403, "This backend answers on loopback only; use http://127.0.0.1 and its port.", {}
        if origin is not None and origin.split(b"//", 1)[-1] != host:
            return 403, "Requests from web pages of other sites are refused.", {}
        # A link to the page may be followed; nothing else of another site may ask for anything.
        followed = scope["method"] == "GET" and headers.get(b"sec-fetch-dest") == b"document"
        if headers.get(b"sec-fetch-site") in (b"cross-site", b"same-site") and not followed:
            return 403, "Requests from web pages of other sites are refused.", {}
        if self._expected is not None and not self._knows(headers.get(b"authorization", b"")):
            text = "The token is missing or wrong; copy the one that the backend was started with."
            # Only a browser's navigation is asked for a password; programs are told what they should send.
            page = b"text/html" in headers.get(b"accept", b"")
            return 401, text, {"WWW-Authenticate": CHALLENGE if page else "Bearer"}
        kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        if scope["method"] == "POST" and kind in REFUSED_TYPES:
            return 415, f"Send a message as {protocol.CONTENT_TYPE}, not {kind.decode('latin-1')}.", {}
        return None

    def _knows(self, authorization: bytes) -> bool:
        """Whether the token is right, in a time that does not depend on how much of it is."""
        scheme, _, value = authorization.partition(b" ")
        if scheme.lower() == b"basic":
            try:
                value = base64.b64decode(value, validate=True).partition(b":")[2]
            except binascii.Error:
                value = b""
        elif scheme.lower() != b"bearer":
            value = b""
        return hmac.compare_digest(_digest(value.strip()), self._expected)


def _digest(value: bytes) -> bytes:
    return hashlib.sha256(value).digest()


def host_name(host: str) -> str:
    """The name in a Host header, without port and brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def is_loopback(host: str) -> bool:
    """Whether a name or address means this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
