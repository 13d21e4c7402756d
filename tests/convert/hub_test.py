"""hf:org/name: from a hub, which is a local one here; without the package, or the network, the command to type."""

import hashlib
import http.server
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from sttts_jax.convert.hub import hub_folder

FILES = {
    "config.json": b'{"model_type": "molmo2"}',
    "model-00001-of-00001.safetensors": b"weights",
    "chat_template.jinja": b"{{ messages }}",
    "pytorch_model.bin": b"not read, and not downloaded",
    "modeling.py": b"nor this",
}
COMMIT = "0" * 40


class _Hub(http.server.BaseHTTPRequestHandler):
    """The answers of the hub that a download asks for."""

    asked: list[str] = []

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        path = self.path.partition("?")[0]
        type(self).asked.append(path)
        name = path.rpartition("/")[2]
        if not path.startswith(("/api/models/ai/small/", "/ai/small/resolve/")):
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        body = FILES.get(name, b"") if "/resolve/" in path else _listing(path)
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        if with_body:
            self.wfile.write(body)


def _listing(path: str) -> bytes:
    if "/tree/" in path:
        return json.dumps(
            [{"type": "file", "path": name, "size": len(body), "oid": "0"} for name, body in FILES.items()]
        ).encode()
    siblings = [{"rfilename": name} for name in FILES]
    return json.dumps({"id": "ai/small", "sha": COMMIT, "siblings": siblings}).encode()


@pytest.fixture(name="hub")
def _hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A hub on loopback that this process's downloads go to, and an empty cache."""
    constants = pytest.importorskip("huggingface_hub.constants")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    _Hub.asked = []
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield address
    server.shutdown()
    server.server_close()


def test_a_repository_becomes_a_folder(hub: str) -> None:
    folder = Path(hub_folder("ai/small"))
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert found == {name: FILES[name] for name in FILES if not name.endswith((".bin", ".py"))}


def test_what_is_not_there_names_the_command(hub: str) -> None:
    with pytest.raises(
        ValueError, match=r"hf:ai/other is no folder here .*`hf download ai/other --local-dir other`"
    ) as error:
        hub_folder("ai/other")
    assert "\n" not in str(error.value)


def test_a_folder_is_never_asked_for(hub: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ai" / "small").mkdir(parents=True)
    assert hub_folder("ai/small") == "ai/small"
    for name in ("/ai/small", "../x/y", "small", "a/b/c", "-x/y"):
        assert hub_folder(name) == name
    assert not _Hub.asked


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match=r"pip install 'sttts-jax\[hub\]'; .*`hf download ai/small --local-dir small`"):
        hub_folder("ai/small")


def test_without_a_network_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # discard: nobody listens
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match="cannot be downloaded"):
        hub_folder("ai/small")
