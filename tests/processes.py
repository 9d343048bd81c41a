"""Child processes: what a test must see happen in a fresh interpreter."""

import json
import os
import subprocess
import sys
from pathlib import Path

# The first line of a script that must not find this package, even where it is installed.
WITHOUT_PACKAGE = "import sys; sys.modules['hf_autoencoders'] = None\n"


def run_python(code: str, folder: Path, env: dict | None = None, arguments: dict | None = None) -> dict:
    """Run `code` in an isolated interpreter (`python -I`), in an empty folder below `folder`.

    The script has `args`, a dict, and what it leaves in the dict `answer` comes back (as JSON), along with `output`,
    all that it printed. When it fails, the test fails. There is no standard input, so that a prompt is an error.
    """
    cwd = folder / "cwd"
    cwd.mkdir(parents=True, exist_ok=True)
    script = "import json, sys; args, answer = json.loads(sys.argv[1]), {}\n" + code
    script += "\nopen(args['answer_file'], 'w').write(json.dumps(answer))\n"
    file = folder / "answer.json"
    arguments = json.dumps({**(arguments or {}), "answer_file": str(file)}, default=str)
    done = subprocess.run(
        [sys.executable, "-I", "-c", script, arguments],
        cwd=cwd,
        env={"OMP_NUM_THREADS": "1", **(os.environ if env is None else env)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, f"the child process failed:\n{done.stdout[-8000:]}"
    return json.loads(file.read_text()) | {"output": done.stdout}
