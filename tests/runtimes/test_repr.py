"""What Python shows of an object says what it is."""

from __future__ import annotations

from pathlib import Path

import edgemem
from tests.handmade import write_summer


def test_objects_name_their_model_and_where_they_stand(tmp_path: Path) -> None:
    path = write_summer(tmp_path / "summer")
    model = f"Session({str(path)!r}, onnxruntime on cpu)"
    assert repr(edgemem.open_bundle(path)) == f"Bundle({str(path)!r}: summer, 0.0 MiB)"
    with edgemem.open(path) as session:
        stream = session.stream()
        stream.step([1.0, 2.0])
        assert repr(session) == model
        assert repr(stream) == f"Stream(batch=1, position=1, {model})"
        assert repr(session.stream(2)) == f"Stream(batch=2, position=[0, 0], {model})"
        with session.pool(slots=3) as pool:
            assert repr(pool) == f"Pool(3 slots, {model})"
    assert repr(session) == f"Session({str(path)!r}, onnxruntime on cpu, closed)"
