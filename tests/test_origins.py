"""An error can say which submodule made a tensor, and which keeps one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from edgemem.origins import Origins, changed, first_to_differ, has_nan, in_words, kept


class Inner(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.log()


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(2, 2), Inner()])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        first = self.layers[0](x)
        return first, self.layers[1](x), first[:, :1]


def test_every_tensor_is_traced_to_the_submodule_whose_forward_made_it():
    module, x = Outer(), torch.ones(1, 2)
    with torch.no_grad(), Origins(module) as origins:
        first, second, own = module(x)
    assert [origins.of(tensor) for tensor in (first, second, own, x)] == ["layers.0", "layers.1", "", None]
    assert [origins.place(origins.of(tensor)) for tensor in (first, own, x)] == [
        "layers.0 (Linear)",
        "Outer itself",
        None,
    ]
    assert not module.layers[0]._forward_hooks


def test_nan_is_traced_to_where_it_first_arose():
    module = Outer()
    with torch.no_grad(), Origins(module, find_nan=True) as origins:
        _, second, _ = module(-torch.ones(1, 2))
    assert has_nan(second)
    assert origins.first_nan == "layers.1"


def test_the_submodule_that_raised_is_known():
    module = Outer()
    with Origins(module) as origins, pytest.raises(RuntimeError):
        module(torch.ones(1, 3))
    assert origins.running == "layers.0"


class Keeps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("level", torch.zeros(2))
        self.inner = Inner()
        self._calls = 0
        self.cache: dict[str, list[Tensor]] = {"k": [torch.zeros(1)]}


@pytest.mark.parametrize(
    ("change", "path"),
    [
        (lambda m: m.level.add_(1), "level"),
        (lambda m: setattr(m, "_calls", 1), "_calls"),
        (lambda m: setattr(m.inner, "hidden", torch.ones(1)), "inner.hidden"),
        (lambda m: m.cache["k"][0].add_(1), "cache['k'][0]"),
        (lambda m: m.cache["k"].append(torch.ones(1)), "cache['k'][1]"),
    ],
)
def test_what_a_module_keeps_is_seen_to_change(change, path):
    module = Keeps()
    before = kept(module)
    assert changed(before, kept(module)) == []
    change(module)
    assert changed(before, kept(module)) == [path]


def test_weights_are_not_what_a_module_keeps():
    assert not any(isinstance(value, Tensor) for value in kept(nn.LSTM(2, 2)).values())


class Centred(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(dim=1, keepdim=True)


def test_the_first_submodule_that_depends_on_the_cut_is_found():
    module = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), Centred(), nn.Linear(2, 2))
    x = torch.randn(2, 3, 2, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        path = first_to_differ(
            module, lambda: module(x), lambda: [module(part) for part in x.split(1, dim=1)], torch.allclose
        )
    assert path == "2"
    assert in_words(module, "2") == "2 (Centred)"
