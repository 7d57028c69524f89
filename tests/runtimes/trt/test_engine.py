"""Sidecars, the cache, and every engine that is refused: without a GPU, over a flavour that only acts."""

import fcntl
import json
import os
import threading
from dataclasses import replace
from enum import IntEnum

import pytest

from edgemem.bundle import open_bundle
from edgemem.errors import EdgememError, EngineError, RuntimeUnavailableError
from edgemem.runtimes.trt import cache, engine, sidecar
from edgemem.runtimes.trt.builder import Built
from edgemem.runtimes.trt.engine import build_to, open_engine, shipped_folder
from edgemem.runtimes.trt.flavour import Cuda, Flavour
from edgemem.runtimes.trt.io import expected_io
from edgemem.runtimes.trt.options import BuildOptions
from edgemem.runtimes.trt.profiles import profiles
from tests.handmade import write_reciter, write_summer

ORIN = Cuda(driver="12.6", device="Orin", compute_capability="8.7", free_bytes=4 << 30, total_bytes=8 << 30)
ABSENT = Cuda("no NVIDIA driver is loaded", "Install the driver.")


class Module:
    class TensorIOMode:
        INPUT, OUTPUT = "in", "out"


class RtxModule(Module):
    ComputeCapability = IntEnum("ComputeCapability", {"NONE": 0, "CURRENT": 1, "SM75": 75, "SM89": 89})


class Engine:
    """An engine as its plan describes it."""

    def __init__(self, name, io):
        self.name, self.io = name, {tensor.name: tensor for tensor in io}
        self.num_io_tensors = len(self.io)

    def get_tensor_name(self, index):
        return list(self.io)[index]

    def get_tensor_mode(self, name):
        return Module.TensorIOMode.INPUT if self.io[name].is_input else Module.TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name):
        return self.io[name].dtype

    def get_tensor_shape(self, name):
        return self.io[name].shape


class Acting(Flavour):
    """A flavour whose plans are text: ``deserialised`` counts those that got as far as TensorRT."""

    def __init__(self, name="tensorrt", version="10.3.0", cuda=ORIN, platform="linux-aarch64"):
        super().__init__(name, RtxModule if name == "tensorrt_rtx" else Module, version, cuda)
        self._platform = platform
        self.deserialised = 0
        self.makes = Engine

    @property
    def platform(self):
        return self._platform

    def deserialize(self, plan):
        self.cuda.require()
        self.deserialised += 1
        name, io = PLANS[plan]
        return self.makes(name, io) if self.makes else None, "Version tag does not match"


PLANS = {}
BUILDS = []


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    """A cache folder of its own, and a builder that writes plans of text, no two alike."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    PLANS.clear()
    BUILDS.clear()

    def build(bundle, graph, flavour, options, *, timing_cache=b"", announce=None, progress=None):
        BUILDS.append((graph.file, options, timing_cache))
        io = tuple(
            replace(tensor, dtype=tensor.dtype.split(" or ")[0])
            for tensor in expected_io(bundle.contract, graph, options.top_k)
        )
        plan = f"plan {len(BUILDS)} of {bundle.fingerprint}".encode() * 100
        PLANS[plan] = (bundle.contract.fingerprint, io)
        return Built(plan, io, profiles(bundle.contract, graph, options), (), b"timings")

    monkeypatch.setattr(engine, "build_engine", build)
    return tmp_path / "cache" / "edgemem" / "engines"


@pytest.fixture
def bundle(tmp_path):
    return open_bundle(write_reciter(tmp_path / "reciter"))


def only(bundle):
    return bundle.manifest.graphs[0]


def shipped(bundle, flavour, **options):
    """Put an engine into the bundle, and give the folder."""
    folder = shipped_folder(bundle, flavour)
    build_to(folder, bundle, flavour, BuildOptions(**options))
    return folder


def change(folder, **fields):
    path = folder / "model.engine.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def refused(bundle, flavour, options=None):
    """The words with which opening the engine is refused; the plan must not have reached TensorRT."""
    before = flavour.deserialised
    with pytest.raises(EngineError) as caught:
        open_engine(bundle, only(bundle), flavour, options=options)
    assert flavour.deserialised == before
    return str(caught.value)


def test_an_engine_that_lies_in_the_bundle_is_loaded_and_nothing_is_built(bundle):
    flavour = Acting()
    shipped(bundle, flavour, max_batch=4)
    BUILDS.clear()
    loaded = open_engine(bundle, only(bundle), flavour, options=BuildOptions(max_batch=2))
    assert loaded.name == bundle.contract.fingerprint
    assert BUILDS == []


def test_what_is_written_is_what_is_read(bundle):
    flavour = Acting()
    folder = shipped(bundle, flavour, max_batch=3, top_k=2, workspace_bytes=1 << 20)
    path = folder / "model.engine.json"
    read = sidecar.Sidecar.load(path)
    assert json.loads(json.dumps(read.to_json())) == json.loads(path.read_text())
    assert read.options == BuildOptions(max_batch=3, top_k=2, workspace_bytes=1 << 20)
    assert (read.compute_capabilities, read.device, read.platform) == (("8.7",), "Orin", "linux-aarch64")
    assert set(read.sources) == {"model.onnx"}


def test_engines_are_replaced_as_a_whole_and_other_folders_left_alone(bundle, tmp_path):
    flavour = Acting()
    folder = shipped(bundle, flavour)
    first = (folder / "model.plan").read_bytes()
    shipped(bundle, flavour)
    assert (folder / "model.plan").read_bytes() != first
    with pytest.raises(EngineError, match="holds something other than engines"):
        build_to(bundle.path, bundle, flavour, BuildOptions())
    (tmp_path / "file").touch()
    with pytest.raises(EngineError, match="it was not changed"):
        build_to(tmp_path / "file", bundle, flavour, BuildOptions())


MACHINES = {
    "flavour": (Acting("tensorrt_rtx", "1.7.1"), "the engine is of tensorrt, this is tensorrt_rtx"),
    "version": (Acting(version="10.7.0"), r"was built by tensorrt 10.3.0, here is 10.7.0"),
    "gpu": (
        Acting(cuda=replace(ORIN, device="RTX 4090", compute_capability="8.9")),
        "for GPUs of compute capability 8.7, this one has 8.9 (RTX 4090)",
    ),
    "platform": (Acting(platform="linux-x86_64"), "was built on linux-aarch64, this is linux-x86_64"),
}


@pytest.mark.parametrize("other", MACHINES)
def test_an_engine_of_another_machine_is_refused_with_the_command_that_rebuilds(bundle, other):
    flavour, words = MACHINES[other]
    folder = shipped(bundle, Acting())
    with pytest.raises(EngineError) as caught:
        open_engine(bundle, only(bundle), flavour, engines=folder)
    target = "rtx" if flavour.is_rtx else "local"
    assert words in str(caught.value)
    assert f"edgemem build {bundle.path} --target {target} --out {folder}" in str(caught.value)
    assert flavour.deserialised == 0


def test_the_checks_come_in_their_order(bundle):
    """An engine with everything wrong is refused for each thing in turn, as each is put right."""
    flavour = Acting()
    folder = shipped(bundle, flavour)
    right = json.loads((folder / "model.engine.json").read_text())
    wrong = {
        "flavour": "tensorrt_rtx",
        "version": "10.9.0",
        "compute_capabilities": ["8.9"],
        "platform": "windows-x86_64",
        "options": {**right["options"], "top_k": 7},
        "plan_sha256": "0" * 64,
        "contract": "0" * 64,
        "sources": {"model.onnx": "0" * 64},
    }
    change(folder, **wrong)
    with pytest.raises(RuntimeUnavailableError, match="no CUDA device"):
        open_engine(bundle, only(bundle), Acting(cuda=ABSENT))
    expected = [
        ("flavour", "is of tensorrt_rtx"),
        ("version", "was built by"),
        ("compute_capabilities", "compute capability 8.9"),
        ("platform", "was built on windows"),
        ("options", "picks the 7 largest"),
        ("plan_sha256", "SHA-256"),
        ("contract", "another contract"),
        ("sources", "built from another model.onnx"),
    ]
    for name, words in expected:
        assert words in refused(bundle, flavour)
        change(folder, **{name: right[name]})
    assert open_engine(bundle, only(bundle), flavour)


def test_a_truncated_or_changed_plan_never_reaches_tensorrt(bundle):
    flavour = Acting()
    folder = shipped(bundle, flavour)
    whole = (folder / "model.plan").read_bytes()
    (folder / "model.plan").write_bytes(whole[:-10])
    assert f"holds {len(whole) - 10} bytes, its sidecar says {len(whole)}" in refused(bundle, flavour)
    (folder / "model.plan").write_bytes(whole[:-1] + b"!")
    assert "SHA-256" in refused(bundle, flavour)
    (folder / "model.plan").unlink()
    assert "model.plan cannot be read" in refused(bundle, flavour)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "edgemem.engine", "format_version": 1}', "\x00\x01"])
def test_a_damaged_sidecar_is_refused(bundle, text):
    flavour = Acting()
    folder = shipped(bundle, flavour)
    (folder / "model.engine.json").write_text(text)
    assert "model.engine.json" in refused(bundle, flavour)


def test_an_engine_for_smaller_batches_is_refused_with_the_batch_in_the_command(bundle):
    flavour = Acting()
    shipped(bundle, flavour, max_batch=2)
    words = refused(bundle, flavour, BuildOptions(max_batch=8))
    assert "takes batches of up to 2, wanted 8" in words
    assert "--max-batch 8" in words


def test_an_engine_of_another_bundle_is_refused(bundle, tmp_path):
    flavour = Acting()
    other = open_bundle(write_summer(tmp_path / "summer"))
    folder = shipped(other, flavour)
    with pytest.raises(EngineError, match="another contract"):
        open_engine(bundle, only(bundle), flavour, engines=folder)
    retrained = open_bundle(write_reciter(tmp_path / "retrained", tokenizer=None))
    changed = replace(retrained, manifest=replace(retrained.manifest, files={"model.onnx": ("f" * 64, 1)}))
    with pytest.raises(EngineError, match=r"built from another model\.onnx"):
        open_engine(changed, only(changed), flavour, engines=shipped(bundle, flavour))


def test_what_tensorrt_does_not_load_is_an_error_with_its_words(bundle):
    flavour = Acting()
    shipped(bundle, flavour)
    flavour.makes = None
    with pytest.raises(EngineError, match=r"does not load it: Version tag does not match.*4,096 MiB"):
        open_engine(bundle, only(bundle), flavour)


def test_an_engine_that_calls_itself_something_else_is_refused(bundle):
    flavour = Acting()
    shipped(bundle, flavour)
    flavour.makes = lambda name, io: Engine("f" * 64, io)
    with pytest.raises(EngineError, match="carries contract ffffffffffff"):
        open_engine(bundle, only(bundle), flavour)


def test_an_engine_whose_tensors_are_not_the_contracts_is_refused(bundle):
    flavour = Acting()
    shipped(bundle, flavour)
    flavour.makes = lambda name, io: Engine(name, io[:-1])
    with pytest.raises(EngineError, match=r"its outputs lack \['present\.0\.sum\.total'\]"):
        open_engine(bundle, only(bundle), flavour)
    flavour.makes = lambda name, io: Engine(name, (*io[:-1], replace(io[-1], dtype="float16")))
    with pytest.raises(EngineError, match=r"'present\.0\.sum\.total' is float16, the contract has float32"):
        open_engine(bundle, only(bundle), flavour)


@pytest.mark.parametrize(
    ("capabilities", "here", "runs"),
    [((), "8.0", True), ((), "12.1", True), ((), "7.5", False), (("7.5",), "7.5", True), (("8.9",), "8.6", False)],
)
def test_a_portable_engine_runs_on_the_gpus_that_it_was_built_for(bundle, capabilities, here, runs):
    built = Acting("tensorrt_rtx", "1.7.1", ABSENT, "linux-x86_64")
    folder = shipped(bundle, built, compute_capabilities=capabilities)
    flavour = Acting("tensorrt_rtx", "1.7.1", replace(ORIN, compute_capability=here), "windows-x86_64")
    if runs:
        assert open_engine(bundle, only(bundle), flavour, engines=folder)
    else:
        with pytest.raises(EngineError, match=f"this one has {here}"):
            open_engine(bundle, only(bundle), flavour, engines=folder)


@pytest.mark.parametrize(("here", "built_for"), [("7.5", ("7.5",)), ("8.9", ("8.9",)), ("12.3", ())])
def test_a_portable_flavour_builds_for_this_gpu_alone_on_first_use_if_it_knows_it(bundle, here, built_for):
    flavour = Acting("tensorrt_rtx", "1.7.1", replace(ORIN, compute_capability=here))
    assert open_engine(bundle, only(bundle), flavour)
    assert BUILDS[0][1].compute_capabilities == built_for


def test_the_command_that_rebuilds_names_a_gpu_that_must_be_asked_for(bundle):
    folder = shipped(bundle, Acting("tensorrt_rtx", "1.7.1", ABSENT, "linux-x86_64"))
    turing = Acting("tensorrt_rtx", "1.7.1", replace(ORIN, compute_capability="7.5"), "linux-x86_64")
    with pytest.raises(EngineError, match=r"--target rtx --compute-capability 7\.5 --out"):
        open_engine(bundle, only(bundle), turing, engines=folder)


def test_the_first_use_builds_and_the_second_loads(bundle, home):
    said = []
    open_engine(bundle, only(bundle), Acting(), announce=said.append)
    open_engine(bundle, only(bundle), Acting(), announce=said.append)
    assert len(BUILDS) == 1
    assert sum("building one" in line for line in said) == 1
    assert not any(path.name.endswith(".tmp") for path in home.rglob("*"))


def test_timings_of_one_build_serve_the_next(bundle):
    open_engine(bundle, only(bundle), Acting())
    open_engine(bundle, only(bundle), Acting(), options=BuildOptions(max_batch=2))
    assert [timings for _, _, timings in BUILDS] == [b"", b"timings"]


def test_whatever_goes_into_an_engine_changes_its_key(bundle, tmp_path):
    base = (bundle, only(bundle), Acting(), BuildOptions())
    other = open_bundle(write_summer(tmp_path / "summer"))
    keys = [
        cache.key(*base),
        cache.key(other, only(other), *base[2:]),
        *(
            cache.key(*base[:2], flavour, base[3])
            for flavour in (
                Acting(version="10.7.0"),
                Acting("tensorrt_rtx"),
                Acting(cuda=replace(ORIN, compute_capability="8.9")),
                Acting(cuda=replace(ORIN, device="Orin NX")),
                Acting(platform="linux-x86_64"),
            )
        ),
        *(
            cache.key(*base[:3], options)
            for options in (BuildOptions(max_batch=2), BuildOptions(top_k=1), BuildOptions(workspace_bytes=1))
        ),
    ]
    assert len(set(keys)) == len(keys)
    assert cache.key(*base) == cache.key(*base)


def test_a_damaged_cache_entry_is_built_again(bundle, home):
    open_engine(bundle, only(bundle), Acting())
    (plan,) = home.glob("*/model.plan")
    plan.write_bytes(b"short")
    said = []
    assert open_engine(bundle, only(bundle), Acting(), announce=said.append)
    assert len(BUILDS) == 2
    assert any("cannot be used" in line and "cut short" in line for line in said)


def test_a_cached_engine_that_tensorrt_does_not_take_is_built_again(bundle):
    open_engine(bundle, only(bundle), Acting())
    flavour, said = Acting(), []
    right = flavour.makes
    made = iter([None, lambda name, io: Engine("f" * 64, io), right])
    deserialize = flavour.deserialize

    def next_one(plan):
        flavour.makes = next(made)
        return deserialize(plan)

    flavour.deserialize = next_one
    assert open_engine(bundle, only(bundle), flavour, announce=said.append)
    assert len(BUILDS) == 2
    assert "does not load it" in said[0]
    assert "carries contract" in said[1]


@pytest.mark.parametrize("name", ["model.plan", "model.engine.json"])
@pytest.mark.parametrize("what", ["fifo", "folder", "link", "garbage", "large"])
def test_whatever_is_wrong_with_a_cache_entry_it_is_built_again(bundle, home, name, what):
    open_engine(bundle, only(bundle), Acting())
    (path,) = home.glob(f"*/{name}")
    path.unlink()
    {
        "fifo": lambda: os.mkfifo(path),
        "folder": path.mkdir,
        "link": lambda: path.symlink_to("nowhere"),
        "garbage": lambda: path.write_bytes(b'{"format": "edgemem.engine"' * 9),
        "large": lambda: (path.touch(), os.truncate(path, 1 << 40)),
    }[what]()
    assert open_engine(bundle, only(bundle), Acting())
    assert len(BUILDS) == 2
    assert open_engine(bundle, only(bundle), Acting())
    assert len(BUILDS) == 2


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(b"timings"), os.mkfifo])
def test_timings_that_are_damaged_are_not_given_to_a_build(bundle, home, damage):
    open_engine(bundle, only(bundle), Acting())
    (path,) = home.glob("timing-*.bin")
    path.unlink()
    damage(path)
    open_engine(bundle, only(bundle), Acting(), options=BuildOptions(max_batch=2))
    assert [timings for _, _, timings in BUILDS] == [b"", b""]


def test_two_that_start_at_once_build_once(bundle):
    start = threading.Barrier(4)
    errors = []

    def run():
        start.wait()
        try:
            open_engine(bundle, only(bundle), Acting())
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(BUILDS) == 1


def test_who_waits_for_another_process_says_so(home):
    home.mkdir(parents=True)
    held = os.open(home / "name.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(held, fcntl.LOCK_EX)
    said = []

    def announce(line):
        said.append(line)
        fcntl.flock(held, fcntl.LOCK_UN)

    with cache.locked("name", announce) as writable:
        assert writable
    assert said == ["another process builds this engine: waiting for it"]
    os.close(held)


def test_an_engine_runs_where_nothing_can_be_cached(bundle, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    said = []
    assert open_engine(bundle, only(bundle), Acting(), announce=said.append)
    assert any("cannot be written" in line for line in said)


def test_a_failed_build_leaves_no_entry(bundle, home, monkeypatch):
    def fail(*args, **kwargs):
        raise EngineError("no memory")

    monkeypatch.setattr(engine, "build_engine", fail)
    with pytest.raises(EngineError, match="no memory"):
        open_engine(bundle, only(bundle), Acting())
    assert [path for path in home.iterdir() if path.is_dir()] == []


def test_no_folder_of_the_users_is_guessed_from_a_relative_variable(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.cache_folder() == tmp_path / ".cache" / "edgemem" / "engines"


def test_without_a_device_nothing_is_read_or_built(bundle):
    with pytest.raises(RuntimeUnavailableError, match="no NVIDIA driver is loaded") as caught:
        open_engine(bundle, only(bundle), Acting(cuda=ABSENT))
    assert isinstance(caught.value, EdgememError)
    assert BUILDS == []
