"""Measure a bundle on this machine: latency, memory, constancy, and what else the machine could have done.

========================  ==========================================================================
:mod:`.measure`           the loops: one timed step, interleaved contenders, paced steps, prefill
:mod:`.statistics`        percentiles that the sample can carry, slopes and ratios with intervals
:mod:`.baselines`         what the model is compared with, and why one of them was left out
:mod:`.comparison`        ratios, paired by round
:mod:`.floor`             the least time in which this machine reads the weights once
:mod:`.environment`       the machine, the versions, the process's memory
:mod:`.operators`         where a step's time goes, operator by operator
:mod:`.devices`           power, clocks, temperatures, time on the GPU: what the device itself tells
:mod:`.result`            the measurement as dataclasses; units are in the names
:mod:`.suite`             the whole benchmark, in order
:mod:`.tables`            the result in words, for the terminal and the page
:mod:`.plots`             the result in pictures
:mod:`.report`            one self-contained HTML page
========================  ==========================================================================
"""
