import pytest

from edgemem.runtimes import native


@pytest.fixture(autouse=True)
def _compiled():
    if native.library() is None:
        pytest.skip(f"{native.why()}: python runtimes/native/build.py")
