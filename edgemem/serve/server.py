"""Running the server until a signal ends it."""

from __future__ import annotations

import socket

import uvicorn

from edgemem.errors import EdgememError
from edgemem.serve.app import build_app
from edgemem.serve.host import Host
from edgemem.serve.log import log

_DRAIN_S = 10


def serve(host: Host) -> None:
    """Serve until SIGTERM or SIGINT: open requests end, streams are saved.

    Args:
        host: What is served.

    Raises:
        EdgememError: The address cannot be used.
    """
    options = host.options
    try:
        listener = socket.create_server((options.host, options.port), backlog=1024)
    except (OSError, TypeError, UnicodeError) as error:  # the last two: of a name that is none
        address = f"{ascii(options.host)[1:-1]}:{options.port}"
        raise EdgememError(
            f"cannot listen on {address}: {getattr(error, 'strerror', None) or error}",
            hint="Choose another --port or --host.",
        ) from error
    config = uvicorn.Config(
        build_app(host),
        log_config=None,
        access_log=False,
        server_header=False,
        ws_max_size=options.message_bytes,
        ws_per_message_deflate=False,
        timeout_graceful_shutdown=_DRAIN_S,
        timeout_keep_alive=30,
        limit_concurrency=20_000,
    )
    log("listening", host=options.host, port=listener.getsockname()[1])
    with listener:
        uvicorn.Server(config).run(sockets=[listener])
