"""Names on the Hugging Face hub, with the real library and a small hub on this machine."""

import hashlib
import io
import json
import sys

import pytest
import torch
from detectron2.utils.file_io import PathManager
from support.http_server import LocalHandler, LocalServer, serving

from moco_d2.checkpoint import hub, hub_names
from moco_d2.checkpoint.backbone import load_backbone
from moco_d2.checkpoint.convert import convert
from moco_d2.checkpoint.io import load_checkpoint, read_provenance
from moco_d2.checkpoint.weights_by_name import source_file
from moco_d2.cli import argument_parser
from moco_d2.engine.job import load_job
from moco_d2.errors import UserError
from moco_d2.transfer.weights import check_weights_file, check_weights_name, describe_weights

pytest.importorskip("huggingface_hub", reason="needs the extra hub: huggingface_hub")
COMMIT, LATER = "1" * 40, "2" * 40


class Hub(LocalServer):
    """The two parts of a hub that a download needs, for one repository.

    Attributes:
        files: path -> content, at every revision.
        commits: branch -> commit.
        requests: path of every request.
        altered: content that is served instead of a file's.
    """

    def __init__(self):
        super().__init__(Handler)
        self.commits = {"main": COMMIT, "refs/pr/1": LATER}
        self.altered: dict[str, bytes] = {}


class Handler(LocalHandler):
    server: Hub  # HTTP/1.0: no connection, and so no thread, outlives its request

    def do_GET(self):  # noqa: N802
        path = self.path.partition("?")[0].replace("%2F", "/")
        self.server.requests.append(path)
        info, file = "/api/models/lab/moco/revision/", "/lab/moco/resolve/"
        if path.startswith(info):
            revision = path.removeprefix(info)
            commit = self.server.commits.get(revision)
            if commit is None and revision not in self.server.commits.values():
                self.answer(404, b"{}", X_Error_Code="RevisionNotFound")
                return
            siblings = [self.sibling(*item) for item in self.server.files.items()]
            content = {"id": "lab/moco", "sha": commit or revision, "siblings": siblings}
            self.answer(200, json.dumps(content).encode(), Content_Type="application/json")
        elif path.startswith(file):
            commit, _, name = path.removeprefix(file).partition("/")
            content = self.server.altered.get(name, self.server.files[name])
            etag = hashlib.sha256(content).hexdigest()
            self.answer(200, content, ETag=f'"{etag}"', X_Repo_Commit=commit)
        else:
            self.answer(404, b"{}", X_Error_Code="RepoNotFound")

    do_HEAD = do_GET  # noqa: N815

    def sibling(self, name, content):
        found = {"rfilename": name, "size": len(content)}
        if not name.endswith(".json"):
            sha = hashlib.sha256(content).hexdigest()
            found["lfs"] = {"sha256": sha, "size": len(content), "pointerSize": 100}
        return found

    def answer(self, status, content, **headers):
        self.head(status, len(content), **headers)
        if self.command == "GET":
            self.wfile.write(content)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MOCO_D2_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(hub, "_allowed", set())
    return tmp_path / "cache" / "hub" / "lab" / "moco"


@pytest.fixture
def server(monkeypatch, cache):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving(Hub()) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        yield server


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("hf://lab/moco", ("lab/moco", None, "main")),
        ("hf://lab/moco.v2/deep/w.pth", ("lab/moco.v2", "deep/w.pth", "main")),
        ("hf://lab/moco@refs/pr/1", ("lab/moco", None, "refs/pr/1")),
        (f"hf://lab/moco/w.pth@{COMMIT}", ("lab/moco", "w.pth", COMMIT)),
    ],
)
def test_parts_of_a_name(text, parts):
    name = hub_names.parse(text)
    assert (name.repo, name.file, name.revision) == parts


@pytest.mark.parametrize(
    "text",
    [
        *("hf://", "hf://lab", "hf://lab/moco/../w.pth", "hf://lab/moco/a//w.pth", "hf://../moco"),
        *("hf://lab/moco/w.pth@", "hf://lab/moco/w.pth@../..", "hf://lab/moco/w\n.pth"),
        *("hf://lab/moco/.. /w.pth", "hf://lab/moco@a@b", "hf:///lab/moco", "hf://lab/moco?x=1"),
    ],
)
def test_a_name_cannot_leave_the_cache(text):
    with pytest.raises(UserError, match="is no name on the Hugging Face hub: write hf://USER/REPO"):
        check_weights_name(text)


def test_a_file_is_fetched_once_and_its_commit_and_sha256_are_recorded(
    server, cache, checkpoint, tmp_path, capfd
):
    server.files = {"checkpoint.pth.tar": checkpoint, "README.md": b"x"}
    file = source_file("hf://lab/moco")
    assert file == cache / "main" / "checkpoint.pth.tar"
    assert file.read_bytes() == checkpoint
    assert f"at commit {COMMIT}, once, to" in capfd.readouterr().err

    asked = len(server.requests)
    server.commits["main"] = LATER  # the branch moves, but the name stays what it was
    assert source_file("hf://lab/moco") == source_file("hf://lab/moco/checkpoint.pth.tar") == file
    report = convert(source_file("hf://lab/moco"), tmp_path / "w.pth")
    assert len(server.requests) == asked
    origin = {"name": "hf://lab/moco/checkpoint.pth.tar@main", "commit": COMMIT}
    assert report["published"] == read_provenance(tmp_path / "w.pth")["published"] == origin
    assert report["source_sha256"] == hashlib.sha256(checkpoint).hexdigest()
    _, _, about = load_backbone("hf://lab/moco")
    assert about.source == f"hf://lab/moco/checkpoint.pth.tar@{COMMIT}"


def test_weights_of_a_detector_by_name(server, cache, checkpoint):
    """MODEL.WEIGHTS: converted once, and described in the record."""
    server.files = {"deep/w.pth": checkpoint}
    name = "hf://lab/moco/deep/w.pth@refs/pr/1"
    hub.allow(name)
    check_weights_file(name)
    weights = describe_weights(name)
    assert weights["provenance"]["published"] == {"name": name, "commit": LATER}
    assert weights["provenance"]["family"] == "moco"
    content = load_checkpoint(PathManager.get_local_path(name))
    assert content["matching_heuristics"] is True
    asked = len(server.requests)
    assert describe_weights(name) == weights
    assert len(server.requests) == asked


def test_converted_weights_of_a_repository_are_used_as_they_are(
    server, cache, checkpoint, tmp_path
):
    (tmp_path / "moco.pth").write_bytes(checkpoint)
    convert(tmp_path / "moco.pth", tmp_path / "backbone.pth")
    server.files = {"backbone.pth": (tmp_path / "backbone.pth").read_bytes()}
    hub.allow("hf://lab/moco")
    assert hub.weights_file("hf://lab/moco") == cache / "main" / "backbone.pth"


def test_what_a_repository_says_about_its_network_counts(server, cache, small):
    """timm's config.json stands beside the weights; it is fetched with them."""
    buffer = io.BytesIO()
    torch.save(small, buffer)
    server.files = {
        "pytorch_model.bin": buffer.getvalue(),
        "config.json": json.dumps({"architecture": "resnetblur18"}).encode(),
    }
    with pytest.raises(UserError, match=r"the config.json beside it says 'resnetblur18'"):
        convert(source_file("hf://lab/moco"), cache.parent / "w.pth")
    server.files["config.json"] = b" " * (1 << 21)
    with pytest.raises(UserError, match=r"its config.json has 2097152 bytes, which no config has"):
        source_file("hf://lab/moco@refs/pr/1")


@pytest.mark.parametrize(
    ("files", "chosen"),
    [
        (["model.safetensors", "pytorch_model.bin", "config.json"], "model.safetensors"),
        (["checkpoint_final.pth.tar", "log.txt"], "checkpoint_final.pth.tar"),
        (
            ["checkpoint.pth", "model.safetensors"],
            r"has several checkpoints \(its files: model.safetensors, checkpoint.pth\); name the",
        ),
        (
            ["epoch_7.pth", "README.md"],
            r"no checkpoint with a usual name \(its files: epoch_7.pth\); name the file, as in "
            "hf://lab/moco/FILE@main",
        ),
        (["README.md"], "none that looks like a checkpoint"),
    ],
)
def test_the_file_of_a_repository(server, cache, files, chosen):
    server.files = dict.fromkeys(files, b"content")
    if chosen in files:
        assert source_file("hf://lab/moco").name == chosen
    else:
        with pytest.raises(UserError, match=chosen):
            source_file("hf://lab/moco")
        assert not list(cache.rglob("*.pth"))


def test_what_is_not_there_is_one_sentence(server, cache):
    server.files = {"w.pth": b"content"}
    with pytest.raises(UserError, match=r"no file 'v.pth' at main; did you mean 'w.pth'\?"):
        source_file("hf://lab/moco/v.pth")
    with pytest.raises(UserError, match="there is no such revision gone on the hub"):
        source_file("hf://lab/moco/w.pth@gone")
    with pytest.raises(UserError, match="there is no such repository on the hub"):
        source_file("hf://lab/other/w.pth")


def test_another_content_is_refused_and_not_kept(server, cache):
    server.files = {"w.pth": b"content"}
    server.altered = {"w.pth": b"another"}
    with pytest.raises(UserError, match="does not serve the hub's w.pth: its sha256 is not"):
        source_file("hf://lab/moco/w.pth")
    assert not list(cache.rglob("w.pth"))
    server.altered = {}
    assert source_file("hf://lab/moco/w.pth").read_bytes() == b"content"
    assert {path.name for path in (cache / "main").iterdir()} == {"w.pth", hub_names.ORIGIN}


@pytest.mark.parametrize("offline", ["", "1"])
def test_without_a_network_the_error_says_what_to_put_where(server, cache, monkeypatch, offline):
    monkeypatch.setenv("HF_HUB_OFFLINE", offline)
    server.shutdown()
    server.server_close()
    reason = "HF_HUB_OFFLINE is set" if offline else ".*"
    with pytest.raises(UserError) as error:
        source_file("hf://lab/moco/w.pth")
    assert error.match(f"cannot fetch hf://lab/moco/w.pth: {reason}; fetch w.pth of ")
    assert "https://huggingface.co/lab/moco/tree/main elsewhere" in str(error.value)
    assert f"put it at {cache}/main/w.pth, or set HF_ENDPOINT to" in str(error.value)
    (cache / "main").mkdir(parents=True, exist_ok=True)
    (cache / "main" / "w.pth").write_bytes(b"put there by hand")
    assert source_file("hf://lab/moco/w.pth") == cache / "main" / "w.pth"
    assert hub_names.origin_of(cache / "main" / "w.pth") == {"name": "hf://lab/moco/w.pth@main"}


def test_without_the_library_one_sentence_names_the_extra(cache, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"not installed: pip install 'moco_d2\[hub\]', or fetch"):
        source_file("hf://lab/moco/w.pth")


@pytest.mark.parametrize(
    ("content", "words", "fetches"),
    [
        ("WEIGHTS: {}", [], False),
        ("DEVICE: cpu", ["--overrides-from-file", "MODEL.WEIGHTS", "{}"], False),
        ("DEVICE: cpu", ["MODEL.WEIGHTS", "{}"], True),
    ],
    ids=["config file", "suite", "command line"],
)
def test_only_what_the_user_typed_is_fetched(
    server, cache, checkpoint, tmp_path, content, words, fetches
):
    """A config file and a suite can use what is in the cache."""
    server.files = {"w.pth": checkpoint}
    name = "hf://lab/moco/w.pth"
    (tmp_path / "c.yaml").write_text(f"MODEL: {{{content.format(name)}}}\n")
    words = ["--config-file", str(tmp_path / "c.yaml"), *(word.format(name) for word in words)]
    cfg = load_job(argument_parser("").parse_args(words))
    assert name == cfg.MODEL.WEIGHTS
    if fetches:
        assert describe_weights(name)["provenance"]["published"]["commit"] == COMMIT
        return
    with pytest.raises(UserError, match="a config or a suite may not fetch from the hub: read"):
        describe_weights(name)
    assert server.requests == []
    source_file(name)
    assert describe_weights(name)["provenance"]["published"]["commit"] == COMMIT
