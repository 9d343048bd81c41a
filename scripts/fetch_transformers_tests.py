"""Fetch the model test-suite of the installed transformers: its test files ship in the source distribution only.

Downloads that distribution once from the package index and keeps its `tests` folder as
`.cache/transformers-<version>/tests`; prints the folder. With the folder there, does nothing.
"""

import importlib.metadata
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parents[1]


def fetch(cache: Path = ROOT / ".cache") -> Path:
    """Return the folder with the test files of the installed transformers, downloading them if they are not there.

    Args:
        cache: folder that keeps the files of each version.
    """
    version = importlib.metadata.version("transformers")
    name = f"transformers-{version}"
    target = cache / name / "tests"
    if target.is_dir():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        download = [sys.executable, "-m", "pip", "download", "-qq", "--no-deps", "--no-binary", "transformers"]
        subprocess.run([*download, "--dest", scratch, f"transformers=={version}"], check=True)
        with tarfile.open(Path(scratch) / f"{name}.tar.gz") as archive:
            # Only plain files below <name>/tests/, so nothing can land outside the scratch folder.
            for member in archive:
                parts = PurePosixPath(member.name).parts
                if member.isfile() and parts[:2] == (name, "tests") and ".." not in parts:
                    path = Path(scratch, *parts)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(archive.extractfile(member).read())
        target.parent.mkdir(exist_ok=True)
        (Path(scratch) / name / "tests").rename(target)
    return target


if __name__ == "__main__":
    print(fetch())
