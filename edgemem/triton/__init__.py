"""Bundles for NVIDIA's Triton Inference Server: a model repository, and what its Python backend runs.

::

    ports.py        the tensors of a whole graph
    whole_graph.py  a graph that writes its own rings and carries its position
    config.py       config.pbtxt
    repository.py   the folder that the server reads
    served.py       edgemem's runtime behind Triton's requests (runs inside the server)

Nothing is imported here: the server's own Python needs no package for exporting.
"""
