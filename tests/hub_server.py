"""A small Hugging Face Hub on loopback, for tests that must not (or cannot) reach huggingface.co.

It speaks the part of the Hub's HTTP protocol that the real `huggingface_hub` client uses, so that `create_repo`,
`create_commit`, `upload_folder`, `push_to_hub`, `hf_hub_download`, `snapshot_download` and
`from_pretrained("owner/name")` run for real, over HTTP. Written from the client's source, with the standard library and
PyYAML (which `huggingface_hub` needs anyway).

There are users with read or write tokens, organizations, private repos, branches, tags and pull-request refs, regular
and LFS files, a check of model cards, ETags, byte ranges, and redirects of LFS files to a "CDN" on a second port
(another origin: the client must not send its token there). There is no Xet storage (run the client with
HF_HUB_DISABLE_XET=1), no gating, no discussions, no git.

`env()` is the environment for a child process (huggingface_hub reads HF_ENDPOINT once, when it is imported):

    with HubServer(tmp_path, [User("alice", "alice-token")]) as hub:
        hub.add_fault("drop", "*/model.safetensors", after=1000)
        subprocess.run([sys.executable, "load.py"], env=hub.env("alice-token", home=tmp_path / "home"), check=True)
        assert not any(request["token"] for request in hub.log if request["server"] == "cdn")

Faults strike `times` times (-1: always) requests with that method (GET; "*" for any) whose path matches the glob;
`after` is half of the answer unless given:

    status    answer with `status` (503), do nothing          delay     wait `seconds`, then answer as usual
    drop      close the connection after `after` bytes of     reset     the same, with a TCP reset
              a file; do what was asked but never answer      norange   ignore the Range header
    truncate  end the file after `after` bytes                corrupt   invert the byte at `after` in the file

`hub.log` is the log of requests, without any token.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import re
import secrets
import socket
import struct
import sys
import tempfile
import threading
import time
import traceback
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlencode, urlsplit

import yaml

LFS_SUFFIXES = (
    "7z arrow bin bz2 ckpt ftz gz h5 joblib model msgpack npy npz onnx ot parquet pb pickle pkl pt pth rar "
    "safetensors tar tflite tgz wasm xz zip zst"
).split()
GITATTRIBUTES = "".join(f"*.{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES)
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize {}\n"
SHA256 = "[0-9a-f]{64}"
CHUNK = 1 << 20


class HubError(Exception):
    """An error answer; `code` is what the client turns into RepositoryNotFoundError and the like."""

    def __init__(self, status: int, message: str, code: str = "", headers: dict | None = None):
        super().__init__(message)
        self.status, self.message = status, message
        text = " ".join(message.encode("ascii", "replace").decode().split())  # fit for a header
        self.headers = {"X-Error-Message": text, **({"X-Error-Code": code} if code else {}), **(headers or {})}


@dataclass
class User:
    name: str
    token: str
    role: str = "write"  # or "read"
    orgs: list[str] = field(default_factory=list)

    def owns(self, namespace: str) -> bool:
        return namespace == self.name or namespace in self.orgs


@dataclass
class Fault:
    kind: str
    match: str = "*"
    method: str = "GET"
    times: int = 1
    after: int | None = None
    status: int = 503
    seconds: float = 1.0

    def __post_init__(self):
        if self.kind not in ("status", "delay", "drop", "reset", "truncate", "corrupt", "norange"):
            raise ValueError(f"unknown kind of fault: {self.kind!r}")


@dataclass
class Repo:
    """Refs and commits; a commit holds its whole tree: path -> {"oid", "size", "lfs" (a sha256, or None)}."""

    kind: str  # "models", "datasets" or "spaces"
    id: str
    private: bool
    created: str
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict] = field(default_factory=dict)

    def resolve(self, rev: str) -> str:
        rev = rev.removeprefix("refs/heads/").removeprefix("refs/tags/")
        named = self.branches.get(rev) or self.tags.get(rev)
        matches = [named] if named else [oid for oid in self.commits if len(rev) >= 7 and oid.startswith(rev)]
        if len(matches) != 1:
            raise HubError(404, f"Invalid rev id: {rev}", "RevisionNotFound")
        return matches[0]

    def tree(self, rev: str) -> dict[str, dict]:
        return self.commits[self.resolve(rev)]["tree"]

    def commit(self, branch: str, tree: dict, title: str, message: str, author: str) -> str:
        commit = {"parent": self.branches.get(branch), "title": title, "message": message, "author": author}
        commit |= {"date": now(), "tree": tree}
        oid = hashlib.sha1(f"{secrets.token_hex()}{commit}".encode()).hexdigest()
        self.commits[oid], self.branches[branch] = commit, oid
        return oid


def now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def git_oid(data: bytes, kind: str = "blob") -> str:
    return hashlib.sha1(f"{kind} {len(data)}\0".encode() + data).hexdigest()


def as_list(value) -> list:
    return value if isinstance(value, list) else [value] if value else []


def covered(path: str, patterns: list[str]) -> bool:
    """Whether one of these .gitattributes / .gitignore patterns covers the path (negation is not supported)."""
    for pattern in patterns:
        plain = pattern.strip().strip("/")
        names = [path] if "/" in plain else path.split("/")
        if plain and plain[0] != "#" and (any(fnmatch(n, plain) for n in names) or path.startswith(plain + "/")):
            return True
    return False


def read_card(text: str) -> dict:
    """The metadata of a README.md; raises ValueError when the Hub would reject it."""
    match = re.match(r"\s*---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(\r?\n|$)", text, re.DOTALL)
    try:
        data = (yaml.safe_load(match[1]) if match else None) or {}
        for key in ("tags", "datasets", "metrics", "language", "license", "pipeline_tag", "library_name"):
            if not all(isinstance(item, str) for item in as_list(data.get(key))):
                raise ValueError(f'"{key}" must be made of strings')
        for model in data.get("model-index") or []:
            needed = [model["name"]]
            for result in model["results"]:
                needed += [result["task"]["type"], result["dataset"]["type"], result["dataset"]["name"]]
                needed += [str(metric[key]) for metric in result["metrics"] for key in ("type", "value")]
            if not all(needed):
                raise ValueError('"model-index" must not have an empty name, task, dataset or metric')
    except (yaml.YAMLError, AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"Invalid metadata: {type(error).__name__}: {error}") from None
    return data


class HubServer:
    """The Hub and its CDN, each on a loopback port of its own, with the storage under `root`."""

    def __init__(self, root, users=None, port: int = 0, *, lfs: bool = True, page_size: int = 1000):
        self.root, self.lfs, self.page_size = Path(root), lfs, page_size
        self.users = {user.token: user for user in users or [User("alice", "alice-token")]}
        self.repos: dict[tuple[str, str], Repo] = {}
        self.faults: list[Fault] = []
        self.log: list[dict] = []
        self.lock, self.secret = threading.RLock(), secrets.token_bytes()
        (self.root / "blobs").mkdir(parents=True, exist_ok=True)
        for file in (self.root / "repos").rglob("*.json"):
            repo = Repo(**json.loads(file.read_text()))
            self.repos[repo.kind, repo.id.lower()] = repo
        self.servers = [Server(("127.0.0.1", port), self, "hub"), Server(("127.0.0.1", 0), self, "cdn")]
        self.url, self.cdn_url = (f"http://127.0.0.1:{server.server_address[1]}" for server in self.servers)

    def __enter__(self) -> HubServer:
        for server in self.servers:
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_):
        for server in self.servers:
            server.shutdown()
            server.server_close()

    def env(self, token: str | None, home, **extra: str) -> dict[str, str]:
        """The environment for a child process that shall use this Hub, and only this one."""
        ours = {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1"}
        ours |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_UPDATE_CHECK": "1"}
        ours |= {"HF_TOKEN": token} if token else {}
        foreign = ("HF_", "HUGGING", "TRANSFORMERS_", "DATASETS_")
        return {key: value for key, value in os.environ.items() if not key.startswith(foreign)} | ours | extra

    def add_fault(self, kind: str, match: str = "*", **options) -> Fault:
        self.faults.append(Fault(kind, match, **options))
        return self.faults[-1]

    def take_fault(self, method: str, path: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times and fault.method in ("*", method) and fnmatch(path, fault.match):
                    fault.times -= 1
                    return fault
        return None

    def file(self, repo: Repo) -> Path:
        return self.root / "repos" / repo.kind / f"{repo.id}.json"

    def save(self, repo: Repo) -> None:
        file = self.file(repo)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.with_suffix(".part").write_text(json.dumps(asdict(repo)))
        file.with_suffix(".part").replace(file)

    def blob(self, oid: str) -> Path:
        return self.root / "blobs" / oid

    def put_blob(self, data: bytes) -> dict:
        oid = git_oid(data)
        self.blob(oid).write_bytes(data)
        return {"oid": oid, "size": len(data), "lfs": None}

    def read(self, tree: dict, path: str) -> str:
        """The text of a regular file, empty when there is none."""
        return self.blob(tree[path]["oid"]).read_text() if path in tree and not tree[path]["lfs"] else ""

    def signed(self, path: str) -> str:
        """A URL of the CDN that needs no token, for an hour."""
        expires = str(int(time.time()) + 3600)
        return f"{self.cdn_url}{path}?" + urlencode({"expires": expires, "signature": self.sign(path, expires)})

    def sign(self, path: str, expires: str) -> str:
        return hmac.new(self.secret, f"{path} {expires}".encode(), "sha256").hexdigest()


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address, hub: HubServer, name: str):
        self.hub, self.name, self.resets = hub, name, set()
        super().__init__(address, Handler)

    def shutdown_request(self, request):
        if request not in self.resets:
            return super().shutdown_request(request)
        self.resets.discard(request)
        request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close() sends a reset
        request.close()

    def handle_error(self, request, client_address):
        if not isinstance(sys.exc_info()[1], ConnectionError):  # a client that went away is no news
            super().handle_error(request, client_address)


ROUTES: list[tuple] = []
PARTS = {
    "{api}": r"/api/(?P<kind>models|datasets|spaces)/(?P<repo>[^/]+/[^/]+)",
    "{web}": r"/(?:(?P<kind>datasets|spaces)/)?(?P<repo>[^/]+/[^/]+?)",
    "{rev}": r"(?P<rev>[^/]+)",
    "{path}": r"(?P<path>.+)",
    "{lfs}": f"/lfs/(?P<sha>{SHA256})",
}


def route(methods: str, pattern: str, access: str = ""):
    """Register a method for a URL. With `access` ("read" or "write") it gets a Repo, after a check of the rights."""
    server = "cdn" if "{lfs}" in pattern else "hub"
    for name, regex in PARTS.items():
        pattern = pattern.replace(name, regex)

    def register(func):
        ROUTES.append((server, methods.split(), re.compile(pattern), func, access))
        return func

    return register


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    # -- plumbing ------------------------------------------------------------------------------------------------------

    def handle_any(self):
        url = urlsplit(self.path)
        self.hub, self.url_path, self.query = self.server.hub, url.path, parse_qs(url.query)
        self.user = self.fault = None
        self.unread = int(self.headers.get("Content-Length") or 0)
        self.entry = {"server": self.server.name, "method": self.command, "path": unquote(url.path), "status": None}
        self.entry |= {"user": None, "token": "Authorization" in self.headers, "range": self.headers.get("Range")}
        self.fault = self.hub.take_fault(self.command, unquote(url.path))
        self.entry["fault"] = self.fault and self.fault.kind
        self.hub.log.append(self.entry)
        try:
            self.answer()
            self.body()  # leave nothing in the pipe for the next request
        except ConnectionError:
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_any

    def answer(self):
        try:
            if self.fault and self.fault.kind == "delay":
                time.sleep(self.fault.seconds)
            if self.fault and self.fault.kind == "status":
                raise HubError(self.fault.status, "A fault made for a test")
            self.dispatch()
        except HubError as error:
            self.send_json({"error": error.message}, error.status, error.headers)
        except ConnectionError:
            raise
        except Exception as error:  # a request that this server does not foresee, or a mistake in it
            traceback.print_exc()
            self.send_json({"error": repr(error)}, 500)

    def hang_up(self):
        if self.fault.kind == "reset":
            self.server.resets.add(self.connection)
        raise ConnectionAbortedError

    def dispatch(self):
        for server, methods, regex, func, access in ROUTES:
            match = regex.fullmatch(self.url_path)
            if match and self.command in methods and server == self.server.name:
                args = {key: unquote(value) for key, value in match.groupdict().items() if value is not None}
                if server == "cdn":
                    self.check_signature()
                else:
                    self.authenticate()
                if access:
                    args["repo"] = self.find_repo(args.pop("kind", "models"), args["repo"], access)
                return func(self, **args)
        api = r"/api/(models|datasets|spaces)/[^/]+(/(revision|tree|commits|refs|preupload|commit)(/.*)?)?"
        code = "RepoNotFound" if re.fullmatch(api + "|.*/resolve/.*", self.url_path) else ""  # there is no namespace
        raise HubError(404, f"This Hub has no {self.command} {self.url_path}", code)

    def authenticate(self):
        if header := self.headers.get("Authorization"):
            self.user = self.hub.users.get(header.removeprefix("Bearer ").strip())
            if self.user is None:
                raise HubError(401, "Invalid credentials in Authorization header")
            self.entry["user"] = self.user.name

    def check_signature(self):
        expires, given = self.arg("expires", "0"), self.arg("signature")
        if not hmac.compare_digest(given, self.hub.sign(self.url_path, expires)) or int(expires) < time.time():
            raise HubError(403, "Bad or expired signature")

    def find_repo(self, kind: str, repo_id: str, access: str) -> Repo:
        repo = self.hub.repos.get((kind, repo_id.lower()))
        if repo is None or not self.may_read(repo):  # as on the Hub, what is private looks as if it was not there
            raise HubError(404 if self.user else 401, "Repository not found", "RepoNotFound")
        if access == "write":
            self.need_write(repo.id.split("/")[0])
        return repo

    def may_read(self, repo: Repo) -> bool:
        return not repo.private or bool(self.user and self.user.owns(repo.id.split("/")[0]))

    def need_write(self, namespace: str):
        if self.user is None:
            raise HubError(401, "Invalid username or password.")
        if self.user.role != "write":
            raise HubError(403, "A token with the write role is needed")
        if not self.user.owns(namespace):
            raise HubError(403, f'You have no right to write under the namespace "{namespace}"')

    def chunks(self):
        while self.unread:
            data = self.rfile.read(min(CHUNK, self.unread))
            if not data:
                raise ConnectionAbortedError
            self.unread -= len(data)
            yield data

    def body(self) -> bytes:
        return b"".join(self.chunks())

    def json_body(self) -> dict:
        return json.loads(self.body() or b"{}")

    def arg(self, name: str, default: str = "") -> str:
        return self.query.get(name, [default])[0]

    def flag(self, name: str) -> bool:
        return self.arg(name).lower() in ("1", "true")

    def send_head(self, status: int, headers: dict):
        self.entry["status"] = status
        self.send_response(status)
        for key, value in {"X-Request-Id": secrets.token_hex(8), **headers}.items():
            self.send_header(key, str(value))
        self.end_headers()

    def send_json(self, data, status: int = 200, headers: dict | None = None):
        if self.fault and self.fault.kind in ("drop", "reset"):
            self.hang_up()
        content = json.dumps(data).encode()
        self.send_head(status, {"Content-Type": "application/json", "Content-Length": len(content), **(headers or {})})
        if self.command != "HEAD":
            self.wfile.write(content)

    def send_blob(self, file: Path, etag: str, headers: dict):
        """A file, or a byte range of it, with the faults that spoil a download."""
        kind, size = self.fault and self.fault.kind, file.stat().st_size
        start, stop, status = 0, size, 200
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if wanted and wanted[0] != "bytes=-" and kind != "norange":
            start = int(wanted[1]) if wanted[1] else max(size - int(wanted[2]), 0)
            stop = min(int(wanted[2]) + 1, size) if wanted[1] and wanted[2] else size
            if start >= stop:
                raise HubError(416, "Range not satisfiable", headers={"Content-Range": f"bytes */{size}"})
            status, headers = 206, headers | {"Content-Range": f"bytes {start}-{stop - 1}/{size}"}
        mark = None  # the offset at which a fault strikes
        if kind in ("drop", "reset", "truncate", "corrupt"):
            mark = start + min((stop - start) // 2 if self.fault.after is None else self.fault.after, stop - start)
        if kind == "truncate":
            stop = mark
        headers = {"Content-Length": stop - start, "ETag": f'"{etag}"', "Accept-Ranges": "bytes", **headers}
        self.send_head(status, {"Content-Type": "application/octet-stream", **headers})
        if self.command == "HEAD":
            return
        with file.open("rb") as stream:
            stream.seek(start)
            while start < stop:
                data = bytearray(stream.read(min(CHUNK, stop - start)))
                if mark is not None and start <= mark < start + len(data):
                    if kind == "corrupt":
                        data[mark - start] ^= 0xFF
                    else:
                        self.wfile.write(data[: mark - start])
                        self.hang_up()
                self.wfile.write(data)
                start += len(data)

    def log_message(self, *args):
        pass  # the log is `hub.log`

    # -- accounts and repos --------------------------------------------------------------------------------------------

    @route("GET", "/api/whoami-v2")
    def whoami(self):
        if self.user is None:
            raise HubError(401, "Invalid username or password.")
        auth = {"type": "access_token", "accessToken": {"displayName": "test", "role": self.user.role}}
        orgs = [{"type": "org", "name": name} for name in self.user.orgs]
        self.send_json({"type": "user", "name": self.user.name, "fullname": self.user.name, "orgs": orgs, "auth": auth})

    def repo_key(self) -> tuple[dict, str, str]:
        data = self.json_body()
        kind, owner = data.get("type", "model") + "s", data.get("organization") or (self.user and self.user.name)
        if kind not in ("models", "datasets", "spaces") or not re.fullmatch(r"\w[\w.-]{0,95}", data["name"]):
            raise HubError(400, "Invalid repo type or name")
        self.need_write(owner)
        return data, kind, f"{owner}/{data['name']}"

    def web_url(self, repo: Repo) -> str:
        return f"{self.hub.url}/{'' if repo.kind == 'models' else repo.kind + '/'}{repo.id}"

    @route("POST", "/api/repos/create")
    def create_repo(self):
        data, kind, repo_id = self.repo_key()
        repo = Repo(kind, repo_id, data.get("visibility") == "private" or bool(data.get("private")), now())
        answer = {"url": self.web_url(repo), "name": repo_id, "id": repo_id, "private": repo.private}
        with self.hub.lock:
            if (kind, repo_id.lower()) in self.hub.repos:
                return self.send_json(answer | {"error": f"You already created this {kind[:-1]} repo"}, 409)
            tree = {".gitattributes": self.hub.put_blob(GITATTRIBUTES.encode())}
            repo.commit("main", tree, "initial commit", "", self.user.name)
            self.hub.repos[kind, repo_id.lower()] = repo
            self.hub.save(repo)
        self.send_json(answer)

    @route("DELETE", "/api/repos/delete")
    def delete_repo(self):
        _, kind, repo_id = self.repo_key()
        with self.hub.lock:
            repo = self.find_repo(kind, repo_id, "write")
            del self.hub.repos[kind, repo_id.lower()]
            self.hub.file(repo).unlink()
        self.send_json({})

    @route("POST", "/api/validate-yaml")
    def validate_yaml(self):
        try:
            warnings = [] if read_card(self.json_body()["content"]) else ["empty or missing yaml metadata in repo card"]
        except ValueError as error:
            return self.send_json({"errors": [{"message": str(error)}], "warnings": []}, 400)
        self.send_json({"errors": [], "warnings": [{"message": message} for message in warnings]})

    # -- reading -------------------------------------------------------------------------------------------------------

    @route("GET", "{api}", "read")
    @route("GET", "{api}/revision/{rev}", "read")
    def repo_info(self, repo: Repo, rev: str = "main"):
        info, wanted = self.describe_repo(repo, rev), self.query.get("expand")
        self.send_json({key: value for key, value in info.items() if not wanted or key in ("id", *wanted)})

    def describe_repo(self, repo: Repo, rev: str) -> dict:
        oid = repo.resolve(rev)
        tree, card, config, siblings = repo.tree(oid), {}, {}, []
        with suppress(ValueError):
            card = read_card(self.hub.read(tree, "README.md"))
        with suppress(ValueError, TypeError):
            config = dict(json.loads(self.hub.read(tree, "config.json") or "{}"))
        for path, entry in sorted(tree.items()):
            item = self.describe(path, entry) if self.flag("blobs") else {}
            siblings.append({"rfilename": path, **({"size": item["size"], "blobId": item["oid"]} if item else {})})
            if "lfs" in item:
                siblings[-1]["lfs"] = item["lfs"] | {"sha256": entry["lfs"]}
        tags = [*as_list(card.get("library_name")), *as_list(card.get("tags")), *as_list(config.get("model_type"))]
        tags += ["safetensors"] * any(path.endswith(".safetensors") for path in tree)
        tags += ["custom_code"] * ("auto_map" in config)
        for key in ("license", "language", "datasets"):
            tags += [value if key == "language" else f"{key.rstrip('s')}:{value}" for value in as_list(card.get(key))]
        return {
            "id": repo.id, "modelId": repo.id, "author": repo.id.split("/")[0], "sha": oid, "private": repo.private,
            "gated": False, "disabled": False, "downloads": 0, "likes": 0, "createdAt": repo.created,
            "lastModified": repo.commits[oid]["date"], "siblings": siblings, "cardData": card, "tags": tags,
            "pipeline_tag": card.get("pipeline_tag"), "library_name": card.get("library_name"),
            "model-index": card.get("model-index"),
            "config": {key: config[key] for key in ("architectures", "model_type", "auto_map") if key in config},
        }  # fmt: skip

    def describe(self, path: str, entry: dict) -> dict:
        item = {"type": "file", "path": path, "size": entry["size"], "oid": entry["oid"]}
        if entry["lfs"]:
            pointer = len(POINTER.format(entry["lfs"], entry["size"]))
            item["lfs"] = {"oid": entry["lfs"], "size": entry["size"], "pointerSize": pointer}
        return item

    def describe_folder(self, path: str, tree: dict) -> dict:
        inside = sorted((name, entry["oid"]) for name, entry in tree.items() if name.startswith(path + "/"))
        return {"type": "directory", "path": path, "size": 0, "oid": git_oid(repr(inside).encode(), "tree")}

    @route("GET", "{api}/tree/{rev}(?:/{path})?", "read")
    def list_tree(self, repo: Repo, rev: str, path: str = ""):
        tree, prefix = repo.tree(rev), f"{path}/" if path else ""
        if path and not any(name.startswith(prefix) for name in tree):
            raise HubError(404, f"{path} does not exist on {rev}", "EntryNotFound")
        names: dict[str, bool] = {}  # what to list, and whether it is a folder
        for name in sorted(name for name in tree if name.startswith(prefix)):
            parts = name[len(prefix) :].split("/")
            for depth in range(1, len(parts) + 1 if self.flag("recursive") else 2):
                names[prefix + "/".join(parts[:depth])] = depth < len(parts)
        start, stop = int(self.arg("cursor", "0")), int(self.arg("cursor", "0")) + self.hub.page_size
        page = list(names.items())[start:stop]
        query = urlencode({**{key: values[0] for key, values in self.query.items()}, "cursor": stop})
        more = {"Link": f'<{self.hub.url}{self.url_path}?{query}>; rel="next"'} if stop < len(names) else {}
        listed = [self.describe_folder(p, tree) if folder else self.describe(p, tree[p]) for p, folder in page]
        self.send_json(listed, headers=more)

    @route("POST", "{api}/paths-info/{rev}", "read")
    def paths_info(self, repo: Repo, rev: str):
        form = "json" not in self.headers.get("Content-Type", "")
        data, tree, found = parse_qs(self.body().decode()) if form else self.json_body(), repo.tree(rev), []
        for path in (path.strip("/") for path in as_list(data.get("paths"))):
            if path in tree:
                found.append(self.describe(path, tree[path]))
            elif any(name.startswith(path + "/") for name in tree):
                found.append(self.describe_folder(path, tree))
        self.send_json(found)

    @route("GET", "{api}/refs", "read")
    def refs(self, repo: Repo):
        answer = {"branches": [], "tags": [], "converts": []}
        if self.flag("include_prs"):
            answer["pullRequests"] = []
        for name, oid in repo.branches.items():
            group, ref = ("pullRequests", name) if name.startswith("refs/pr/") else ("branches", f"refs/heads/{name}")
            answer.get(group, []).append({"name": name, "ref": ref, "targetCommit": oid})
        for name, oid in repo.tags.items():
            answer["tags"].append({"name": name, "ref": f"refs/tags/{name}", "targetCommit": oid})
        self.send_json(answer)

    @route("GET", "{api}/commits/{rev}", "read")
    def commits(self, repo: Repo, rev: str):
        oid, listed = repo.resolve(rev), []
        while oid:
            commit = repo.commits[oid]
            item = {key: commit[key] for key in ("title", "message", "date")}
            listed.append(item | {"id": oid, "authors": [{"user": commit["author"]}]})
            oid = commit["parent"]
        self.send_json(listed)

    @route("GET HEAD", "{web}/(?:resolve|raw)/{rev}/{path}", "read")
    def download(self, repo: Repo, rev: str, path: str):
        oid = repo.resolve(rev)
        entry, headers = repo.tree(oid).get(path), {"X-Repo-Commit": oid}
        if entry is None:
            raise HubError(404, "Entry not found", "EntryNotFound", headers)
        if not entry["lfs"]:
            return self.send_blob(self.hub.blob(entry["oid"]), entry["oid"], headers)
        headers |= {"X-Linked-Etag": f'"{entry["lfs"]}"', "X-Linked-Size": entry["size"]}
        self.send_json({}, 302, headers | {"Location": self.hub.signed(f"/lfs/{entry['lfs']}/{quote(path)}")})

    @route("GET HEAD", "{lfs}/{path}")
    def cdn_download(self, sha: str, path: str):
        self.send_blob(self.hub.blob(sha), sha, {})

    # -- writing -------------------------------------------------------------------------------------------------------

    @route("POST", "{api}/preupload/{rev}", "write")
    def preupload(self, repo: Repo, rev: str):
        data, tree, files = self.json_body(), repo.tree(rev), []
        attributes = self.hub.read(tree, ".gitattributes").splitlines()
        large = [line.split()[0] for line in attributes if "filter=lfs" in line]
        ignored = (data.get("gitIgnore") or self.hub.read(tree, ".gitignore")).splitlines()
        for file in data["files"]:
            path, binary = file["path"], b"\0" in base64.b64decode(file.get("sample", ""))
            lfs = self.hub.lfs and (binary or file["size"] > 10 << 20 or covered(path, large))
            answer = {"path": path, "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": covered(path, ignored)}
            files.append(answer | ({"oid": tree[path]["lfs"] or tree[path]["oid"]} if path in tree else {}))
        self.send_json({"files": files})

    @route("POST", r"{web}\.git/info/lfs/objects/batch", "write")
    def lfs_batch(self, repo: Repo):
        objects = []
        for item in self.json_body()["objects"]:
            if not re.fullmatch(SHA256, item["oid"]):
                item["error"] = {"code": 422, "message": "The oid is not a sha256"}
            elif not self.hub.blob(item["oid"]).exists():
                verify = self.web_url(repo) + ".git/info/lfs/verify"
                upload = self.hub.signed(f"/lfs/{item['oid']}")
                item["actions"] = {"upload": {"href": upload}, "verify": {"href": verify}}
            objects.append(item)
        self.send_json({"transfer": "basic", "objects": objects})

    @route("PUT", "{lfs}")
    def cdn_upload(self, sha: str):
        digest = hashlib.sha256()
        with tempfile.NamedTemporaryFile(dir=self.hub.root, delete=False) as file:
            for data in self.chunks():
                digest.update(data)
                file.write(data)
        if digest.hexdigest() != sha:
            os.unlink(file.name)
            raise HubError(400, "The content does not have the sha256 that was announced")
        os.replace(file.name, self.hub.blob(sha))
        self.send_json({})

    @route("POST", r"{web}\.git/info/lfs/verify", "write")
    def lfs_verify(self, repo: Repo):
        data = self.json_body()
        if self.lfs_size(data["oid"]) != data["size"]:
            raise HubError(404, "There is no LFS object of that sha256 and size")
        self.send_json({})

    def lfs_size(self, sha: str) -> int | None:
        known = re.fullmatch(SHA256, sha) and self.hub.blob(sha).exists()
        return self.hub.blob(sha).stat().st_size if known else None

    @route("POST", "{api}/commit/{rev}", "write")
    def commit(self, repo: Repo, rev: str):
        lines = [json.loads(line) for line in self.body().splitlines() if line.strip()]
        header = next((line["value"] for line in lines if line["key"] == "header"), {})
        with self.hub.lock:
            tree, parent, extra = dict(repo.tree(rev)), header.get("parentCommit"), {}
            if rev not in repo.branches:
                raise HubError(404, f"{rev} is not a branch", "RevisionNotFound")
            if parent and not repo.branches[rev].startswith(parent):
                raise HubError(412, "The branch was updated since you opened this page. Please refresh and try again.")
            for line in lines:
                self.apply(tree, line["key"], line["value"])
            if self.flag("create_pr"):
                number = 1 + sum(name.startswith("refs/pr/") for name in repo.branches)
                repo.branches[f"refs/pr/{number}"], rev = repo.branches[rev], f"refs/pr/{number}"
                extra = {"pullRequestUrl": f"{self.web_url(repo)}/discussions/{number}"}
            oid = repo.commit(rev, tree, header.get("summary", ""), header.get("description", ""), self.user.name)
            self.hub.save(repo)
        self.send_json({"success": True, "commitOid": oid, "commitUrl": f"{self.web_url(repo)}/commit/{oid}", **extra})

    def apply(self, tree: dict, key: str, value: dict):
        """Apply one line of a commit."""
        path = value.get("path", "")
        bad = {"", ".", "..", ".git"} & set(path.removesuffix("/").split("/")) or path.startswith("..\\")
        if key != "header" and bad:
            raise HubError(422, f"Invalid path: {path!r}")
        if key == "file":
            tree[path] = self.hub.put_blob(base64.b64decode(value["content"]))
        elif key == "lfsFile":
            sha, size = value["oid"], self.lfs_size(value["oid"])
            if size is None:
                raise HubError(400, f"LFS pointer pointed to a file that does not exist: {path}")
            tree[path] = {"oid": git_oid(POINTER.format(sha, size).encode()), "size": size, "lfs": sha}
        elif key in ("deletedFile", "deletedFolder"):
            gone = [name for name in tree if name == path or name.startswith(path.rstrip("/") + "/")]
            if not gone:
                raise HubError(404, "A file with this name doesn't exist", "EntryNotFound")
            for name in gone:
                del tree[name]
        elif key != "header":
            raise HubError(400, f"Unknown operation: {key!r}")

    @route("POST DELETE", "{api}/branch/{rev}", "write")
    def branch(self, repo: Repo, rev: str):
        self.change_ref(repo, repo.branches, f"refs/heads/{rev}", self.json_body().get("startingPoint") or "main")

    @route("POST DELETE", "{api}/tag/{rev}", "write")
    def tag(self, repo: Repo, rev: str):
        self.change_ref(repo, repo.tags, f"refs/tags/{self.json_body().get('tag', rev)}", rev)

    def change_ref(self, repo: Repo, refs: dict, ref: str, target: str):
        name = ref.split("/", 2)[2]
        with self.hub.lock:
            oid = repo.resolve(target) if self.command == "POST" else None
            if not re.fullmatch(r"(?!.*\.\.)[^\s~^:?*\[\\]+", name):
                raise HubError(400, f"Invalid reference name: {name}")
            if self.command == "DELETE" and ref == "refs/heads/main":
                raise HubError(403, f"Cannot delete {ref}")
            if self.command == "DELETE" and refs.pop(name, None) is None:
                raise HubError(404, f"Invalid rev id: {name}", "RevisionNotFound")
            if self.command == "POST" and name in refs:
                raise HubError(409, f"Reference {ref} already exists")
            if oid:
                refs[name] = oid
            self.hub.save(repo)
        self.send_json({})
