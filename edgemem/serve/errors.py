"""Errors as clients see them: a name, one line, and what to do."""

from __future__ import annotations

import re
from typing import Any

from edgemem.errors import EdgememError, PoolFullError, QueueFullError


class RequestError(EdgememError):
    """What a client asked for cannot be done.

    Args:
        code: A name for programs.
        message: What was got and what was wanted.
        status: The HTTP status.
        hint: What to do.
    """

    def __init__(self, code: str, message: str, *, status: int = 400, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.code, self.status = code, status


def error_code(error: Exception) -> str:
    """The name of an error: ``input_error`` for an :class:`~edgemem.errors.InputError`."""
    if isinstance(error, RequestError):
        return error.code
    if isinstance(error, EdgememError):
        return re.sub(r"(?<!^)(?=[A-Z])", "_", type(error).__name__).lower()
    return "internal_error"


def error_status(error: Exception) -> int:
    """The HTTP status of an error."""
    if isinstance(error, RequestError):
        return error.status
    if isinstance(error, (PoolFullError, QueueFullError)):
        return 503
    return 400 if isinstance(error, EdgememError) else 500


def error_json(error: Exception) -> dict[str, Any]:
    """An error as plain JSON values, in the form that OpenAI's clients know."""
    known = isinstance(error, EdgememError)
    found = {
        "code": error_code(error),
        "message": error.message if isinstance(error, EdgememError) else "the server failed; its log says more.",
        "type": "invalid_request_error" if known and error_status(error) < 500 else "server_error",
        "param": None,
    }
    if isinstance(error, EdgememError) and error.hint:
        found["hint"] = error.hint
    return found
