"""A server for the streams of bundles: WebSockets, OpenAI's API, metrics, and states that survive a restart."""

from __future__ import annotations

from edgemem.serve.app import build_app
from edgemem.serve.host import Host
from edgemem.serve.options import ServeOptions
from edgemem.serve.server import serve

__all__ = ["Host", "ServeOptions", "build_app", "serve"]
