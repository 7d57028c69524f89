"""Shapes that engines are compiled for."""

from hypothesis import given
from hypothesis import strategies as st

from edgemem.bundle import GraphFile
from edgemem.contract import Contract, InputSpec, OutputSpec, StateSpec
from edgemem.runtimes.trt.options import BuildOptions
from edgemem.runtimes.trt.profiles import profile_for, profiles


def contract(max_chunk=8, **changes):
    return Contract(
        **{
            "input_specs": (InputSpec("features", (3,)),),
            "output_specs": (OutputSpec("predictions", (2,)),),
            "states": (StateSpec("0.window.k", (2, 16, 4), update="append"), StateSpec("0.mean.sum", (5,))),
            "max_chunk": max_chunk,
            "output_indices": True,
            **changes,
        }
    )


@given(max_time=st.integers(2, 16), batch=st.integers(1, 64))
def test_profile_0_is_one_step_and_profile_1_any_chunk(max_time, batch):
    one, chunk = profiles(contract(max_time), GraphFile("model.onnx", 1, max_time), BuildOptions(max_batch=batch))
    assert (one["features"].smallest, one["features"].largest) == ((1, 1, 3), (batch, 1, 3))
    assert (chunk["features"].smallest, chunk["features"].largest) == ((1, 1, 3), (batch, max_time, 3))
    assert (one["output_indices"].smallest, one["output_indices"].largest) == ((1,), (1,))
    assert (chunk["output_indices"].smallest, chunk["output_indices"].largest) == ((1,), (max_time,))
    for profile in (one, chunk):
        assert (profile["position"].smallest, profile["position"].largest) == ((1,), (batch,))
        assert profile["past.0.window.k"].largest == (batch, 2, 16, 4)
        assert profile["past.0.mean.sum"].smallest == (1, 5)


@given(max_time=st.integers(1, 16), time=st.integers(1, 16))
def test_the_profile_of_a_call_holds_its_shape(max_time, time):
    for low, high in ((1, max_time), (2, max(2, max_time))):
        graph = GraphFile("model.onnx", low, high)
        if low <= time <= high:
            shapes = profiles(contract(16), graph, BuildOptions())[profile_for(graph, time)]["features"]
            assert shapes.smallest[1] <= time <= shapes.largest[1]


def test_a_graph_of_one_step_has_one_profile():
    assert len(profiles(contract(1), GraphFile("step.onnx", 1, 1), BuildOptions())) == 1


def test_a_graph_of_chunks_alone_has_one_profile_with_its_range():
    (only,) = profiles(contract(8), GraphFile("chunk.onnx", 2, 8), BuildOptions())
    assert (only["features"].smallest, only["features"].largest) == ((1, 2, 3), (1, 8, 3))


def test_a_model_without_position_and_indices_has_no_such_inputs():
    states = (StateSpec("0.mean.sum", (5,)), StateSpec("position", (), "int64"))
    one, _ = profiles(
        contract(states=states, position="none", output_indices=False), GraphFile("m", 1, 8), BuildOptions()
    )
    assert set(one) == {"features", "past.0.mean.sum", "past.position"}
    assert one["past.position"].largest == (1,)


def test_a_growing_state_runs_from_empty_to_the_length_allowed():
    states = (StateSpec("0.full.k", (2, None, 4)),)
    one, _ = profiles(contract(states=states), GraphFile("m", 1, 8), BuildOptions(max_length=100))
    assert (one["past.0.full.k"].smallest, one["past.0.full.k"].largest) == ((1, 2, 0, 4), (1, 2, 100, 4))
