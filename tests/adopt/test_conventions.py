"""How other exporters lay out streaming models: adopted with one command, without naming a state."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

import edgemem
from edgemem.adopt import AdoptOptions, adopt
from tests.adopt.models import write

NEMO = """
nemo (float[batch, 4, time] audio_signal, int64[batch] length, float[2, batch, 3, 4] cache_last_channel,
      int64[batch] cache_last_channel_len)
    => (float[batch, 4, out] outputs, int64[batch] encoded_lengths, float[2, batch, 3, 4] cache_last_channel_next,
        int64[batch] cache_last_channel_next_len)
{
    time_axis = Constant <value = int64[1] {2}> ()
    new = ReduceSum(audio_signal, time_axis)
    row = Transpose<perm = [0, 2, 1]>(new)
    layers = Constant <value = int64[1] {0}> ()
    one = Unsqueeze(row, layers)
    both = Concat<axis = 0>(one, one)
    from = Constant <value = int64[1] {1}> ()
    to = Constant <value = int64[1] {9}> ()
    kept = Slice(cache_last_channel, from, to, time_axis)
    cache_last_channel_next = Concat<axis = 2>(kept, both)
    all = ReduceSum<keepdims = 0>(cache_last_channel_next, layers)
    past = Transpose<perm = [0, 2, 1]>(all)
    outputs = Identity(past)
    step = Constant <value = int64 {1}> ()
    cache_last_channel_next_len = Add(cache_last_channel_len, step)
    encoded_lengths = Identity(length)
}
"""


def test_nemo_caches_with_the_batch_on_the_second_axis_and_a_counter(tmp_path):
    options = AdoptOptions(fixed={"length": 2}, takes=2, steps=8)
    bundle = adopt(write(tmp_path / "nemo.onnx", NEMO), tmp_path / "bundle", options)
    states = {state.input_name: state for state in bundle.contract}
    assert states["cache_last_channel"].output_name == "cache_last_channel_next"
    assert states["cache_last_channel"].batch_axis == 1
    assert states["cache_last_channel_len"].output_name == "cache_last_channel_next_len"
    assert bundle.contract.input.takes == 2


def icefall(layers):
    """Caches of several kinds a layer, their outputs in another order; each adds its own multiple of the frame."""
    kinds = {"cached_key": [2, "N", 3], "cached_val1": [2, "N", 3], "cached_conv": ["N", 3]}

    def declared(name, shape):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    inputs, outputs, parts = [declared("x", ["N", 1, 3])], [], ["row"]
    nodes = [helper.make_node("Squeeze", ["x", "axis"], ["row"])]
    for index, (kind, layer) in enumerate((kind, layer) for kind in kinds for layer in range(layers)):
        name, new, shape = f"{kind}_{layer}", f"new_{kind}_{layer}", kinds[kind]
        inputs.append(declared(name, shape))
        outputs.append(declared(new, shape))
        share = helper.make_tensor("", TensorProto.FLOAT, [], [index + 1.0])
        nodes += [
            helper.make_node("Constant", [], [f"w{index}"], value=share),
            helper.make_node("Mul", ["row", f"w{index}"], [f"part{index}"]),
            helper.make_node("Add", [name, f"part{index}"], [new]),
        ]
        if len(shape) > 2:
            nodes.append(helper.make_node("ReduceSum", [new, "first"], [f"sum{index}"], keepdims=0))
        parts.append(f"sum{index}" if len(shape) > 2 else new)
    nodes.append(helper.make_node("Sum", parts, ["total"]))
    nodes.append(helper.make_node("Unsqueeze", ["total", "axis"], ["encoder_out"]))
    constants = [helper.make_tensor(n, TensorProto.INT64, [1], [v]) for n, v in (("axis", 1), ("first", 0))]
    results = [declared("encoder_out", ["N", 1, 3]), *reversed(outputs)]
    graph = helper.make_graph(nodes, "zipformer", inputs, results, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_many_caches_a_layer_pair_by_name_in_whatever_order_they_are(tmp_path):
    onnx.save(icefall(6), tmp_path / "encoder.onnx")
    bundle = adopt(tmp_path / "encoder.onnx", tmp_path / "bundle", AdoptOptions(steps=5))
    assert len(bundle.contract.states) == 18
    assert all(state.output_name == f"new_{state.input_name}" for state in bundle.contract)
    assert {state.batch_axis for state in bundle.contract} == {0, 1}
    assert bundle.contract.has_batches


GENAI = """
genai (float[batch, 1, 3] x, float[batch, 3] "past_key_values.0.conv_state",
       float[batch, 3] "past_key_values.1.conv_state")
    => (float[batch, 1, 3] y, float[batch, 3] "present.0.conv_state", float[batch, 3] "present.1.conv_state")
{
    axis = Constant <value = int64[1] {1}> ()
    row = Squeeze(x, axis)
    "present.0.conv_state" = Add("past_key_values.0.conv_state", row)
    "present.1.conv_state" = Sub("past_key_values.1.conv_state", "present.0.conv_state")
    y = Unsqueeze("present.1.conv_state", axis)
}
"""


def test_genai_states_pair_by_their_numbers(tmp_path):
    bundle = adopt(write(tmp_path / "genai.onnx", GENAI), tmp_path / "bundle", AdoptOptions(steps=5))
    for state in bundle.contract:
        assert state.output_name == state.input_name.replace("past_key_values", "present")


POLICY = """
robot (float[1, 5] obs, float[1, 1, 4] h_in, float[1, 1, 4] c_in)
    => (float[1, 2] actions, float[1, 1, 4] h_out, float[1, 1, 4] c_out)
<float[1, 16, 5] W, float[1, 16, 4] R, float[4, 2] head>
{
    first = Constant <value = int64[1] {0}> ()
    x = Unsqueeze(obs, first)
    all, h_out, c_out = LSTM<hidden_size = 4>(x, W, R, , , h_in, c_in)
    row = Squeeze(h_out, first)
    actions = MatMul(row, head)
}
"""


@pytest.mark.parametrize("unrolled", [False, True])
def test_a_robots_recurrent_policy_without_batch_or_time_axis(tmp_path, unrolled):
    made = onnx.parser.parse_model('<ir_version: 8, opset_import: ["" : 17]>' + POLICY)
    rng = np.random.default_rng(0)
    del made.graph.initializer[:]
    for name, shape in (("W", (1, 16, 5)), ("R", (1, 16, 4)), ("head", (4, 2))):
        made.graph.initializer.append(onnx.numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name))
    onnx.save(made, tmp_path / "policy.onnx")
    bundle = adopt(tmp_path / "policy.onnx", tmp_path / "bundle", AdoptOptions(steps=5, unroll=unrolled))
    session = ort.InferenceSession(tmp_path / "policy.onnx", providers=["CPUExecutionProvider"])
    h = c = np.zeros((1, 1, 4), np.float32)
    with edgemem.open(bundle.path) as opened:
        stream = opened.stream()
        for obs in rng.standard_normal((20, 1, 5)).astype(np.float32):
            actions, h, c = session.run(None, {"obs": obs, "h_in": h, "c_in": c})
            np.testing.assert_allclose(stream.step(obs), actions, atol=1e-6)
