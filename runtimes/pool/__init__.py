"""A pool: many streams of one session, which come and go and step together."""

from __future__ import annotations

from edgemem.runtimes.pool.pool import Pool
from edgemem.runtimes.pool.requests import Outcome
from edgemem.runtimes.pool.stats import PoolStats
from edgemem.runtimes.pool.stream import PoolFutures, PoolStream, parts_soon

__all__ = ["Outcome", "Pool", "PoolFutures", "PoolStats", "PoolStream", "parts_soon"]
