"""One streaming module for every transformers model whose state has a fixed size.

It knows no model family. It puts the given tensors into the structure that :mod:`edgemem.export.hf.find_states` found,
calls the model, and reads the new tensors back.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from edgemem.contract import POSITION, Contract
from edgemem.export.hf.attention import AttentionLayers
from edgemem.export.hf.attention_calls import position_arguments
from edgemem.export.hf.find_states import CACHE, MODULES, Carried
from edgemem.export.hf.leaves import module_attributes, rebuild, set_attribute, tensors
from edgemem.export.hf.quiet import quiet
from edgemem.export.hf.recurrences import Recurrences

MAX_CHUNK, MAX_GROWING_CHUNK = 256, 64
"""Most time steps of one call: enough to use the weights well, little enough to keep activations small. The second is
for models whose activations grow with the square of a chunk's length, or with the experts that are chosen in it."""

Form = Literal["own", "scan", "stepped"]
"""How a chunk is computed: with the model's own code, which is wrong for some families; with the recurrences of
:mod:`edgemem.export.hf.scans` instead; or step by step, which is right and slow."""


class HuggingFaceModel(nn.Module):
    """A causal language model of transformers, following the streaming protocol.

    Args:
        model: The model, in evaluation mode.
        carried: Its states.
        attention: Its attention layers with their bounds; false if it has none.
        contract: The inputs, outputs and states of the module.

    Attributes:
        ignored: What may change between calls: the attention's own notes, which every call makes anew, and the
            attributes in which the model keeps the states, which every call sets.
    """

    def __init__(self, model: nn.Module, carried: Carried, attention: AttentionLayers, contract: Contract) -> None:
        super().__init__()
        self.model = model
        self.attention = attention
        self._form: Form = "stepped" if carried.states else "own"
        self._carried = carried
        held = (f"model.{name}" for name in carried.root.get(MODULES, {}))
        self.ignored = ("attention.*", "*.edgemem_*", *held)
        self._contract = contract
        self._recurrences = Recurrences(model)

    def contract(self) -> Contract:
        """Tokens in, logits out, and the states that were found."""
        return self._contract

    @property
    def is_recurrent(self) -> bool:
        """Whether it has states other than the keys and values of attention."""
        return bool(self._carried.states)

    def full_sequence(self, x: Tensor, output_indices: Tensor | None = None) -> Tensor:
        """The model's own pass over whole sequences ``[B, T]``, without a cache: the reference for exports.

        Where a bound limits the attention of the model, a mask limits it here too.

        Args:
            x: Tokens.
            output_indices: The time steps whose logits are wanted, int64 ``[S]``; ``None`` for all.
        """
        selects = output_indices is not None and self._contract.output_indices
        with contextlib.ExitStack() as around:
            around.enter_context(quiet())
            if self.attention:
                around.enter_context(self.attention.reference())
            if output_indices is not None and selects:
                around.enter_context(_only(self.model, output_indices))
            logits: Tensor = self.model(input_ids=x, use_cache=False, return_dict=True).logits
        return logits if output_indices is None or selects else logits.index_select(1, output_indices)

    @property
    def has_recurrences(self) -> bool:
        """Whether the form ``"scan"`` differs from the model's own code."""
        return bool(self._recurrences)

    @property
    def has_loop(self) -> bool:
        """Whether any of its recurrences is a loop over the time steps."""
        return self._recurrences.loop

    @contextlib.contextmanager
    def in_form(self, form: Form) -> Iterator[None]:
        """Compute chunks in another form, within the context."""
        before, self._form = self._form, form
        try:
            yield
        finally:
            self._form = before

    def forward(
        self, x: Tensor, state: Mapping[str, Tensor], output_indices: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits ``[B, S, V]`` of the tokens ``[B, T]``, and the new state."""
        if self._form == "stepped" and x.shape[1] > 1:
            return self._stepped(x, state, output_indices)
        carried = self._carried
        root = rebuild(carried.root, {path: state[spec.name].clone() for path, spec in carried.states.items()})
        arguments: dict[str, Any] = {"input_ids": x, "use_cache": True, "return_dict": True}
        if carried.argument is not None:
            arguments[carried.argument] = root[CACHE]
        if POSITION in state:
            positions = state[POSITION][:, None] + torch.arange(x.shape[1], device=x.device)
            arguments.update(position_arguments(self.model, positions))
            self.attention.bind(state, positions)
        if hasattr(root[CACHE], "before_call"):
            root[CACHE].before_call(x.shape[1])
        with contextlib.ExitStack() as around:
            around.enter_context(quiet())
            around.enter_context(_attributes(self.model, root[MODULES]))
            if self.attention:
                around.enter_context(self.attention.streaming())
            if output_indices is not None:
                around.enter_context(_only(self.model, output_indices))
            if x.shape[1] == 1:
                around.enter_context(self._recurrences.of_step(root[CACHE]))
            elif self._form == "scan":
                around.enter_context(self._recurrences.of_chunk(root[CACHE]))
            output = self.model(**arguments)
            held = module_attributes(self.model)
        cache = getattr(output, carried.argument, root[CACHE]) if carried.argument is not None else None
        after = tensors({CACHE: cache, MODULES: {name: held[name] for name in root[MODULES]}})
        new = self.attention.collect() if self.attention else {}
        return output.logits, new | {spec.name: after[path] for path, spec in carried.states.items()}

    def _stepped(
        self, x: Tensor, state: Mapping[str, Tensor], output_indices: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        outputs, entries = [], []
        for t in range(x.shape[1]):
            output, new, state = advance(self, x[:, t : t + 1], state)
            outputs.append(output)
            entries.append(new)
        appended = {
            spec.name: torch.cat([new[spec.name] for new in entries], dim=2)
            for spec in self._contract
            if spec.update == "append"
        }
        logits = torch.cat(outputs, dim=1)
        if output_indices is not None:
            logits = logits.index_select(1, output_indices)
        return logits, {**entries[-1], **appended}


def advance(
    module: HuggingFaceModel, x: Tensor, state: Mapping[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """One call on ``x`` ``[B, T]``: its outputs, its new value of each state, and the state that a host then keeps."""
    output, new = module(x, state)
    kept = {}
    for spec in module.contract():
        value = new[spec.name]
        if spec.window is not None:
            slots = state[POSITION][:, None] + torch.arange(x.shape[1], device=x.device)
            index = torch.remainder(slots, spec.window)[:, None, :, None].expand_as(value)
            value = state[spec.name].scatter(2, index, value)
        kept[spec.name] = value
    if POSITION in state:
        kept[POSITION] = state[POSITION] + x.shape[1]
    return output, new, kept


@contextlib.contextmanager
def _attributes(model: nn.Module, values: Mapping[str, Tensor]) -> Iterator[None]:
    """Set attributes of modules, within the context."""
    before = {name: value for name, value in module_attributes(model).items() if name in values}
    try:
        for name, value in values.items():
            set_attribute(model, name, value)
        yield
    finally:
        for name in values:
            set_attribute(model, name, before.get(name))


def can_select(model: nn.Module) -> bool:
    """Whether the model can compute logits for some time steps only."""
    if model.get_output_embeddings() is None:  # type: ignore[operator]
        return False
    with torch.no_grad(), _only(model, torch.tensor([1])):
        logits = model(input_ids=torch.zeros(1, 3, dtype=torch.int64), use_cache=False).logits
    return bool(logits.shape[1] == 1)


@contextlib.contextmanager
def _only(model: nn.Module, indices: Tensor) -> Iterator[None]:
    """Compute logits for some time steps only: the output layer gets only their hidden states."""
    head = model.get_output_embeddings()  # type: ignore[operator]

    def select(_: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (given[0].index_select(1, indices), *given[1:])

    hook = head.register_forward_pre_hook(select)
    try:
        yield
    finally:
        hook.remove()
