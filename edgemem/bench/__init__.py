"""Measures a bundle on this machine: latency, memory, energy, and how it compares with alternatives.

========================  ==========================================================================
:mod:`.subject`           what is measured: the open bundle, the options, the plan
:mod:`.sections`          the sections of the result, one file each
:mod:`.result`            what a section is, and the result that is made of them
:mod:`.suite`             the whole benchmark: every section in its stage
:mod:`.loop`              the loop that is measured, and its inputs
:mod:`.measure`           times steps, and interleaves contenders
:mod:`.statistics`        percentiles, slopes and ratios with intervals
:mod:`.positions`         latency against the position of the stream
:mod:`.rounds`            the rounds in which the bundle, its baselines and the floor take turns
:mod:`.baselines`         what the bundle is compared with
:mod:`.numpy_loop`        the hand-written loop, one of the baselines
:mod:`.floor`             the least time of a step on this machine
:mod:`.weights`           reads every weight once, for the floor
:mod:`.devices`           power, clocks, temperatures, GPU time
:mod:`.words`             numbers and times as text
:mod:`.table`             tables, plots and cards, as sections describe them
:mod:`.pictures`          plots as SVG
:mod:`.page`              one self-contained HTML page
========================  ==========================================================================
"""
