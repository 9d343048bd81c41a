"""What every test shares: no network, caches of its own, one thread per process, a GPU marker.

The environment is set before anything imports torch or huggingface_hub, because both read it once, at import.
Child processes (training scripts, clean-process loads) inherit it.
"""

import atexit
import importlib.metadata
import os
import shutil
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

if "HFAE_TEST_HOME" not in os.environ:  # the first process of the run makes it; xdist workers and children inherit it
    _home = tempfile.mkdtemp(prefix="hfae-tests-")
    atexit.register(shutil.rmtree, _home, ignore_errors=True)
    os.environ["HFAE_TEST_HOME"] = _home
_home = os.environ["HFAE_TEST_HOME"]
os.environ["HF_HOME"] = f"{_home}/huggingface"
os.environ["XDG_CACHE_HOME"] = f"{_home}/cache"
os.environ["MPLBACKEND"] = "Agg"
os.environ["OMP_NUM_THREADS"] = "1"  # more threads than free cores makes small operations many times slower
for _name in ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_PROGRESS_BARS"):
    os.environ.setdefault(_name, "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
for _name in ("HF_DATASETS_CACHE", "HF_HUB_CACHE", "HF_MODULES_CACHE", "HF_TOKEN", "HF_ENDPOINT"):
    os.environ.pop(_name, None)

# The model tests of transformers itself, unpacked from its source distribution by scripts/fetch_transformers_tests.py.
os.environ.setdefault(
    "HFAE_TRANSFORMERS_TESTS",
    str(ROOT / ".cache" / f"transformers-{importlib.metadata.version('transformers')}" / "tests"),
)

import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)


def pytest_configure(config):
    for mark in ("accelerate_tests", "flash_attn_test", "flash_attn_3_test", "flash_attn_4_test", "torch_compile_test"):
        config.addinivalue_line("markers", f"{mark}: of the tests of transformers")


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def _seeded():
    """Every test starts from the same random state, whatever ran before it."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def root() -> Path:
    """The folder of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def script_env() -> dict:
    """Environment for child processes that run the repository's scripts: on the CPU, offline, package importable."""
    env = dict(os.environ)
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), env.get("PYTHONPATH")]))
    env["ACCELERATE_USE_CPU"] = "true"
    return env
