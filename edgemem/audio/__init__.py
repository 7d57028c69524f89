"""Audio for models that stream it: files, sample rates, and segments of what a detector finds."""
