"""Several inputs and outputs, their roles and their rates are found by running a module."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from edgemem import InputSpec, OutputSpec
from edgemem.contract import Contract
from edgemem.errors import ProtocolError
from edgemem.export import discover
from edgemem.protocol import by_name, check_protocol
from edgemem.streaming import Streaming
from tests.export import several

ROWS = torch.zeros(1, 1, 3)
TWO = {"imu": torch.zeros(1, 1, 4), "gps": torch.zeros(1, 1, 3)}
SPOKEN = {"audio": torch.zeros(1, 1, 3), "speaker": torch.zeros(1, 6)}
FUSED = {"audio": torch.zeros(1, 8), "video": torch.zeros(1, 2, 2), "gain": torch.tensor(2.0)}


@pytest.mark.parametrize(
    ("module", "example", "options", "inputs", "outputs"),
    [
        (
            several.TwoByTwo(),
            TWO,
            {},
            [InputSpec("imu", (4,)), InputSpec("gps", (3,))],
            [OutputSpec("pose", (2,)), OutputSpec("moving", (1,))],
        ),
        (several.Encoder(), ROWS, {}, [InputSpec("features", (3,), takes=4)], [OutputSpec("predictions", (5,))]),
        (
            several.Speaker(),
            SPOKEN,
            {"held": ["speaker"]},
            [InputSpec("audio", (3,)), InputSpec("speaker", (6,), role="held")],
            [OutputSpec("predictions", (2,))],
        ),
        (
            several.Fusion(),
            FUSED,
            {"fixed": ["gain"]},
            [InputSpec("audio", takes=4), InputSpec("video", (2,)), InputSpec("gain", role="fixed", value=2.0)],
            [OutputSpec("output", (6,)), OutputSpec("output_1", (), gives=4)],
        ),
        (
            several.Blocks(),
            torch.zeros(1, 1, 1),
            {},
            [InputSpec("features", (1,), takes=2)],
            [OutputSpec("predictions", (1,), gives=2)],
        ),
    ],
    ids=["two", "stride", "held", "fixed", "blocks"],
)
def test_inputs_outputs_and_rates_are_found_and_the_declaration_makes_them_again(
    module, example, options, inputs, outputs
):
    found = discover(module, example, **options)
    assert found.contract().input_specs == tuple(inputs)
    assert found.contract().output_specs == tuple(outputs)
    names = {"torch": torch, "module": module, "Streaming": Streaming}
    again = eval(found.declaration(), {**names, "InputSpec": InputSpec, "OutputSpec": OutputSpec})
    assert again.contract() == found.contract()
    assert Contract.from_json(found.contract().to_json()) == found.contract()


class Strided(nn.Module):
    """The sum over each block of inputs, repeated; what is left over at the end of a call gets lost."""

    def __init__(self, takes: int, gives: int) -> None:
        super().__init__()
        self.takes, self.gives = takes, gives

    def forward(self, x: Tensor, total: Tensor | None = None) -> tuple[Tensor, Tensor]:
        whole = x[:, : x.shape[1] // self.takes * self.takes]
        sums = whole.reshape(len(x), -1, self.takes, x.shape[2]).sum(dim=2).cumsum(dim=1)
        sums = sums if total is None else sums + total[:, None]
        return sums.repeat_interleave(self.gives, dim=1), torch.cat([sums[:, :1] * 0, sums], dim=1)[:, -1]


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 70), st.integers(1, 4))
def test_a_step_is_the_smallest_number_of_items_that_gives_whole_outputs(takes, gives):
    example = torch.zeros(1, 1 if takes <= 64 else 2 * takes, 2)
    contract = discover(Strided(takes, gives), example).contract()
    assert (contract.input.takes, contract.output.gives) == (takes, gives)


def test_with_single_steps_the_example_is_the_step():
    class Frames(nn.Module):
        def forward(self, x: Tensor, level: Tensor | None = None) -> tuple[Tensor, Tensor]:
            level = x.mean(dim=1) + (0 if level is None else level)
            return level[:, None], level

    contract = discover(Frames(), torch.zeros(1, 512, 2), max_chunk=1).contract()
    assert (contract.input.takes, contract.output.gives) == (512, 1)


def test_the_names_of_a_namedtuple_are_kept_and_a_mapping_names_a_single_input():
    class Parts(NamedTuple):
        low: Tensor
        high: Tensor

    class Splits(several.nn.Module):
        def forward(self, x: Tensor, last: Tensor | None = None) -> tuple[Parts, Tensor]:
            total = x.cumsum(dim=1) + (0 if last is None else last[:, None])
            return Parts(total, total[..., :1]), total[:, -1]

    contract = discover(Splits(), {"signal": ROWS}).contract()
    assert contract.input.name == "signal"
    assert [(spec.name, spec.shape) for spec in contract.output_specs] == [("low", (3,)), ("high", (1,))]


def test_each_input_of_ids_can_have_a_vocabulary_of_its_own():
    class Ids(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.speakers = nn.Embedding(11, 4), nn.Embedding(5, 4)

        def forward(self, x: dict[str, Tensor], h: Tensor | None = None) -> tuple[Tensor, Tensor]:
            y = (self.words(x["word"]) + self.speakers(x["speaker"])[:, None] * x["loud"][..., None]).cumsum(dim=1)
            y = y if h is None else y + h[:, None]
            return y, y[:, -1]

    ids = torch.zeros(1, 1, dtype=torch.int64)
    example = {"word": ids, "speaker": ids[0], "loud": ids.bool()}
    contract = discover(Ids(), example, held=["speaker"], vocab_size={"speaker": 5}).contract()
    word, speaker, loud = contract.input_specs
    assert (word.vocab_size, speaker.vocab_size, loud.vocab_size) == (11, 5, None)
    assert (word.role, speaker.role, loud.dtype) == ("data", "held", "bool")


class Unpadded(nn.Module):
    """A convolution that drops its edges at every call, with an encoder that keeps a state."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.gru = nn.Conv1d(3, 3, 3), nn.GRU(3, 3, batch_first=True)

    def forward(self, x: Tensor, h: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.gru(self.conv(x.mT).mT, h)


def test_a_rate_of_outputs_that_is_not_fixed_is_refused_with_what_was_fed_and_what_came_out():
    with pytest.raises(ProtocolError) as error:
        discover(Unpadded(), ROWS)
    assert "Unpadded.forward does not give outputs at a fixed rate" in str(error.value)
    assert "3 of features gave 1 of predictions; 4 of features gave 2 of predictions" in str(error.value)
    assert "Keep items that are left over in the state" in str(error.value)


class TwoRates(nn.Module):
    def forward(self, x: Tensor, h: Tensor | None = None) -> tuple[tuple[Tensor, Tensor], Tensor]:
        total = x.cumsum(dim=1) + (0 if h is None else h[:, None])
        return (total, total[:, :1]), total[:, -1]


def test_all_outputs_must_have_a_fixed_rate():
    with pytest.raises(ProtocolError, match=r"2 of features gave 2 of output and 1 of output_1; 3 of features"):
        discover(TwoRates(), ROWS)


class Fails(nn.Module):
    def forward(self, x: Tensor, h: Tensor | None = None) -> tuple[Tensor, Tensor]:
        raise ValueError(f"not {x.shape[1]} items")


def test_a_module_that_always_fails_shows_the_error_for_the_example():
    with pytest.raises(ProtocolError, match=r"shape \[2, 160, 3\] and no state \(None\) raised .*not 160 items"):
        discover(Fails(), torch.zeros(1, 160, 3))


class Returns(nn.Module):
    def __init__(self, outputs: object) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, x: Tensor, h: object = None) -> tuple[object, Tensor]:
        return self.outputs, x[:, -1]


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (3, "returned the outputs int, wanted a tensor"),
        ({"a": torch.zeros(2, 1, 1), "b": None}, "returned the outputs {'a': 'Tensor', 'b': 'NoneType'}, wanted"),
        (torch.zeros(2), r"gave 'predictions' of shape \[2\], wanted \[2, N, ...\]"),
        ((torch.zeros(2, 1), torch.zeros(1, 2)), r"gave 'output_1' of shape \[1, 2\], wanted \[2, N, ...\]"),
    ],
)
def test_outputs_of_another_kind_are_refused(outputs, message):
    with pytest.raises(ProtocolError, match=message):
        discover(Returns(outputs), ROWS)


@pytest.mark.parametrize(
    ("example", "options", "message"),
    [
        (SPOKEN, {"held": ["speakr"]}, "no input 'speakr': it has audio, speaker"),
        (SPOKEN, {"held": ["speaker"], "vocab_size": {"word": 3}}, "no input 'word': it has audio, speaker"),
        (ROWS, {"held": ["speaker"]}, "no input 'speaker': it has no names"),
        ({"speaker": torch.zeros(1, 6)}, {"held": ["speaker"]}, "needs a data input with one item or more"),
        ({"audio": torch.zeros(1, 0, 3)}, {}, "needs a data input with one item or more"),
        ({"audio": torch.zeros(3)}, {}, r"example of 'audio' must be a tensor \[B, T\]"),
        ({"audio": ROWS, "speaker": 3}, {"held": ["speaker"]}, r"example of 'speaker' must be a tensor \[B, ...\]"),
        ({"audio": ROWS.double()}, {}, "dtype 'float64' is not one of"),
    ],
)
def test_an_example_that_does_not_fit_is_refused_by_name(example, options, message):
    with pytest.raises(ProtocolError, match=message):
        discover(several.Speaker(), example, **options)


@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence")
def test_an_input_that_the_example_lacks_is_named_by_the_error_of_the_module():
    with pytest.raises(ProtocolError, match=r"Speaker.forward on data of shape \[2, 1, 3\] .*raised IndexError"):
        discover(several.Speaker(), {"audio": torch.zeros(1, 1, 3)})


def test_outputs_are_taken_by_name_or_in_order():
    contract = discover(several.TwoByTwo(), TWO).contract()
    pose, moving = torch.zeros(1), torch.ones(1)
    for outputs in ({"moving": moving, "more": pose, "pose": pose}, (pose, moving), [pose, moving]):
        found = by_name(contract, outputs)
        assert list(found) == ["pose", "moving"]
        assert found["pose"] is pose
    with pytest.raises(ProtocolError, match="the outputs pose, without 'moving'"):
        by_name(contract, {"pose": pose})
    with pytest.raises(ProtocolError, match="returned 1 outputs, the contract has pose, moving"):
        by_name(contract, pose)


IMU, GPS = InputSpec("imu", (4,)), InputSpec("gps", (3,))
POSE, MOVING = OutputSpec("pose", (2,)), OutputSpec("moving", (1,))


def declared(inputs: object, outputs: object) -> Streaming:
    return Streaming(several.TwoByTwo(), state=lambda b: torch.zeros(1, b, 8), inputs=inputs, outputs=outputs)


def test_an_output_that_is_not_declared_is_left_out():
    adapter = declared([IMU, GPS], POSE)
    assert check_protocol(adapter) is adapter


@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence")
@pytest.mark.parametrize(
    ("inputs", "outputs", "message"),
    [
        (IMU, [POSE, MOVING], r"TwoByTwo.forward on data of shape \[2, 1, 4\] raised"),
        ([IMU, GPS], [POSE, OutputSpec("still", (1,))], "the outputs pose, moving, without 'still'"),
        ([IMU, GPS], [POSE, OutputSpec("moving", (1,), gives=2)], r"moving is float32 \[2, 1, 1\]"),
    ],
)
def test_a_declaration_that_differs_from_what_the_module_does_is_refused(inputs, outputs, message):
    with pytest.raises(ProtocolError, match=message):
        check_protocol(declared(inputs, outputs))
