"""A memory and a runtime for edgemem."""
