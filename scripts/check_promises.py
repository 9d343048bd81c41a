"""Check the promises that files make to each other; part of `make check` and of the tests.

Each check is a function that yields one line per broken promise: where it is and what was expected.
"""

import ast
import functools
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "hf_autoencoders"
MODELS = PACKAGE / "models"
IMPORT_BUDGET_S = 0.1

# Methods that override or imitate those of torch and transformers, which document them.
INHERITED = {"extra_repr", "forward", "from_pretrained", "get_input_embeddings", "is_custom_code", "load_state_dict"}
INHERITED |= {"postprocess", "preprocess", "set_input_embeddings", "state_dict", "to_dict"}

# Code in models/ travels to the Hub and must run where only these are installed.
MODEL_PACKAGES = {"torch", "transformers", "numpy", "PIL", "huggingface_hub", "safetensors"}
OPTIONAL_MODEL_PACKAGES = {"soxr", "constriction"}  # within a `try` only: there transformers does not ask for them
# import name -> distribution name, where the two differ
DISTRIBUTIONS = {"PIL": "pillow", "skimage": "scikit-image", "sklearn": "scikit-learn", "yaml": "pyyaml"}


@functools.cache
def tracked_files() -> tuple[Path, ...]:
    """Every file that git tracks or would track (new and not ignored); in a copy without git, all that may be such."""
    if not (ROOT / ".git").exists():
        made = {".venv", ".cache", "__pycache__", "runs", "out"}
        return tuple(path for path in sorted(ROOT.rglob("*")) if path.is_file() and not made & set(path.parts))
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return tuple(path for name in listing.split("\0") if name and (path := ROOT / name).is_file())


def python_files(folder: Path) -> list[Path]:
    """The tracked Python files below a folder."""
    return [path for path in tracked_files() if path.suffix == ".py" and folder in path.parents]


def where(path: Path, node: ast.AST | None = None) -> str:
    """`file:line` relative to the repository."""
    return f"{path.relative_to(ROOT)}:{node.lineno}" if node is not None else str(path.relative_to(ROOT))


def imported_modules(node: ast.AST) -> list[str]:
    """Absolute module names that an import statement names (none for a relative one)."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.level == 0:
        return [node.module]
    return []


def check_variants_are_complete() -> Iterator[str]:
    """Every registry row has configuration, script and tests (of its family), and recipe, card and README row."""
    from hf_autoencoders.registry import VARIANTS

    readme = (ROOT / "README.md").read_text()
    for model_type, variant in VARIANTS.items():
        name, family = variant.name, variant.family
        if not model_type.startswith("hfae_"):
            yield f"registry: model_type {model_type!r} of {name} must start with 'hfae_'"
        for pattern in (
            f"hf_autoencoders/models/configuration_{family}.py",
            f"training/train_{family}.py",
            f"training/recipes/{name}_*.yaml",
            f"model_cards/{name}.md",
            f"tests/test_{family}.py",
        ):
            if not any(ROOT.glob(pattern)):
                yield f"registry: variant {name} has no file {pattern}"
        if f"`{model_type}`" not in readme:
            yield f"README.md: the table of variants has no row that names `{model_type}`"


def check_models_travel_alone() -> Iterator[str]:
    """Files in models/ import siblings by `from .sibling import Name`, and nothing that a Hub user may lack."""
    siblings = {path.stem for path in MODELS.glob("*.py")}
    allowed = MODEL_PACKAGES | set(sys.stdlib_module_names)
    for path in python_files(MODELS):
        if path.parent != MODELS:
            yield f"{where(path)}: models/ is flat; folders in it do not travel to the Hub"
            continue
        if path.name == "__init__.py":
            continue
        source = path.read_text()
        imported_siblings, tree = set(), ast.parse(source)
        tried = {id(node) for block in ast.walk(tree) if isinstance(block, ast.Try) for node in block.body}
        for node in ast.walk(tree):
            optional = OPTIONAL_MODEL_PACKAGES if id(node) in tried else set()
            for module in imported_modules(node):
                if module.split(".")[0] not in allowed | optional:
                    yield f"{where(path, node)}: imports {module}; allowed are siblings and {sorted(MODEL_PACKAGES)}"
            if isinstance(node, ast.ImportFrom) and node.level:
                if node.level > 1 or not node.module or "." in node.module:
                    yield f"{where(path, node)}: relative imports must read `from .sibling import Name`"
                elif node.module not in siblings:
                    yield f"{where(path, node)}: models/ has no {node.module}.py"
                else:
                    imported_siblings.add(node.module)
            if isinstance(node, ast.ImportFrom) and node.module == "__future__":
                yield f"{where(path, node)}: string annotations switch the validation of @strict configurations off"
        # transformers finds the files to copy by this pattern, in docstrings too.
        for module in set(re.findall(r"^\s*from\s+\.(\S+)\s+import", source, re.MULTILINE)) - imported_siblings:
            yield f"{where(path)}: text that reads `from .{module} import` is taken for an import by transformers"


def check_public_docstrings() -> Iterator[str]:
    """Public modules, classes, functions and methods of the package say what they are."""
    kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for path in python_files(PACKAGE):
        tree = ast.parse(path.read_text())
        if not ast.get_docstring(tree) and tree.body:
            yield f"{where(path)}: the module has no docstring"
        public = [node for node in tree.body if isinstance(node, kinds) and not node.name.startswith("_")]
        for node in public:
            if not ast.get_docstring(node):
                yield f"{where(path, node)}: {node.name} has no docstring"
            if isinstance(node, ast.ClassDef):
                for method in node.body:
                    inherited = method.name in INHERITED if isinstance(method, kinds) else True
                    if (
                        not inherited
                        and not method.name.startswith(("_", "validate_"))
                        and not ast.get_docstring(method)
                    ):
                        yield f"{where(path, method)}: {node.name}.{method.name} has no docstring"


def declared_dependencies() -> tuple[set[str], set[str]]:
    """Distribution names that pyproject.toml declares: (always installed, in extras)."""
    text = (ROOT / "pyproject.toml").read_text()
    required = re.search(r"^dependencies = \[(.*?)^\]", text, re.DOTALL | re.MULTILINE).group(1)
    optional = re.search(r"^\[project.optional-dependencies\](.*?)^\[", text, re.DOTALL | re.MULTILINE).group(1)
    names = r"\"([A-Za-z0-9_.-]+)(?:\[[^]]*\])?[<>=!~]"
    return tuple({n.lower().replace("_", "-") for n in re.findall(names, part)} for part in (required, optional))


def check_imports_are_declared() -> Iterator[str]:
    """What the package and the training scripts import is in pyproject.toml; extras only inside functions."""
    required, optional = declared_dependencies()
    local = {"hf_autoencoders"} | {path.stem for path in (ROOT / "training").glob("*.py")}
    for path in python_files(PACKAGE) + python_files(ROOT / "training"):
        tree = ast.parse(path.read_text())
        inside = {id(n) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for n in ast.walk(f)}
        for node in ast.walk(tree):
            for module in imported_modules(node):
                top = module.split(".")[0]
                if top in local or top in sys.stdlib_module_names:
                    continue
                distribution = DISTRIBUTIONS.get(top, top).lower().replace("_", "-")
                if distribution not in required and not (distribution in optional and id(node) in inside):
                    yield f"{where(path, node)}: imports {top}, which pyproject.toml does not promise at this place"


def check_import_is_light() -> Iterator[str]:
    """`import hf_autoencoders` adds at most 0.1 s to `import transformers` and pulls in no heavy package."""
    code = """
import sys, time, transformers
before, start = set(sys.modules), time.perf_counter()
import hf_autoencoders
seconds = time.perf_counter() - start
print(seconds, *{name.split(".")[0] for name in set(sys.modules) - before})
"""
    too_heavy = {"torch", "datasets", "accelerate", "sklearn", "pandas", "pyarrow", "matplotlib"}
    seconds, heavy = [], set()
    for _ in range(3):
        run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
        if run.returncode:
            yield f"import hf_autoencoders fails: {run.stderr.strip().splitlines()[-1]}"
            return
        first, *rest = run.stdout.split()
        seconds.append(float(first))
        heavy.update(too_heavy & set(rest))
    if heavy:
        yield f"import hf_autoencoders loads {', '.join(sorted(heavy))}; import them where they are used"
    if statistics.median(seconds) > IMPORT_BUDGET_S:
        yield f"import hf_autoencoders takes {statistics.median(seconds):.3f} s, the budget is {IMPORT_BUDGET_S} s"


def check_no_machine_paths() -> Iterator[str]:
    """Nothing tracked names a folder of somebody's machine or the address of a package index."""
    places = re.compile(
        r"(?<![\w.$}>-])/(?:work|home|root|Users|mnt)/\w|pypi\.org|pythonhosted\.org|download\.pytorch\.org"
    )
    for path in tracked_files():
        if path == Path(__file__).resolve() or path.suffix in {".png", ".parquet"}:
            continue
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), start=1):
            if match := places.search(line):
                yield f"{where(path)}:{number}: names {match.group()!r}, which exists on one machine only"


def check_links() -> Iterator[str]:
    """Relative links in Markdown files lead to files that exist, `make` targets to targets of the Makefile."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for path in tracked_files():
        if path.suffix != ".md":
            continue
        text = path.read_text()
        for link in re.findall(r"\]\(([^)\s#]+)[^)]*\)", text) + re.findall(r"(?:src|href)=\"([^\"#]+)\"", text):
            # model cards are templates that move to the Hub: {{ ... }} are filled in when they are published
            if not re.match(r"[a-z]+:|\{", link) and not (path.parent / link).exists():
                yield f"{where(path)}: links to {link}, which does not exist"
        for target in re.findall(r"(?:^|`)make ([a-z][a-z-]*)", text, re.MULTILINE):
            if target not in targets:
                yield f"{where(path)}: names `make {target}`, which is no target of the Makefile"


def check_readme_numbers() -> Iterator[str]:
    """The measured numbers in the README are those of docs/results."""
    from fill_readme import filled

    path = ROOT / "README.md"
    if path.read_text() != filled(path.read_text()):
        yield "README.md: the table of results differs from docs/results; run `make style`"


CHECKS = [value for name, value in list(globals().items()) if name.startswith("check_")]


def main() -> int:
    """Run every check, print what is broken, and return the exit status."""
    broken = 0
    for check in CHECKS:
        problems = list(check())
        print(f"{'FAILED' if problems else 'ok':<7}{check.__name__.removeprefix('check_').replace('_', ' ')}")
        for problem in problems:
            print(f"       {problem}")
        broken += len(problems)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
