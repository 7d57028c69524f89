"""Find out what a module carries by running it, and declare it.

The module is called as ``module(x, state)`` on random data: with two and three streams, with one and several time
steps, twice over, and in one chunk against step by step. What does not hold is refused, with the submodule's path.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from edgemem.contract import InputSpec, OutputSpec
from edgemem.errors import ProtocolError
from edgemem.origins import Origins, changed, first_to_differ, has_nan, in_words, kept
from edgemem.protocol import check_protocol, kept_in, raised_at
from edgemem.streaming.adapter import Streaming
from edgemem.streaming.leaves import MAX_CHUNK, batch_axis, default_name, flatten

_CUTS = (3, 1, 3)
"""The chunks that are held against single steps, and all of them against one chunk."""
_TOLERANCE = 1e-4
_RECURRENT = {nn.LSTM: ("h", "c"), nn.GRU: ("h",), nn.RNN: ("h",)}


def discover(
    module: nn.Module,
    example: Tensor,
    *,
    state: Callable[[int], Any] | None = None,
    names: Sequence[str] | None = None,
    vocab_size: int | None = None,
    max_chunk: int = MAX_CHUNK,
) -> Streaming:
    """The adapter for a module ``forward(x, state) -> (y, new state)``, found by probing it.

    The state at the start is ``state(batch)``, or ``module.initial_state(batch)`` where there is such a method, or
    zeros, if they give what ``forward(x, None)`` gives. ``print(discover(...).declaration())`` shows what was found as
    code: paste it, and nothing needs to be discovered again.

    Args:
        module: The module; it is put into evaluation mode.
        example: Data of its kind, ``[B, T, F]`` or token ids ``[B, T]``: its shape and dtype count, not its values.
        state: The state at the start, of so many streams.
        names: The states' names; see :class:`~edgemem.streaming.Streaming`.
        vocab_size: Of token ids; by default that of the module's first ``nn.Embedding``.
        max_chunk: Most time steps of one call; 1 for a module that takes single steps alone.

    Raises:
        ProtocolError: The module keeps a state as an attribute or a buffer, its state grows, chunks do not give what
            steps give, or it cannot be run. The message names the submodule.
    """
    if not isinstance(module, nn.Module):
        raise ProtocolError(f"got a {type(module).__name__}, wanted a torch.nn.Module.")
    return _Probe(module.eval(), example, vocab_size, max_chunk).run(state, names)


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


@dataclass
class _Probe:
    """The calls of one module, and what they show."""

    module: nn.Module
    example: Tensor
    vocab_size: int | None
    max_chunk: int

    def run(self, state: Callable[[int], Any] | None, names: Sequence[str] | None) -> Streaming:
        if not isinstance(self.example, Tensor) or self.example.ndim < 2:
            raise ProtocolError("the example must be a tensor [B, T] of token ids or [B, T, F] of real values.")
        try:
            inspect.signature(self.module.forward).bind(self.example, None)
        except TypeError as error:
            raise ProtocolError(
                f"{self._name}.forward cannot be called with (x, state): {error}.",
                hint="Let it take the state as its second parameter, and return (outputs, new state).",
            ) from error
        own = getattr(self.module, "initial_state", None)
        start = state or (own if callable(own) else None)
        self._refuse_hidden(start)
        found = self._from_none() if start is None else None
        output, traced = self._output(start or found)
        if names is None:
            names = self._names(*traced)
        adapter = Streaming(
            self.module,
            state=start or found,  # type: ignore[arg-type]
            input=self._input(),
            output=output,
            names=names,
            max_chunk=self.max_chunk,
        )
        self._refuse_growing(adapter)
        if start is None:
            self._compare_with_none(adapter)
        self._refuse_ignored(adapter)
        if self.max_chunk > 1:
            self._refuse_other_chunks(adapter)
        check_protocol(adapter)
        return adapter

    @property
    def _name(self) -> str:
        return type(self.module).__name__

    def _data(self, batch: int, time: int) -> Tensor:
        generator = torch.Generator().manual_seed(batch * 1000 + time)
        shape = (batch, time, *self.example.shape[2:])
        if self.example.is_floating_point():
            return torch.randn(shape, generator=generator).to(self.example.dtype)
        return torch.randint(0, self._input().vocab_size or 1, shape, generator=generator).to(self.example.dtype)

    def _input(self) -> InputSpec:
        dtype: Any = str(self.example.dtype).removeprefix("torch.")
        if self.example.is_floating_point():
            return InputSpec("features", tuple(self.example.shape[2:]), dtype)
        embeddings = [layer for layer in self.module.modules() if isinstance(layer, nn.Embedding)]
        size = self.vocab_size or (embeddings[0].num_embeddings if embeddings else None)
        if size is None:
            raise ProtocolError("how many token ids there are is not known.", hint="Give vocab_size=.")
        return InputSpec("tokens", tuple(self.example.shape[2:]), dtype, size)

    def _call(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """One call; what it raises and what it returns are put into words."""
        call = f"{self._name}.forward on data of shape {list(x.shape)}"
        with torch.no_grad(), Origins(self.module, find_nan=True) as origins:
            try:
                result = self.module(x, state)
            except ProtocolError:
                raise
            except Exception as error:
                place = origins.place(origins.running)
                started = " and no state (None)" if state is None else ""
                raise ProtocolError(
                    f"{call}{started} raised {type(error).__name__}{f' in {place}' if place else ''}: {error}",
                    hint="If it cannot start from None, give state=lambda batch: ..., or the module a method "
                    "initial_state(batch)."
                    if state is None
                    else raised_at(error),
                ) from error
        if not isinstance(result, tuple) or len(result) != 2 or not isinstance(result[0], Tensor):
            kinds = [type(part).__name__ for part in result] if isinstance(result, tuple) else type(result).__name__
            raise ProtocolError(f"{call} returned {kinds}, wanted (outputs, new state).")
        if result[0].shape[:2] != x.shape[:2]:
            raise ProtocolError(
                f"{call} gave outputs of shape {list(result[0].shape)}, wanted [{x.shape[0]}, {x.shape[1]}, ...].",
                hint="One output for every stream and time step; max_chunk=1 if it takes single steps alone.",
            )
        if any(has_nan(tensor) for tensor in _tensors(result)):
            place = origins.place(origins.first_nan)
            raise ProtocolError(
                f"{call} gave NaN{f', which first arose in {place}' if place else ''}.",
                hint="On standard normal data: check the weights, divisions and logarithms.",
            )
        return result

    def _refuse_hidden(self, start: Callable[[int], Any] | None) -> None:
        """Refuse a module that gives other numbers when it is called again, and name what it keeps."""
        x = self._data(2, 3 if self.max_chunk > 1 else 1)
        state = None if start is None else start(2)
        before, results = kept(self.module), []
        try:
            with torch.no_grad():
                for _ in range(2):
                    results.append(_tensors(self.module(x, state)))
        except Exception:
            if not results:
                return  # a later call says it in words
        if len(results) == 2 and all(_close(a, b) for a, b in zip(*results, strict=False)):
            return
        held = changed(before, kept(self.module))
        raise ProtocolError(
            f"{self._name}.forward gave other numbers when it was called again with the same data and state"
            f"{kept_in(self.module, held)}.",
            hint="What it keeps between calls must come in and go out as its state."
            if held
            else "It keeps nothing, so it draws at random.",
        )

    def _from_none(self) -> Callable[[int], Any]:
        """Zeros in the shapes of what comes out of a call without a state."""
        with Origins(self.module) as origins:
            (two, spec), (three, _) = (flatten(self._call(self._data(batch, 1), None)[1]) for batch in (2, 3))
            places = [origins.place(origins.of(leaf)) if isinstance(leaf, Tensor) else None for _, leaf in two]
        if not two:
            raise ProtocolError(f"{self._name}.forward returned no state.", hint="There is nothing to carry.")
        axes = []
        for (path, one), (_, other), place in zip(two, three, places, strict=True):
            if not isinstance(one, Tensor):
                raise ProtocolError(
                    f"{self._name}.forward: the state {path or default_name(path, 1)} came out as a "
                    f"{type(one).__name__}, wanted a tensor.",
                    hint="A trace turns a Python value into a constant: keep it as a tensor with a batch axis.",
                )
            what = f"the state {default_name(path, len(two))!r}{f' of {place}' if place else ''}"
            axes.append(batch_axis(what, one, other))

        def zeros(batch: int) -> Any:
            values = [
                torch.zeros([batch if at == axis else size for at, size in enumerate(one.shape)], dtype=one.dtype)
                for (_, one), axis in zip(two, axes, strict=True)
            ]
            return pytree.tree_unflatten(values, spec)

        return zeros

    def _output(self, start: Any) -> tuple[OutputSpec, tuple[list[tuple[str, Any]], list[str | None]]]:
        """What comes out for one time step, and for each leaf of the state which submodule made it."""
        x = self._data(2, 1)
        state = start(2)
        with Origins(self.module) as origins:
            y, new = self._call(x, state)
            leaves = flatten(new)[0]
            made = [origins.of(leaf) if isinstance(leaf, Tensor) else None for _, leaf in leaves]
        name = "predictions" if self.example.is_floating_point() else "logits"
        dtype: Any = str(y.dtype).removeprefix("torch.")
        return OutputSpec(name, tuple(y.shape[2:]), dtype), (leaves, made)

    def _names(self, leaves: list[tuple[str, Any]], made: list[str | None]) -> list[str] | None:
        """The paths; but where they say nothing (a bare tensor, a tuple), the submodule that made the tensor."""
        plain = [default_name(path, len(leaves)) for path, _ in leaves]
        if not all(name.split(".")[0] == "state" for name in plain) or any(path is None for path in made):
            return None
        names: list[str] = []
        for path in made:
            assert path is not None
            parts = _RECURRENT.get(type(self.module.get_submodule(path)), ())  # type: ignore[call-overload]
            index = sum(name.startswith(f"{path}.") or (not path and name in parts) for name in names)
            if index >= len(parts):
                return None
            names.append(f"{path}.{parts[index]}" if path else parts[index])
        return names if len(set(names)) == len(names) else None

    def _refuse_growing(self, adapter: Streaming) -> None:
        """Refuse a state whose size hangs on the number of steps."""
        state = adapter.start(2)
        for time in (1, 3) if self.max_chunk > 1 else (1, 1):
            with torch.no_grad(), Origins(self.module) as origins:
                tree = self._call(self._data(2, time), state)[1]
                new = flatten(tree)[0]
                if [path for path, _ in new] != [leaf.path for leaf in adapter.leaves]:
                    adapter.flatten(tree)  # which says so
                for leaf, (_, value), (_, old) in zip(adapter.leaves, new, flatten(state)[0], strict=False):
                    if not isinstance(value, Tensor) or (value.shape == old.shape and value.dtype == old.dtype):
                        continue
                    place = origins.place(origins.of(value))
                    steps = f"{time} step{'s' if time > 1 else ''}"
                    grows = value.dtype == old.dtype and value.numel() > old.numel()
                    raise ProtocolError(
                        f"the state {leaf.name!r} {'grows' if grows else 'changes'}: {_kind(old)} before a call of "
                        f"{steps}, {_kind(value)} after it{f'; made in {place}' if place else ''}.",
                        hint="edgemem exports memories of a fixed size: cut it to its last entries, and start it full "
                        "(state=), or use a memory of docs/memories.md."
                        if grows
                        else "A state must keep its shape and dtype.",
                    )
            state = tree

    def _compare_with_none(self, adapter: Streaming) -> None:
        """Zeros were assumed; a call without a state must agree."""
        x = self._data(2, 3 if self.max_chunk > 1 else 1)
        from_none, from_zeros = (self._call(x, state) for state in (None, adapter.start(2)))
        if not all(_close(a, b) for a, b in zip(_tensors(from_none), _tensors(from_zeros), strict=False)):
            raise ProtocolError(
                f"{self._name}.forward does not start from zeros: without a state it gives other numbers.",
                hint="Give state=lambda batch: ..., or the module a method initial_state(batch).",
            )

    def _refuse_ignored(self, adapter: Streaming) -> None:
        """Refuse a module that gives the same whatever its state."""
        x, state = self._data(2, 1), adapter.start(2)
        later = self._call(self._data(2, 1) + 1 if x.is_floating_point() else x, state)[1]
        if all(torch.equal(a, b) for a, b in zip(*(_tensors(self._call(x, s)) for s in (state, later)), strict=True)):
            raise ProtocolError(
                f"{self._name}.forward gives the same from the start and a step later: it does not look at its state.",
                hint="Pass the state on to the layers that carry it: y, state = self.lstm(x, state).",
            )

    def _refuse_other_chunks(self, adapter: Streaming) -> None:
        """Refuse a module whose chunks give other numbers than its steps."""
        steps = sum(_CUTS)
        x = self._data(2, steps)
        for whole, sizes in ((_CUTS, [1] * steps), ((steps,), list(_CUTS))):
            (y, state), (other_y, other_state) = self._stream(adapter, x, whole), self._stream(adapter, x, sizes)
            differing = [
                f"state {leaf.name!r}"
                for leaf, (_, one), (_, other) in zip(
                    adapter.leaves, flatten(state)[0], flatten(other_state)[0], strict=True
                )
                if not _close(one, other)
            ]
            if not _close(y, other_y):
                differing.insert(0, "output")
            if differing:
                at = "" if _close(y, other_y) else f", from step {_first_step(y, other_y)}"
                raise ProtocolError(
                    f"{self._name}: {steps} steps in {_cuts(whole)} give another {', '.join(differing)} than in "
                    f"{_cuts(sizes)}{at}{self._first_to_differ(adapter)}.",
                    hint="The state must be that after the call's last step, and nothing may look at later steps or be "
                    "averaged over a call. max_chunk=1 if single steps alone are right.",
                )

    def _first_to_differ(self, adapter: Streaming) -> str:
        """Which submodule's output shows first that one call of three steps is not three calls."""
        x = self._data(2, 3)
        path = first_to_differ(
            self.module, lambda: self._stream(adapter, x, [3]), lambda: self._stream(adapter, x, [1, 1, 1]), _close
        )
        return "" if path is None else f"; it shows first in what {in_words(self.module, path)} gives"

    def _stream(self, adapter: Streaming, x: Tensor, sizes: Sequence[int]) -> tuple[Tensor, Any]:
        state, outputs = adapter.start(x.shape[0]), []
        for part in torch.split(x, list(sizes), dim=1):
            y, state = self._call(part, state)
            outputs.append(y)
        return torch.cat(outputs, dim=1), state


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for _, leaf in flatten(tree)[0] if isinstance(leaf, Tensor)]


def _close(one: Any, other: Any) -> bool:
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return bool(one == other)
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if not one.is_floating_point():
        return torch.equal(one, other)
    return torch.allclose(one, other, rtol=_TOLERANCE, atol=_TOLERANCE, equal_nan=True)


def _first_step(one: Tensor, other: Tensor) -> int:
    differing = ~torch.isclose(one.float(), other.float(), rtol=_TOLERANCE, atol=_TOLERANCE, equal_nan=True)
    return int(differing.transpose(0, 1).flatten(1).any(dim=1).nonzero()[0])


def _kind(value: Tensor) -> str:
    return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"


def _cuts(sizes: Sequence[int]) -> str:
    return (
        "single steps"
        if set(sizes) == {1}
        else f"one call of {sizes[0]}"
        if len(sizes) == 1
        else "calls of " + ", ".join(map(str, sizes))
    )
