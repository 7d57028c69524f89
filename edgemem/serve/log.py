"""The server's log: one JSON object a line, on stderr."""

from __future__ import annotations

import json
import sys
import time
from typing import Any


def log(event: str, **fields: Any) -> None:
    """Write one line: the time in seconds since 1970, the event's name, and what belongs to it."""
    line = {"time": round(time.time(), 3), "event": event, **fields}
    print(json.dumps(line, ensure_ascii=True, default=str), file=sys.stderr, flush=True)
