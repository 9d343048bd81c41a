"""The embedded corpus of texts and summaries: what the functions of installed packages say of themselves.

A docstring begins with one line that sums up (PEP 257), and often goes on to describe. The descriptions of some
packages are the texts, the summary lines of *other* packages the summaries, and packages that are in neither give pairs
to measure with. No network, no download: this package depends on those it reads. Files are parsed, never imported.
"""

import ast
import contextlib
import hashlib
import importlib.metadata
import importlib.util
import inspect
import json
import logging
import os
import platform
import re
import sysconfig
import uuid
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

logger = logging.getLogger(__name__)

# Which package gives what: no package is in two rows, so no text and summary to train on are a pair.
PACKAGES = {
    "texts": ("torch", "transformers", "sympy", "stdlib", "fsspec", "joblib"),
    "summaries": ("scipy", "pandas", "networkx", "datasets", "jinja2", "PIL", "mpmath"),
    "validation": ("numpy", "sklearn", "accelerate", "huggingface_hub"),
}
DISTRIBUTIONS = {"sklearn": "scikit-learn", "PIL": "pillow"}  # where it is not the package's own name
SKIPPED = set("tests test testing conftest site-packages dist-packages idlelib lib2to3".split())
SKIPPED.add("models")  # of transformers: most of its files, which say the same over and over
COLUMNS = {"texts": ("text",), "summaries": ("summary",), "validation": ("text", "summary")}
LEAST_ROWS = {"texts": 1000, "summaries": 1000, "validation": 100}
RULES = 1  # of what is taken from a docstring, and how it is cleaned: part of the cache's name
SUMMARY_WORDS, TEXT_WORDS = (3, 16), (12, 60)


def load_docstrings(cache_dir=None, packages: Mapping[str, Sequence[str]] | None = None) -> dict:
    """The corpus as `{"texts": ..., "summaries": ..., "validation": ...}` of `datasets.Dataset`.

    Columns: `text` (12 to 60 words of description) in texts and validation; `summary` (one line of 3 to 16 words,
    without its final stop) in summaries and validation; `source`, the dotted name of what it describes. No text and no
    summary is there twice, nothing of validation is in the other two, and the order is always the same.

    Reading the packages takes about 20 seconds; the result is kept by their versions.

    Args:
        cache_dir: where it is kept; by default `docstrings` in `$HF_AUTOENCODERS_CACHE`, else in `hf_autoencoders`
            beside the other Hugging Face caches.
        packages: another assignment than `PACKAGES`: top-level packages or modules, and `"stdlib"` for the whole
            standard library. Those that are not installed are left out, said in the log.

    Raises:
        ValueError: what is installed gives too few rows; or a package is assigned twice.
    """
    import datasets

    from .images import default_cache_dir

    least = LEAST_ROWS if packages is None else dict.fromkeys(LEAST_ROWS, 1)
    packages = PACKAGES if packages is None else packages
    if set(packages) != set(PACKAGES):
        raise ValueError(f"packages must assign {', '.join(PACKAGES)}, got {', '.join(packages)}.")
    names = [name for assigned in packages.values() for name in assigned]
    if len(set(names)) < len(names):
        raise ValueError(f"A package is assigned twice, so texts and summaries would be pairs: {', '.join(names)}.")

    versions = {name: _version(name) for name in names}
    for name in [name for name, version in versions.items() if version is None]:
        logger.warning("Package %r is not installed: the docstrings corpus goes without it.", name)
    found = {part: [name for name in assigned if versions[name]] for part, assigned in packages.items()}
    key = hashlib.sha256(json.dumps([RULES, sorted(SKIPPED), found, versions]).encode()).hexdigest()[:24]
    file = (Path(cache_dir) if cache_dir else default_cache_dir().with_name("docstrings")) / f"{key}.json"
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # not there, or not whole
        logger.info("Reading the docstrings of %s: about 20 seconds, once.", ", ".join(names))
        rows = _parts(found)
        writing = file.with_name(f"{key}.writing-{uuid.uuid4().hex[:8]}")
        with contextlib.suppress(OSError):  # then the next run reads the packages again
            file.parent.mkdir(parents=True, exist_ok=True)
            writing.write_text(json.dumps(rows), encoding="utf-8")
            os.replace(writing, file)
    for part, columns in COLUMNS.items():
        if len(rows[part]) < least[part]:
            raise ValueError(
                f"The docstrings of {', '.join(found[part]) or 'no package'} give {len(rows[part])} rows for {part}, "
                f"at least {least[part]} are needed. Install {', '.join(packages[part])}, or name another corpus."
            )
        rows[part] = datasets.Dataset.from_dict(
            {name: [row[name] for row in rows[part]] for name in ("source", *columns)},
            split=datasets.NamedSplit(part),
        )
    return rows


def _version(package: str) -> str | None:
    if package == "stdlib":
        return platform.python_version()
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(DISTRIBUTIONS.get(package, package))
    return platform.python_version() if importlib.util.find_spec(package) else None  # a module of the standard library


def _parts(found: Mapping[str, Sequence[str]]) -> dict[str, list[dict]]:
    rows: dict[str, list[dict]] = {}
    seen: dict[str, set] = {"text": set(), "summary": set()}
    for part in ("validation", "texts", "summaries"):  # validation first: what it has, the others have not
        rows[part] = []
        for package in found[part]:
            for source, docstring in docstrings_of(package):
                row = {"source": source, **dict(zip(("summary", "text"), parse_docstring(docstring), strict=True))}
                if part == "validation" and not _is_pair(row["text"], row["summary"]):
                    continue
                keys = {name: row[name].lower() for name in COLUMNS[part]}
                if all(keys.values()) and not any(key in seen[name] for name, key in keys.items()):
                    rows[part].append({name: row[name] for name in ("source", *keys)})
                    for name, key in keys.items():
                        seen[name].add(key)
    return rows


# ---- from files to docstrings


def docstrings_of(package: str) -> Iterator[tuple[str, str]]:
    """(dotted name, docstring) of every module, class and function of a package, in the order of its files."""
    if package == "stdlib":
        root = Path(sysconfig.get_path("stdlib"))
        folders = [root]
    else:
        spec = importlib.util.find_spec(package)
        if not spec.submodule_search_locations:
            yield from _docstrings_in(Path(spec.origin), package)
            return
        folders = [Path(folder) for folder in spec.submodule_search_locations]
    for folder in folders:
        for file in sorted(folder.rglob("*.py")):
            inner = file.relative_to(folder).with_suffix("").parts
            if not SKIPPED.intersection(inner):
                names = inner[:-1] if inner[-1] == "__init__" else inner
                yield from _docstrings_in(file, ".".join(([] if package == "stdlib" else [package]) + list(names)))


def _docstrings_in(file: Path, module: str) -> Iterator[tuple[str, str]]:
    try:
        source = file.read_text(encoding="utf-8")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of others' escapes
            tree = ast.parse(source)
    except (OSError, ValueError, SyntaxError, RecursionError):
        return

    def walk(node, name: str):
        docstring = ast.get_docstring(node, clean=False)
        if docstring:
            yield name, docstring
        for child in node.body:
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield from walk(child, f"{name}.{child.name}")

    yield from walk(tree, module)


# ---- from a docstring to prose

_MARKUP = [
    (re.compile(r":[a-z:+]+:`~?\.?([^`<]*?)\s*(?:<[^`]*>)?`"), r"\1"),  # :class:`~x.Y`, :ref:`text <target>`
    (re.compile(r"\[`~?([^`\]]+)`\](?:\([^)]*\))?"), r"\1"),  # [`~x.Y`]
    (re.compile(r"\[([^\]]+)\]\([^)]*\)"), r"\1"),  # [text](address)
    (re.compile(r"`([^`<]+?)\s*<[^`>]*>`_{1,2}"), r"\1"),  # `text <address>`_
    (re.compile(r"``([^`]+)``"), r"\1"),
    (re.compile(r"`([^`]+)`_{0,2}"), r"\1"),
    (re.compile(r"\*\*([^*\s][^*]*)\*\*"), r"\1"),
    (re.compile(r"(?<![\w*])\*([^*\s][^*]*)\*(?![\w*])"), r"\1"),
    (re.compile(r"\s*\[[\w#*,\- ]+\]_"), ""),  # [1]_
    (re.compile(r"\s*\((?:see|cf\.?)?\s*(?:\[[\d, ]+\])+\)|\s*\[\d+\]"), ""),
    (re.compile(r"(?<=\w)_(?=[\s.,;:]|$)"), ""),  # word_
    (re.compile(r"\\(?=[*_`|\s])"), ""),
    (re.compile(r"(?<=[a-z]) -- (?=[a-z])"), " - "),
]
_SECTION = re.compile(
    r"(?:(?:args?|arguments?|parameters?|params?|keyword arguments?|kwargs|returns?|yields?|raises?|examples?|usage|"
    r"notes?|warnings?|see also|references?|attributes?|methods?|inputs?|outputs?|shape|todo|deprecated|tips?|"
    r"authors?|history|copyright|license|syntax|options|implementation|algorithm|details|explanation|description)\b"
    r"[^.]{0,30}:?$)|\w+ \([^)]*\)\s*:|\.\. |>>> |\$ |@|:\w+[^:]*:|[-=~*#^+_]{3,}|\||[-*+•] |\(?\w{1,2}[.)] |#|<|"
    r"\[\w+\] ",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')]?\s+(?=[\"'(]?[A-Z])")
_ABBREVIATION = re.compile(r"(?:\b(?:e\.g|i\.e|etc|vs|cf|resp|approx|Fig|Eq|Sec|No|Dr|al|St)\.|\b[A-Z]\.)$")
_ODD = re.compile(
    r"[`\\{}$|^~=<>@#\[\]]|https?:|www\.|::|->|\.\.\.|--|\bdoctest\b|\.\.|\boptional\)|\bNOTE\b|\bNote:|[^\x20-\x7e]"
)
_PLAIN_WORD = re.compile(r"[\"'(]*[A-Za-z][a-z]*(?:['-][A-Za-z]?[a-z]+)*['\")]*[.,;:!?]*[\"')]*|[AI]")
_SMALL = set(
    "a an and are as at be been before both but by can each every for from has have if in into is it its no not of on "
    "one only or over such than that the their them then there these they this to two using when where which while "
    "whether will with within without you your".split()
)


def parse_docstring(docstring: str) -> tuple[str, str]:
    """(summary, text) of a docstring, as plain English without markup; "" for what it does not have.

    The summary is the first sentence where it has 3 to 16 words, without its final stop; the text is the whole
    sentences that follow it, up to 60 words, where they have at least 12, before any list, section or example.
    """
    paragraphs = list(_paragraphs(inspect.cleandoc(docstring)))
    if not paragraphs:
        return "", ""
    first, *others = _sentences(paragraphs[0])
    summary = first.rstrip(".").rstrip() if _is_prose(first, SUMMARY_WORDS, 0.7, whole=len(paragraphs) > 1) else ""
    text, count = [], 0
    for sentence in [*others, *(sentence for paragraph in paragraphs[1:] for sentence in _sentences(paragraph))]:
        if sentence.startswith("Read more in"):  # the user guide
            continue
        count += len(sentence.split())
        if count > TEXT_WORDS[1] or not sentence.endswith((".", "!", "?")) or _ODD.search(sentence):
            break
        text.append(sentence)
    text = " ".join(text)
    if not _is_prose(text, TEXT_WORDS, 0.8) or (summary and summary.lower() in text.lower()):
        text = ""
    return summary, text


def _paragraphs(docstring: str) -> Iterator[str]:
    """The paragraphs of prose a docstring begins with, each on one line, without markup."""
    for block in re.split(r"\n[ \t]*\n", docstring.expandtabs()):
        lines = block.splitlines() or [" "]
        if any(_SECTION.match(line.strip()) for line in lines) or lines[0][:1].isspace():
            return
        paragraph = " ".join(block.split())
        for pattern, replacement in _MARKUP:
            paragraph = pattern.sub(replacement, paragraph)
        yield paragraph
        if paragraph.endswith(":"):  # what follows is what it announces: a list, code
            return


def _sentences(paragraph: str) -> list[str]:
    sentences, start = [], 0
    for end in _SENTENCE_END.finditer(paragraph):
        sentence = paragraph[start : end.end()].strip()
        if not _ABBREVIATION.search(sentence):
            sentences.append(sentence)
            start = end.end()
    return [*sentences, paragraph[start:].strip()]


def _is_prose(text: str, num_words: tuple[int, int], plain: float, whole: bool = True) -> bool:
    """Whether a text reads as English: so many words, most of them plain ones, among them small ones, no markup."""
    words = text.split()
    if not num_words[0] <= len(words) <= num_words[1] or _ODD.search(text) or not text[0].isalpha():
        return False
    if not text[0].isupper() or text.endswith((":", ",", ";")) or text.count("(") != text.count(")"):
        return False
    if re.search(r"\b(?:TODO|FIXME|XXX)\b", text) or text.count('"') % 2:
        return False
    num_plain = sum(bool(_PLAIN_WORD.fullmatch(word)) for word in words)
    num_small = sum(word.lower().strip("\"'().,") in _SMALL for word in words)
    return num_plain >= plain * len(words) and num_small >= (1 if len(words) < 12 else len(words) // 6)


def _is_pair(text: str, summary: str) -> bool:
    """Whether both are there, and the summary can be told from the text: it shares a third of its content words."""
    content = {word[:6] for word in re.findall(r"[a-z]+", summary.lower()) if word not in _SMALL}
    shared = content & {word[:6] for word in re.findall(r"[a-z]+", text.lower())}
    return bool(text and summary) and 3 * len(shared) >= len(content)
