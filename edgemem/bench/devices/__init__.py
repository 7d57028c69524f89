"""What the device reports: power, clocks, temperatures, power mode, GPU time. All of it works without sensors, too.

========================  ==========================================================================
:mod:`.reader`            the protocol of a source of readings, and of a power sensor
:mod:`.tree`              files under ``/sys`` and ``/proc``, any of which may be missing
:mod:`.ina`               INA3221, INA238 and similar chips through hwmon: the rails of a Jetson
:mod:`.sysfs`             clocks, temperatures, throttling, nvpmodel: any Linux, with more on a Jetson
:mod:`.rapl`              the energy counters of x86 processors
:mod:`.nvml`              desktop and server GPUs of NVIDIA
:mod:`.found`             all sources of this machine as one
:mod:`.energy`            a thread that samples, and joules with their error
:mod:`.meter`             joules since a start, for as long as a process runs
:mod:`.events`            GPU time, copies and host time of a step, by CUDA events
:mod:`.bandwidth`         how fast a GPU copies: the floor of a step on it
:mod:`.memory`            memory of this process, if host and GPU share theirs
========================  ==========================================================================
"""
