"""What the device itself tells: power, clocks, temperatures, power mode, time on the GPU. Nothing here needs a sensor.

========================  ==========================================================================
:mod:`.reader`            the protocol of a source of readings, and of a power sensor
:mod:`.tree`              files under ``/sys`` and ``/proc``, none of which need be there
:mod:`.ina`               INA3221, INA238 and their like through hwmon: the rails of a Jetson
:mod:`.sysfs`             clocks, temperatures, throttling, nvpmodel: any Linux, more of it on a Jetson
:mod:`.rapl`              the energy counters of x86 processors
:mod:`.nvml`              desktop and server GPUs of NVIDIA
:mod:`.found`             all sources of this machine as one
:mod:`.energy`            a thread that samples, and joules with the error they have
:mod:`.events`            a step's time on the GPU, in copies, and on the host, by CUDA events
:mod:`.bandwidth`         how fast a GPU copies: the floor of a step there
:mod:`.memory`            memory of this process, where host and GPU share theirs
========================  ==========================================================================
"""
