"""Find out what a module carries by running it, and declare it.

The module is called as ``module(x, state)`` on random data: with two and three streams, with calls of different
lengths, twice with the same data, and in one chunk against step by step. What does not hold is refused, with the
submodule's path.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from edgemem.contract import OutputSpec
from edgemem.errors import ProtocolError
from edgemem.export.discovery import checks
from edgemem.export.discovery.probe import Example, Probe
from edgemem.export.discovery.rates import Rate, Rates
from edgemem.export.discovery.start import state_names, zeros_like_the_state
from edgemem.protocol import check_protocol, refuse_scripted
from edgemem.streaming.adapter import Streaming
from edgemem.streaming.leaves import MAX_CHUNK

Start = Callable[[int], Any]


def discover(
    module: nn.Module,
    example: Tensor | Mapping[str, Tensor],
    *,
    held: Sequence[str] = (),
    fixed: Sequence[str] = (),
    state: Start | None = None,
    names: Sequence[str] | None = None,
    vocab_size: int | Mapping[str, int] | None = None,
    max_chunk: int = MAX_CHUNK,
    ignore: Sequence[str] = (),
) -> Streaming:
    """The adapter for a module ``forward(x, state) -> (y, new state)``, found by probing it.

    The initial state is ``state(batch)``, or ``module.initial_state(batch)`` where there is such a method, or zeros, if
    they give what ``forward(x, None)`` gives. A step takes the smallest number of items for which every call gives a
    whole number of outputs and chunks give what steps give. ``print(discover(...).declaration())`` shows what was found
    as code: paste it, and nothing needs to be discovered again.

    Args:
        module: The module; it is put into evaluation mode.
        example: Data ``[B, T, F]`` or token ids ``[B, T]``; for several inputs, tensors by name, which ``forward`` gets
            as a dict. Shapes and dtypes count, not values. Lengths count where inputs have different rates, where a
            step takes more than 64 items, and with ``max_chunk=1``, where the example is one step.
        held: Names of inputs that a stream is given once, ``[B, ...]``, such as a speaker's embedding.
        fixed: Names of inputs that are constants: the example's values.
        state: The initial state of so many streams.
        names: The states' names; see :class:`~edgemem.streaming.Streaming`.
        vocab_size: Number of token ids, or that of each such input by name; by default that of the module's first
            ``nn.Embedding``.
        max_chunk: Most steps of one call; 1 for a module that takes single steps only.
        ignore: Attributes that may change between calls; see :class:`~edgemem.streaming.Streaming`.

    Raises:
        ProtocolError: The module keeps a state as an attribute or a buffer, its state grows, its number of outputs is
            not proportional to its number of inputs, chunks do not give what steps give, or it cannot be run. The
            message names the submodule.
    """
    if not isinstance(module, nn.Module):
        raise ProtocolError(f"got a {type(module).__name__}, wanted a torch.nn.Module.")
    refuse_scripted(module)
    read = Example.read(module.eval(), example, held, fixed, vocab_size)
    probe = Probe(module, read.specs, single=max_chunk == 1)
    _check_signature(probe)
    own = getattr(module, "initial_state", None)
    start: Start | None = state or (own if callable(own) else None)
    checks.refuse_hidden(probe, start, read.units if read.units > 1 else probe.few)
    reason: ProtocolError | None = None
    for rate in Rates(probe, None if start is None else start(2), read.units).found():
        try:
            adapter = _adapter(Probe(module, rate.inputs, probe.single), rate, start, names, max_chunk, ignore)
            check_protocol(adapter)
        except ProtocolError as error:
            reason = reason or error  # that of the shortest step
        else:
            pairs = zip(read.specs, rate.inputs, strict=True)
            units = next(longer.takes // shortest.takes for shortest, longer in pairs if shortest.role == "data")
            if reason is not None and checks.takes_parts_of_steps(probe, adapter, units):
                break  # it is right but for its shortest calls
            return adapter
    assert reason is not None
    raise reason


def _check_signature(probe: Probe) -> None:
    try:
        inspect.signature(probe.module.forward).bind(None, None)
    except TypeError as error:
        raise ProtocolError(
            f"{probe.name}.forward cannot be called with (x, state): {error}.",
            hint="Let it take the state as its second parameter, and return (outputs, new state).",
        ) from error


def _adapter(
    probe: Probe,
    rate: Rate,
    start: Start | None,
    names: Sequence[str] | None,
    max_chunk: int,
    ignore: Sequence[str],
) -> Streaming:
    """The adapter for a module of a known rate.

    Raises:
        ProtocolError: The module would stream wrong.
    """
    checks.refuse_hidden(probe, start, probe.few)
    begin = start or zeros_like_the_state(probe)
    outputs, _ = probe.call(probe.data(2, 1), begin(2))
    adapter = Streaming(
        probe.module,
        state=begin,
        inputs=rate.inputs,
        outputs=[
            OutputSpec(name, tuple(value.shape[2:]), _dtype_name(value), rate.gives[name])
            for name, value in outputs.items()
        ],
        names=names or state_names(probe, begin(2)),
        max_chunk=max_chunk,
        ignore=ignore,
    )
    checks.refuse_growing(probe, adapter)
    if start is None:
        checks.compare_with_none(probe, adapter)
    checks.refuse_ignored(probe, adapter)
    if max_chunk > 1:
        checks.refuse_other_chunks(probe, adapter)
    return adapter


def _dtype_name(value: Tensor) -> Any:
    return str(value.dtype).removeprefix("torch.")


def undeclared(module: nn.Module) -> ProtocolError:
    """The error for a module without a contract, with the declaration it could have where that can be found."""
    message = f"{type(module).__name__} has no contract() method."
    how = "Return edgemem.export.discover(module, example) from the factory, or declare the states: docs/own-model.md."
    reason: ProtocolError | None = None
    for example in _guesses(module):
        try:
            found = discover(module, example).declaration()
        except ProtocolError as error:
            # Of several guesses at the input, the first that got past the first layer tells most.
            reason = reason or (None if isinstance(error.__cause__, RuntimeError) else error)
            continue
        return ProtocolError(
            message,
            hint="edgemem.export.discover proposes, to be returned by the factory (docs/own-model.md):\n\n"
            f"import torch\n\nfrom edgemem import InputSpec, OutputSpec\nfrom edgemem.streaming import Streaming\n\n"
            f"{found}",
        )
    return ProtocolError(message, hint=how if reason is None else f"{how}\n{reason}")


def _guesses(module: nn.Module) -> list[Tensor]:
    """Data that the module may take, from the sizes of its layers, the first layer's first."""
    found: list[Tensor] = []
    widths: set[int] = set()
    for layer in module.modules():
        if isinstance(layer, nn.Embedding) and not any(not x.is_floating_point() for x in found):
            found.append(torch.zeros(1, 1, dtype=torch.int64))
        width = next(
            (size for key in ("input_size", "in_features", "in_channels") if (size := vars(layer).get(key))), 0
        )
        if width and width not in widths and len(widths) < 8:
            widths.add(width)
            found.append(torch.zeros(1, 1, width))
    return found
