"""A module may keep nothing between calls but its declared states, even where no number shows it yet."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from fnmatch import fnmatchcase

from torch import nn

from edgemem.errors import VerificationError
from edgemem.origins import changed, kept
from edgemem.protocol import kept_in, module_inside


@contextlib.contextmanager
def refuse_hidden(module: nn.Module) -> Iterator[None]:
    """Refuse a module that keeps something else after the calls made in the context than before.

    What the module names in an attribute ``ignored`` may change: patterns of paths, such as ``"encoder.calls"``.

    Raises:
        VerificationError: A buffer or an attribute changed; the message names it.
    """
    own = module_inside(module)
    before = kept(own)
    yield
    ignored = tuple(getattr(module, "ignored", ()))
    found = [path for path in changed(before, kept(own)) if not any(fnmatchcase(path, pattern) for pattern in ignored)]
    if found:
        raise VerificationError(
            f"the model keeps something that is not a declared state{kept_in(own, found)}.",
            hint=f"Make it a state that forward() takes and returns. If no output ever depends on it, ignore it: "
            f'Streaming(..., ignore=["{found[0]}"]), or an attribute ignored = ["{found[0]}"] of the module.',
        )
