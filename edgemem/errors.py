"""Every error that edgemem raises on purpose, in one tree.

::

    EdgememError
    ├── ContractError             a contract is malformed, or a graph does not match it
    ├── BundleError               a bundle is missing, truncated, changed, or not an edgemem bundle
    ├── ConfigError               a model's configuration is malformed
    ├── ExportError               a model cannot be exported
    │   ├── ProtocolError         a torch module breaks the streaming protocol
    │   ├── UnboundedCacheError   a cache grows without limit, and no option bounds it
    │   └── VerificationError     the exported graph does not compute what the model computes
    ├── RuntimeUnavailableError   an engine is not installed, or does not work on this machine
    ├── EngineError               an engine cannot be built, or is for another machine or bundle
    ├── PluginError               an entry point of another package does not load, or has the wrong type
    ├── InputError                tokens or features of the wrong dtype, shape or range
    ├── PoolFullError             every slot of a pool holds a stream
    ├── QueueFullError            more calls wait for a stream of a pool than its queue holds
    ├── NonFiniteError            NaN or infinity in the inputs, the outputs or the state
    ├── SnapshotError             a snapshot is damaged, or belongs to another model or version
    └── MissingDependencyError    an optional package is not installed

The command line prints the message and exits with 1. It catches no other errors.
"""

from __future__ import annotations


class EdgememError(Exception):
    """Base class of every error that edgemem raises on purpose.

    Args:
        message: What was found and what was wanted.
        hint: How to fix it; printed on a separate line.
    """

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\n{self.hint}"


class ContractError(EdgememError):
    """A contract is malformed, or a graph does not match it."""


class BundleError(EdgememError):
    """A bundle is missing, truncated, changed, or not an edgemem bundle."""


class ConfigError(EdgememError):
    """A model's configuration is malformed."""


class ExportError(EdgememError):
    """A model cannot be exported."""


class ProtocolError(ExportError):
    """A torch module does not follow the streaming protocol."""


class UnboundedCacheError(ExportError):
    """A model has a cache that grows without limit, and no option bounds it."""


class VerificationError(ExportError):
    """An exported graph does not compute what its model computes."""


class RuntimeUnavailableError(EdgememError):
    """An engine is not installed, or does not work on this machine."""


class EngineError(EdgememError):
    """A compiled engine cannot be built, is damaged, or was built for another machine, version or bundle."""


class PluginError(EdgememError):
    """An entry point of another package cannot be loaded, or does not give what its group asks for."""


class InputError(EdgememError, ValueError):
    """Tokens or features have the wrong dtype, shape or range."""


class PoolFullError(EdgememError):
    """Every slot of a pool holds a stream."""


class QueueFullError(EdgememError):
    """A stream of a pool was given more calls than its queue holds."""


class NonFiniteError(EdgememError):
    """An input, or with the guard an output or a state, holds NaN or infinity."""


class SnapshotError(EdgememError):
    """A snapshot is damaged, or belongs to another model or version."""


class MissingDependencyError(EdgememError):
    """An optional package is not installed."""
