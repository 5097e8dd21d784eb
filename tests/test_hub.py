"""The Hugging Face Hub, by a double of it: a server of files that speaks as much of its language as push and load need."""

import base64
import hashlib
import http.server
import json
import re
import shutil
import sys
import threading
from pathlib import Path

import huggingface_hub.constants as constants
import pytest
import torch
from conftest import TINY
from omegaconf import OmegaConf

import vcd
from vcd import checkpoints, hub, training


class Double(http.server.BaseHTTPRequestHandler):
    """Repositories are folders below `root`; a commit replaces files; `asked` lists what was asked for."""

    root: Path
    asked: list[tuple[str, str]]
    address: str

    def log_message(self, *_):
        pass

    def answer(self, body: bytes, code: int = 200, **headers: str):
        self.send_response(code)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def say(self, value, code: int = 200, **headers: str):
        self.answer(json.dumps(value).encode(), code, Content_Type="application/json", **headers)

    def do_GET(self):
        self.asked.append((self.command, self.path))
        found = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.path)
        if found is None or not (self.root / found[1]).is_dir():
            return self.say({"error": "Repository not found"}, 401, X_Error_Code="RepoNotFound")
        commits = {"main": "c" * 40, "c" * 40: "c" * 40}
        file = self.root / found[1] / found[3]
        if found[2] not in commits:
            return self.say({"error": "Invalid rev"}, 404, X_Error_Code="RevisionNotFound")
        if not file.is_file():
            return self.say({"error": "Entry not found"}, 404, X_Error_Code="EntryNotFound")
        etag = f'"{hashlib.sha1(file.read_bytes()).hexdigest()}"'
        self.answer(file.read_bytes(), ETag=etag, X_Repo_Commit=commits[found[2]])

    do_HEAD = do_GET

    def do_POST(self):
        self.asked.append((self.command, self.path))
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            (self.root / name).mkdir(parents=True, exist_ok=True)
            return self.say({"url": f"{self.address}/{name}", "name": name})
        if self.path == "/api/validate-yaml":
            return self.say({"errors": [], "warnings": []})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/main.*", self.path):
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            return self.say({"files": files})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main.*", self.path):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    path = self.root / found[1] / line["value"]["path"]
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(base64.b64decode(line["value"]["content"]))
            return self.say({"commitUrl": f"{self.address}/{found[1]}/commit/{'c' * 40}", "commitOid": "c" * 40})
        self.say({"error": self.path}, 404)


@pytest.fixture
def double(tmp_path, monkeypatch):
    """The folder of its repositories; huggingface_hub asks it and nobody else, and keeps what it gets below tmp_path."""
    Double.root, Double.asked = tmp_path / "hub", []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Double)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    address = Double.address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)  # what HF_ENDPOINT and HF_HUB_CACHE say at the first import
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_ENDPOINT", address)
    monkeypatch.chdir(tmp_path)
    yield Double.root
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def checkpoint(compose, tmp_path_factory) -> Path:
    """Of a small model that was never trained."""
    cfg = compose("model=vcd", *TINY, "prior=independent", "run_dir=run")
    torch.manual_seed(0)
    stored = {
        "state_dict": training.build(cfg).state_dict(),
        checkpoints.CONFIG: OmegaConf.to_container(cfg, resolve=True),
    }
    path = tmp_path_factory.mktemp("tiny") / "last.ckpt"
    checkpoints.AtomicCheckpointIO().save_checkpoint({**stored, checkpoints.VERSION: vcd.__version__}, path)
    return path


@pytest.fixture(scope="module")
def model(checkpoint) -> vcd.Trained:
    return vcd.load(checkpoint, device="cpu")


def test_what_is_pushed_is_loaded_by_its_name(model, double, tmp_path):
    link = model.push_to_hub("ann/tiny", token="hf_x", commit_message="First")
    assert link == f"{Double.address}/ann/tiny/commit/{'c' * 40}"
    assert {path.name for path in (double / "ann" / "tiny").iterdir()} >= {
        "README.md",
        "config.json",
        "model.safetensors",
    }
    assert 'vcd.load("ann/tiny")' in (double / "ann" / "tiny" / "README.md").read_text()
    again = vcd.load("ann/tiny", device="cpu", token=False)
    assert torch.equal(again.sample(4, seed=1), model.sample(4, seed=1))
    asked = [path for _, path in Double.asked if "/resolve/" in path]
    assert {path.rpartition("/")[2] for path in asked} == {"config.json", "model.safetensors"}  # no code, no pictures
    shutil.rmtree(double)  # kept: no network is needed any more
    assert torch.equal(vcd.Trained.from_pretrained("ann/tiny", device="cpu").sample(2), model.sample(2))


def test_commands_push_and_take_names(checkpoint, double, here, tmp_path):
    assert here("export", f"ckpt={checkpoint}", "push=ann/tiny", "device=cpu").code == 0
    assert here("sample", "ckpt=ann/tiny", "n=2", "device=cpu").code == 0
    assert (tmp_path / "ann" / "samples-seed0-n2" / "samples.png").exists()
    both = here("export", f"ckpt={checkpoint}", "push=ann/tiny", "out=x")
    assert both.sentence == "out=... writes a folder and push=... uploads it: give one of them"


def test_what_is_not_there_is_one_sentence(double, tmp_path, here):
    for name in ("ann/nothing", "ann/nothing-else"):
        with pytest.raises(
            vcd.UserError, match=rf"^{name} is no file or folder here, and the Hugging Face Hub does not give it"
        ):
            vcd.load(name, token=False)
    (double / "ann" / "other").mkdir(parents=True)
    (double / "ann" / "other" / "README.md").write_text("Something else.")
    with pytest.raises(vcd.UserError, match=r"ann/other is no file.*EntryNotFound"):
        vcd.load("ann/other", token=False)
    with pytest.raises(vcd.UserError, match="RevisionNotFound"):
        vcd.load("ann/other", revision="v9", token=False)
    assert "does not give it" in here("sample", "ckpt=ann/nothing").sentence


def test_only_names_are_looked_for(double, tmp_path):
    (tmp_path / "runs").mkdir()
    for path in ("nothing.ckpt", "ann/nothing.ckpt", "runs/nothing", "a/b/c", "/ann/x"):
        assert hub.find(path) == Path(path)
        with pytest.raises(vcd.UserError, match="there is no such file"):
            vcd.load(path)
    assert Double.asked == []


def test_a_missing_package_is_named(monkeypatch, tmp_path, model):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(vcd.UserError, match=r"ann/x is no file.*needs huggingface_hub, .*: pip install 'vcd\[hub\]'$"):
        vcd.load("ann/x")
    with pytest.raises(vcd.UserError, match=r"to push ann/x needs huggingface_hub"):
        model.push_to_hub("ann/x")


def test_without_a_way_to_the_hub_it_is_one_sentence(monkeypatch, double):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # what HF_HUB_OFFLINE=1 says at the first import
    with pytest.raises(
        vcd.UserError, match=r"^ann/x is no file or folder here, and the Hugging Face Hub does not give it \("
    ) as e:
        vcd.load("ann/x")
    assert "\n" not in str(e.value) and Double.asked == []
