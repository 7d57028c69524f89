"""Words of messages: a count with its noun."""

from __future__ import annotations


def counted(count: int, noun: str, nouns: str = "") -> str:
    """A count and what is counted, in the singular or the plural.

    Args:
        count: How many.
        noun: The singular.
        nouns: The plural, if it is not the singular with an "s".

    >>> counted(1, "step"), counted(13204, "step"), counted(2, "matrix", "matrices")
    ('1 step', '13,204 steps', '2 matrices')
    """
    return f"{count:,} {noun if count == 1 else nouns or f'{noun}s'}"
