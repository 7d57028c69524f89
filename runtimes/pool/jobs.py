"""What one stream of a pool does by itself: its row is lent to a stream of batch 1, slice by slice."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from edgemem.errors import EdgememError, NonFiniteError
from edgemem.runtimes import snapshot
from edgemem.runtimes.memory import Array
from edgemem.runtimes.pool.bank import Bank
from edgemem.runtimes.pool.requests import Step, blank

if TYPE_CHECKING:
    from edgemem.runtimes.pool.stream import PoolStream

Slices = Generator[None, None, Any]


def opened(bank: Bank, row: int, held: Mapping[str, Any] | None, parts: snapshot.Parts | None) -> None:
    """Set up a row that was just opened."""
    if held is None and parts is None:
        return
    guest = bank.guest
    bank.lend(row)
    if parts is not None:
        guest._install(parts)
    if held is not None:
        guest.hold(held)
    bank.take_back(row)


def stepped(bank: Bank, stream: PoolStream, step: Step) -> tuple[dict[str, Array], dict[int, Exception]]:
    """A step by itself: its outputs ``[1, step_items, *item_shape]`` by name, and why it failed."""
    contract = stream.pool.contract
    bank.lend(stream.row)
    try:
        made = bank.guest.step(step.items)
    except EdgememError as error:
        return blank(contract), {0: error}
    bank.take_back(stream.row)
    found = {contract.output.name: made} if len(contract.output_specs) == 1 else made
    return {
        spec.name: np.array(found[spec.name]).reshape(1, spec.step_items, *spec.item_shape)
        for spec in contract.output_specs
    }, {}


def fed(bank: Bank, stream: PoolStream, items: Mapping[str, Array], outputs: str) -> Slices:
    """Feed items ``[1, N, *item_shape]`` by name, in chunks; what :meth:`edgemem.Stream.feed` returns."""
    guest, contract, chunk = bank.guest, stream.pool.contract, stream.pool.chunk
    specs = contract.data
    count = max(1, *(-(-items[spec.name].shape[1] // (chunk * spec.step_items)) for spec in specs))
    found: list[Any] = []
    before = None
    for index in range(count):
        part = {}
        for spec in specs:
            size = chunk * spec.step_items
            part[spec.name] = items[spec.name][:, index * size : (index + 1) * size if index < count - 1 else None]
        bank.lend(stream.row)
        if index == 0:
            guest._feeder.check_room(min(items[spec.name].shape[1] // spec.step_items for spec in specs))
            before = guest.fork() if count > 1 and guest._guard else None
        wanted = outputs if outputs == "all" or index >= count - 2 else "none"
        try:
            found.append(guest.feed(part if len(specs) > 1 else part[specs[0].name], wanted))  # type: ignore[arg-type]
        except NonFiniteError:
            if before is not None:
                guest._lane.copy([(before._lane, None)])
                bank.take_back(stream.row)
            raise
        bank.take_back(stream.row)
        if index < count - 1:
            yield
    return _joined(found, outputs)


def _joined(found: list[Any], outputs: str) -> Any:
    if outputs == "none":
        return None
    if outputs == "last":
        return next((made for made in reversed(found) if made is not None), None)
    if isinstance(found[0], dict):
        return {name: np.concatenate([made[name] for made in found], axis=1) for name in found[0]}
    return np.concatenate(found, axis=1)
