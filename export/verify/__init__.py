"""Whether a bundle computes what its model computes."""
