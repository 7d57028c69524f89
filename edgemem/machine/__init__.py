"""What edgemem knows about the machine it runs on, without torch and without an engine.

:mod:`.facts`        the board, the processor, the system, the versions
:mod:`.kernel`       files in which the kernel describes the machine
:mod:`.memory`       memory of the machine and of this process
:mod:`.cuda`         whether CUDA works, and what the first device is
:mod:`.mappings`     what is mapped where in this process
:mod:`.huge_pages`   huge pages for the weights of an engine
:mod:`.paging`       memory that a mapped file can give again
:mod:`.systemd`      telling systemd that this process is ready, alive or stopping
"""
