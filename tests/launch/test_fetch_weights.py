"""Weights of timm's hub, fetched from a hub on this machine."""

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from workflow.campaign import specs
from workflow.storage import records
from workflow.train import checkpoints

CONTENT = b"weights of a teacher"
SHA256 = hashlib.sha256(CONTENT).hexdigest()
TAG = "regnety_160.deit_in1k"


class Hub(http.server.BaseHTTPRequestHandler):
    """Answers for the one file `server.file` as huggingface.co does; `server.says` is the sha256 it names."""

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer(CONTENT)

    def answer(self, body: bytes = b""):
        known = self.path.endswith(f"/timm/{TAG}/resolve/main/{self.server.file}") or (
            self.path.endswith(f"/resolve/c0ffee/{self.server.file}")
        )
        self.send_response(200 if known else 404)
        if not known:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.send_header("X-Repo-Commit", "c0ffee")
        self.send_header("ETag", f'"{self.server.says}"')
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def hub():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.file, server.says = "model.safetensors", SHA256
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def fetch(tmp_path):
    """A function that fetches a checkpoint from a hub and returns (exit code, output)."""

    def run(address: str, **checkpoint) -> tuple[int, str]:
        spec = specs.fetch_spec({"timm": TAG, **checkpoint})
        folder = tmp_path / "weights"
        specs.write_spec(folder / TAG / "spec.json", spec)
        command = [sys.executable, "-m", "workflow.launch.fetch_weights"]
        command += ["--spec", folder / TAG / "spec.json", "--output", folder / f"{TAG}.json"]
        done = subprocess.run(
            [*map(str, command), "--log", str(tmp_path / "fetch.log")],
            env={**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "cache")},
            cwd=records.ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip
        return done.returncode, done.stdout + done.stderr

    return run


def address(hub) -> str:
    return f"http://127.0.0.1:{hub.server_port}"


def test_what_is_fetched_is_found_by_the_job(hub, fetch, tmp_path):
    code, output = fetch(address(hub))
    assert code == 0, output
    record = json.loads((tmp_path / "weights" / f"{TAG}.json").read_text())
    assert record["results"]["sha256"] == SHA256
    assert record["results"]["revision"] == "c0ffee"
    spec = {"checkpoint": {"timm": TAG}}
    path, sha256, _ = checkpoints.external_file(spec, {"root": str(tmp_path)})
    assert (path.read_bytes(), sha256) == (CONTENT, SHA256)
    assert specs.needed_records(spec) == [f"weights/{TAG}.json"]


def test_a_repository_without_safetensors_has_a_pickled_file(hub, fetch, tmp_path):
    hub.file = "pytorch_model.bin"
    code, output = fetch(address(hub))
    assert code == 0, output
    path, sha256, _ = checkpoints.external_file({"checkpoint": {"timm": TAG}}, {"root": str(tmp_path)})
    assert (path.name, path.read_bytes(), sha256) == ("pytorch_model.bin", CONTENT, SHA256)


def test_a_repository_without_weights_is_an_error(hub, fetch):
    hub.file = "README.md"
    code, output = fetch(address(hub))
    assert code == 1
    assert "download model.safetensors or pytorch_model.bin yourself" in output


@pytest.mark.parametrize(("says", "pinned"), [("f" * 64, None), (SHA256, "e" * 64)])
def test_another_file_is_an_error_and_removed(says, pinned, hub, fetch, tmp_path):
    hub.says = says
    code, output = fetch(address(hub), **({"sha256": pinned} if pinned else {}))
    assert code == 1
    assert f"has the sha256 {SHA256}, but" in output
    assert (pinned or says) in output
    assert not list(tmp_path.rglob("model.safetensors"))
    assert not (tmp_path / "weights" / f"{TAG}.json").exists()


def test_without_a_network_it_says_what_to_do(hub, fetch):
    hub.shutdown()
    hub.server_close()
    code, output = fetch(address(hub))
    assert code == 1
    assert "could not be fetched" in output
    assert "{file: <path>, sha256: <what sha256sum says>}" in output
    assert "Traceback" not in output


def test_a_job_without_the_fetched_file_says_so(tmp_path):
    spec = {"checkpoint": {"timm": TAG}}
    with pytest.raises(checkpoints.WeightsError, match=r"deit_in1k\.json is missing"):
        checkpoints.external_file(spec, {"root": str(Path(tmp_path))})
