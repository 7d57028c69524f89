"""The decorator ``override`` of Python 3.12, for older ones: a type checker sees that a base class has the method.

The base class documents the method, so an override needs no docstring.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import override as override
else:

    def override(method):
        """Return the method unchanged."""
        return method
