"""Streams on a server, driven as if they were here; a lost connection is made again, and nothing is lost.

::

    stream.py        the stream: what must be sent again, and when
    link.py          what a way to a server must do
    serve_link.py    to `edgemem serve`, over a WebSocket
    triton_link.py   to the Python model of `edgemem build --target triton`, over gRPC
"""

from __future__ import annotations

from edgemem.client.stream import RemoteStream, connect

__all__ = ["RemoteStream", "connect"]
