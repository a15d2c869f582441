"""The page to try the backend with, built from `web/` into `assets/web/`. Everything comes from this server."""

from __future__ import annotations

import gzip
import hashlib
import mimetypes
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from fastapi import FastAPI, Request
from fastapi.responses import Response

FOLDER = Path(__file__).resolve().parent.parent / "assets" / "web"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
}


class _File(NamedTuple):
    data: bytes
    zipped: bytes
    kind: str
    tag: str


@lru_cache
def files() -> dict[str, _File]:
    """The page's files by the path that they are served under."""
    found = {}
    for path in sorted(FOLDER.iterdir()):
        data = path.read_bytes()
        kind = TYPES.get(path.suffix) or mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        file = _File(data, gzip.compress(data, mtime=0), kind, f'"{hashlib.sha256(data).hexdigest()[:32]}"')
        found["/" if path.name == "index.html" else f"/{path.name}"] = file
    return found


def add_page(app: FastAPI) -> None:
    """Serve the page at `/` and what it needs beside it."""

    def answer(request: Request) -> Response:
        file = files()[request.scope["path"].removeprefix(request.scope.get("root_path", "")) or "/"]
        headers = {
            "ETag": file.tag,
            "Cache-Control": "no-cache",
            "Content-Security-Policy": POLICY,
            "Vary": "Accept-Encoding",
        }
        if request.headers.get("if-none-match") == file.tag:
            return Response(status_code=304, headers=headers)
        if "gzip" in request.headers.get("accept-encoding", ""):
            return Response(file.zipped, media_type=file.kind, headers={**headers, "Content-Encoding": "gzip"})
        return Response(file.data, media_type=file.kind, headers=headers)

    for path in files():
        app.add_api_route(path, answer, methods=["GET"], include_in_schema=False)
