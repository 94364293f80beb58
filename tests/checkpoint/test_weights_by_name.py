import contextlib
import hashlib
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model
from detectron2.utils.file_io import PathManager
from iopath.common.file_io import PathManager as EmptyPathManager
from support.commands import Python
from support.http_server import LocalHandler, LocalServer, serving
from torchvision.models import get_model, get_weight

from moco_d2.checkpoint import weights_by_name as module
from moco_d2.checkpoint.download import Patience, download
from moco_d2.checkpoint.io import load_checkpoint, save_checkpoint
from moco_d2.checkpoint.mapping import infer_architecture
from moco_d2.checkpoint.network import Request
from moco_d2.checkpoint.published import PUBLISHED, Published
from moco_d2.checkpoint.vit.heads import find_heads
from moco_d2.checkpoint.vit.mapping import ViT
from moco_d2.checkpoint.vit.names import FAMILIES
from moco_d2.checkpoint.weights_by_name import Catalog, WeightsByName, source_file
from moco_d2.config.load import load_config
from moco_d2.errors import UserError

IMPATIENT = Patience(stall=0.3, tries=3, pause=0.01)
CONTENT = bytes(range(256)) * 1200  # 307,200 bytes, more than one chunk


class Server(LocalServer):
    """Serves `files` with Range; each request first takes the next of `faults`, if any.

    Attributes:
        requests: path and first byte asked for, of every request.
    """

    def __init__(self):
        super().__init__(Handler)
        self.faults: list = []


class Handler(LocalHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_GET(self):  # noqa: N802
        asked = self.headers.get("Range", "bytes=0-")
        first = int(asked.removeprefix("bytes=").removesuffix("-"))
        self.server.requests.append((self.path, first))
        fault = self.server.faults.pop(0) if self.server.faults else Handler.whole
        fault(self, self.server.files.get(self.path), first)

    def whole(self, content, first):
        if content is None:
            self.head(404, 0)
        elif first >= len(content):
            self.head(416, 0, Content_Range=f"bytes */{len(content)}")
        elif first:
            span = f"bytes {first}-{len(content) - 1}/{len(content)}"
            self.head(206, len(content) - first, Content_Range=span)
            self.wfile.write(content[first:])
        else:
            self.head(200, len(content))
            self.wfile.write(content)

    def without_range(self, content, first):
        self.head(200, len(content))
        self.wfile.write(content)

    def cut(self, content, first, after=100_000):
        """The connection breaks `after` bytes into the answer."""
        if first:
            span = f"bytes {first}-{len(content) - 1}/{len(content)}"
            self.head(206, len(content) - first, Content_Range=span)
        else:
            self.head(200, len(content))
        self.wfile.write(content[first : first + after])
        self.close_connection = True

    def stall(self, content, first):
        self.head(200, len(content))
        self.wfile.write(content[:1000])
        self.rfile.read(1)  # until the other side hangs up
        self.close_connection = True

    def drip(self, content, first):
        """A byte now and then: no read ever times out."""
        self.head(200, len(content))
        with contextlib.suppress(OSError):  # the other side hangs up
            for byte in content:
                self.wfile.write(bytes([byte]))
                time.sleep(0.05)
        self.close_connection = True

    def busy(self, content, first):
        self.head(503, 0)

    def moved(self, content, first):
        self.head(302, 0, Location=self.path)

    def to_a_web_page(self, content, first):
        self.head(302, 0, Location="/login")

    def web_page(self, content, first):
        page = b"<!DOCTYPE html><title>Log in</title>"
        self.head(200, len(page), Content_Type="text/html; charset=utf-8")
        self.wfile.write(page)

    def unmarked_web_page(self, content, first):
        page = b"\n<html>blocked</html>"
        self.head(200, len(page), Content_Type="application/octet-stream")
        self.wfile.write(page)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving(Server()) as server:
        yield server


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MOCO_D2_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MOCO_D2_MIRROR", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def publish(server):
    """Function: content -> it is on the server, and in the catalog that is returned."""

    def entry(content: bytes = CONTENT, algorithm: str = "md5", digits: int = 8) -> Catalog:
        server.files["/papers/toy.pth.tar"] = content
        found = hashlib.new(algorithm, content).hexdigest()[:digits]
        url = f"{server.address}/papers/toy.pth.tar"
        return Catalog([Published("toy://one", url, algorithm, found)], IMPATIENT)

    return entry


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


# ----- what is published


def test_torchvision_addresses_are_torchvisions_own():
    entries = [entry for entry in PUBLISHED if entry.name.startswith("torchvision://")]
    assert len(entries) == 9
    for entry in entries:
        short = entry.name.removeprefix("torchvision://")
        words = {"resnet": "ResNet", "resnext": "ResNeXt", "wide_resnet": "Wide_ResNet"}
        prefix = max((word for word in words if short.startswith(word)), key=len)
        weights = get_weight(f"{words[prefix]}{short[len(prefix) :].upper()}_Weights.IMAGENET1K_V1")
        assert entry.url == weights.url
        assert (entry.algorithm, len(entry.hash)) == ("sha256", 8)
        with torch.device("meta"):
            network = get_model(short)
        assert infer_architecture(network.state_dict()) == entry.network
        assert entry.hash in entry.file


# Typed from the README of the official code.
@pytest.mark.parametrize(
    ("name", "path", "md5"),
    [
        ("v1_200ep", "moco_v1_200ep/moco_v1_200ep_pretrain.pth.tar", "b251726a"),
        ("v2_200ep", "moco_v2_200ep/moco_v2_200ep_pretrain.pth.tar", "59fd9945"),
        ("v2_800ep", "moco_v2_800ep/moco_v2_800ep_pretrain.pth.tar", "a04e12f8"),
    ],
)
def test_moco_addresses_and_hashes(name, path, md5):
    url = f"https://dl.fbaipublicfiles.com/moco/moco_checkpoints/{path}"
    assert Published(f"moco://{name}", url, "md5", md5) in PUBLISHED


# Typed from the README of MAE, the models of DeiT, and pages of MoCo v3, DINO and DINOv2, which
# give no hashes.
@pytest.mark.parametrize(
    ("name", "path", "algorithm", "digits", "network"),
    [
        ("mae://vit_b", "mae/pretrain/mae_pretrain_vit_base.pth", "md5",
         "8cad7c", (768, 12, 12, 16)),
        ("mae://vit_l", "mae/pretrain/mae_pretrain_vit_large.pth", "md5",
         "b8b06e", (1024, 24, 16, 16)),
        ("mae://vit_h", "mae/pretrain/mae_pretrain_vit_huge.pth", "md5",
         "9bdbb0", (1280, 32, 16, 14)),
        ("timm://deit_tiny_patch16_224", "deit/deit_tiny_patch16_224-a1311bcf.pth", "sha256",
         "a1311bcf", (192, 12, 3, 16)),
        ("timm://deit_small_patch16_224", "deit/deit_small_patch16_224-cd65a155.pth", "sha256",
         "cd65a155", (384, 12, 6, 16)),
        ("timm://deit_base_patch16_224", "deit/deit_base_patch16_224-b5f2ef4d.pth", "sha256",
         "b5f2ef4d", (768, 12, 12, 16)),
        ("mocov3://vit_s_300ep", "moco-v3/vit-s-300ep/vit-s-300ep.pth.tar", "sha256", "",
         (384, 12, 12, 16)),
        ("mocov3://r50_1000ep", "moco-v3/r-50-1000ep/r-50-1000ep.pth.tar", "sha256", "", None),
        ("dino://vit_b8", "dino/dino_vitbase8_pretrain/dino_vitbase8_pretrain.pth", "sha256", "",
         (768, 12, 12, 8)),
        ("dinov2://vit_s14", "dinov2/dinov2_vits14/dinov2_vits14_pretrain.pth", "sha256", "",
         (384, 12, 6, 14)),
        ("timm://deit3_large_patch16_224", "deit/deit_3_large_224_1k.pth", "sha256", "",
         (1024, 24, 16, 16)),
    ],
)  # fmt: skip
def test_addresses_and_hashes_of_vits_and_of_their_peers(name, path, algorithm, digits, network):
    entry = next(entry for entry in PUBLISHED if entry.name == name)
    assert entry.url == f"https://dl.fbaipublicfiles.com/{path}"
    assert (entry.algorithm, entry.hash) == (algorithm, digits)
    if network:
        vit = entry.network
        assert (vit.width, vit.depth, vit.heads, vit.patch) == network


def test_each_published_vit_has_the_heads_that_its_file_gets():
    """A file by name is converted without --heads, so its name or family must say them."""
    families = {family.name: family for family in FAMILIES}
    of_scheme = {"mocov3": "moco_v3_vit", "dinov2": "dinov2"}
    vits = [entry for entry in PUBLISHED if isinstance(entry.network, ViT)]
    assert len(vits) > 10
    for entry in vits:
        family = families[of_scheme.get(entry.name.partition(":")[0], "timm_vit")]
        size = (entry.network.width, entry.network.depth)
        found = find_heads(size, family, {}, Request(file_name=entry.file))
        assert found == entry.network.heads, entry.name


def test_detectron2_knows_the_names(monkeypatch, cache):
    """Through `import moco_d2` alone, and without asking the network."""
    monkeypatch.setattr(module, "download", lambda *_: pytest.fail("asked the network"))
    with pytest.raises(UserError, match="weights moco://v3; did you mean 'moco://v"):
        PathManager.get_local_path("moco://v3")
    with pytest.raises(UserError, match="did you mean 'torchvision://resnet50'"):
        PathManager.get_local_path("torchvision://resnet05")


# ----- fetching


@pytest.mark.parametrize("algorithm", ["md5", "sha256"])
def test_a_file_is_fetched_once_and_kept(server, publish, cache, algorithm):
    catalog = publish(algorithm=algorithm)
    file = catalog.source_file("toy://one")
    assert file == cache / "toy.pth.tar"
    assert file.read_bytes() == CONTENT
    assert catalog.source_file("toy://one") == file
    assert server.requests == [("/papers/toy.pth.tar", 0)]
    assert visible(cache) == ["toy.pth.tar"]


@pytest.mark.parametrize(
    ("faults", "firsts"),
    [
        ([Handler.cut], [0, 100_000]),
        ([Handler.cut, Handler.cut], [0, 100_000, 200_000]),
        ([Handler.cut, Handler.without_range], [0, 100_000]),
        ([partial(Handler.cut, after=0)], [0, 0]),
        ([Handler.busy, Handler.busy], [0, 0, 0]),
        ([Handler.stall], [0, 1000]),
        ([Handler.cut, Handler.moved], [0, 100_000, 100_000]),
    ],
    ids=["cut", "cut twice", "server without Range", "cut at once", "busy", "stall", "moved"],
)
def test_a_broken_download_continues_where_it_broke(server, publish, cache, faults, firsts):
    server.faults = list(faults)
    assert publish().source_file("toy://one").read_bytes() == CONTENT
    assert [first for _, first in server.requests] == firsts
    assert visible(cache) == ["toy.pth.tar"]


def test_the_next_call_continues_too_and_half_a_file_never_has_the_name(server, publish, cache):
    server.faults = [partial(Handler.cut, after=50_000)] * 3
    with pytest.raises(UserError, match="breaks off: 150000 of 307200 bytes arrived; fetch "):
        publish().source_file("toy://one")
    assert visible(cache) == ["toy.pth.tar.part"]
    assert publish().source_file("toy://one").read_bytes() == CONTENT
    assert [first for _, first in server.requests] == [0, 50_000, 100_000, 150_000]


@pytest.mark.parametrize("leftover", [CONTENT, CONTENT + b"more", b"of another file"])
def test_any_leftover_is_settled(server, publish, cache, leftover):
    """All of the file, too much, and the beginning of another file."""
    cache.mkdir()
    (cache / "toy.pth.tar.part").write_bytes(leftover)
    assert publish().source_file("toy://one").read_bytes() == CONTENT
    assert visible(cache) == ["toy.pth.tar"]


def test_a_connection_that_makes_headway_is_no_failure(server, tmp_path):
    """More cuts than tries."""
    server.files["/big"] = bytes(6 << 20)
    server.faults = [partial(Handler.cut, after=(1 << 20) + 1)] * 5
    assert download(f"{server.address}/big", tmp_path / "big", IMPATIENT)
    assert (tmp_path / "big").stat().st_size == 6 << 20
    assert len(server.requests) == 6


@pytest.mark.parametrize("fault", [Handler.stall, Handler.drip])
def test_a_server_that_is_too_slow_is_given_up(server, publish, cache, fault):
    server.faults = [fault] * 3
    started = time.monotonic()
    with pytest.raises(UserError, match=r"toy.pth.tar stalls: almost no data in 0.3 s; fetch "):
        publish().source_file("toy://one")
    assert time.monotonic() - started < 5
    assert not (cache / "toy.pth.tar").exists()


def test_what_is_not_there_is_asked_for_once(server, publish, cache):
    catalog = publish()
    server.files.clear()
    with pytest.raises(UserError, match=r"/papers/toy.pth.tar answers 404 Not Found; fetch it "):
        catalog.source_file("toy://one")
    assert len(server.requests) == 1
    assert visible(cache) == []


def test_a_web_page_is_named_as_such(server, publish, cache):
    server.faults = [Handler.to_a_web_page, Handler.web_page]
    with pytest.raises(UserError, match=r"toy.pth.tar leads to a web page, http.*/login, instead"):
        publish().source_file("toy://one")
    assert len(server.requests) == 2
    server.faults = [Handler.unmarked_web_page]
    with pytest.raises(UserError, match="its md5 begins with .{8}, not .{8}, and it is a web page"):
        publish().source_file("toy://one")
    assert visible(cache) == []


def test_a_file_without_a_published_hash_is_recorded_with_its_sha256(
    server, publish, cache, checkpoint
):
    catalog = publish(checkpoint, "sha256", digits=0)
    server.faults = [Handler.unmarked_web_page]
    with pytest.raises(UserError, match=r"does not serve the published toy.*: it is a web page"):
        catalog.source_file("toy://one")
    assert not visible(cache)
    converted = catalog.weights_file("toy://one")
    assert converted.name.startswith("toy_one-unconfirmed-")
    published = load_checkpoint(converted)["provenance"]["published"]
    sha256 = hashlib.sha256(checkpoint).hexdigest()
    assert published == {"name": "toy://one", "algorithm": "sha256", "hash": sha256}
    assert catalog.weights_file("toy://one") == converted


def test_a_wrong_hash_leaves_nothing(server, publish, cache):
    catalog = publish()
    server.files["/papers/toy.pth.tar"] = CONTENT[::-1]
    with pytest.raises(
        UserError, match=r"does not serve the published toy.pth.tar: its md5 begins"
    ):
        catalog.source_file("toy://one")
    assert visible(cache) == []
    assert len(server.requests) == 1


def test_a_file_of_a_known_name_and_another_content_is_refused(publish, cache, tmp_path):
    catalog = publish()
    catalog.check_known_file(tmp_path / "toy.pth.tar")  # no file: someone else's error
    (tmp_path / "toy.pth.tar").write_bytes(CONTENT)
    catalog.check_known_file(tmp_path / "toy.pth.tar")
    (tmp_path / "toy.pth.tar").write_bytes(CONTENT[:-1])
    with pytest.raises(UserError, match=r"toy.pth.tar is not the published .* and use toy://one"):
        catalog.check_known_file(tmp_path / "toy.pth.tar")
    cache.mkdir()
    (cache / "toy.pth.tar").write_bytes(b"put there by hand")
    with pytest.raises(UserError, match=r"toy.pth.tar is not the published"):
        catalog.source_file("toy://one")


def test_source_file_takes_names_and_paths(tmp_path, monkeypatch, publish, cache):
    assert source_file(tmp_path / "ours.pth") == tmp_path / "ours.pth"
    known = tmp_path / "moco_v2_800ep_pretrain.pth.tar"
    known.write_bytes(CONTENT)
    with pytest.raises(UserError, match="begins with .{8}, not a04e12f8.*use moco://v2_800ep"):
        source_file(str(known))
    monkeypatch.setattr(module, "CATALOG", publish())
    assert source_file("toy://one").read_bytes() == CONTENT


def test_without_a_network_one_sentence_says_what_to_put_where(server, publish, cache):
    catalog = publish()
    url = f"{server.address}/papers/toy.pth.tar"
    server.shutdown()
    server.server_close()
    with pytest.raises(UserError) as error:
        catalog.source_file("toy://one")
    assert str(error.value) == (
        f"cannot fetch toy://one: {url} cannot be reached: Connection refused; fetch it elsewhere "
        f"and put it at {cache}/toy.pth.tar, or set MOCO_D2_MIRROR to the address of a folder that "
        "holds it"
    )
    (cache / "toy.pth.tar").write_bytes(CONTENT)
    assert catalog.source_file("toy://one") == cache / "toy.pth.tar"


def test_an_unknown_server_is_named(cache):
    entry = Published("toy://one", "https://nowhere.invalid/toy.pth", "md5", "00000000")
    with pytest.raises(UserError, match="https://nowhere.invalid/toy.pth cannot be reached: "):
        Catalog([entry], IMPATIENT).source_file("toy://one")
    with pytest.raises(UserError, match="no published weights unlike; there are toy://one"):
        Catalog([entry]).source_file("unlike")


def test_a_mirror_serves_the_same_file_names(server, cache, monkeypatch):
    url = "https://nowhere.invalid/papers/deep/toy.pth.tar"
    entry = Published("toy://one", url, "md5", hashlib.md5(CONTENT).hexdigest()[:8])
    server.files["/our/mirror/toy.pth.tar"] = CONTENT
    monkeypatch.setenv("MOCO_D2_MIRROR", f"{server.address}/our/mirror/")
    catalog = Catalog([entry], IMPATIENT)
    assert catalog.source_file("toy://one").read_bytes() == CONTENT
    assert server.requests == [("/our/mirror/toy.pth.tar", 0)]

    (cache / "toy.pth.tar").unlink()
    monkeypatch.setenv("MOCO_D2_MIRROR", "/a/folder")
    with pytest.raises(UserError, match="MOCO_D2_MIRROR /a/folder is not an http or https address"):
        catalog.source_file("toy://one")


def test_the_cache_is_ours_or_beside_iopaths(monkeypatch, tmp_path):
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "iopath"))
    monkeypatch.delenv("MOCO_D2_CACHE", raising=False)
    assert module.cache_folder() == tmp_path / "iopath" / "moco_d2"
    monkeypatch.setenv("MOCO_D2_CACHE", str(tmp_path / "ours"))
    assert module.cache_folder() == tmp_path / "ours"


def test_a_cache_that_cannot_be_written_is_a_user_error(publish, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("MOCO_D2_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UserError, match="cannot write to the cache .*; set MOCO_D2_CACHE to"):
        publish().source_file("toy://one")


def test_a_full_disk_is_a_user_error(publish, cache):
    cache.mkdir()
    (cache / "toy.pth.tar.part").symlink_to("/dev/full")
    with pytest.raises(UserError, match="cannot write .*toy.pth.tar.part: No space left on device"):
        publish().source_file("toy://one")


# ----- converting


def test_weights_by_name_arrive_in_a_detector(server, publish, cache, checkpoint, small):
    """As DetectionCheckpointer does it; then again with no network and a read-only cache."""
    catalog = publish(checkpoint)
    checkpointer = DetectionCheckpointer(
        build_model(
            load_config(
                "coco_FPN_1x_moco.yaml",
                [
                    *("MODEL.DEVICE", "cpu", "MODEL.RESNETS.DEPTH", "18"),
                    *("MODEL.RESNETS.STEM_OUT_CHANNELS", "16"),
                    *("MODEL.RESNETS.RES2_OUT_CHANNELS", "16"),
                    *("MODEL.BACKBONE.NAME", "build_basic_resnet_fpn"),
                    *("MODEL.RESNETS.NORM", "BN", "MODEL.FPN.NORM", "BN"),
                ],
            )
        )
    )
    checkpointer.path_manager = EmptyPathManager()
    checkpointer.path_manager.register_handler(WeightsByName(catalog))
    checkpointer.load("toy://one")
    arrived = checkpointer.model.state_dict()["backbone.bottom_up.res5.1.conv2.weight"]
    assert torch.equal(arrived, small["layer4.1.conv2.weight"])

    (converted,) = [name for name in visible(cache) if name.startswith("toy_one-")]
    content = (cache / converted).read_bytes()
    assert hashlib.sha256(content).hexdigest()[:16] == Path(converted).stem.split("-")[-1]

    server.shutdown()
    (cache / "toy.pth.tar").unlink()
    cache.chmod(0o555)
    try:
        assert catalog.weights_file("toy://one") == cache / converted
    finally:
        cache.chmod(0o755)
    assert len(server.requests) == 1


def test_a_damaged_cached_file_is_made_again(publish, cache, checkpoint):
    catalog = publish(checkpoint)
    whole = catalog.weights_file("toy://one")
    size = whole.stat().st_size
    whole.write_bytes(whole.read_bytes()[:-1])
    again = catalog.weights_file("toy://one")
    assert again.stat().st_size == size
    assert visible(cache) == sorted([again.name, "toy.pth.tar"])


@pytest.mark.parametrize("algorithm", ["md5", "sha256"])
def test_a_file_is_not_the_published_one_because_it_is_in_the_cache(
    publish, cache, checkpoint, algorithm, tmp_path
):
    """Named by its own hash, as ours are: made from another file, or by hand."""
    catalog = publish(checkpoint, algorithm)
    true = catalog.weights_file("toy://one")
    sound = load_checkpoint(true)
    forged = {
        "another source": {"published": {**sound["provenance"]["published"], "hash": "0" * 32}},
        "another name": {"published": {**sound["provenance"]["published"], "name": "toy://two"}},
        "an older version": {"published": None},
        "another sha256": {"source_sha256": "0" * 64},
    }
    if algorithm == "md5":
        del forged["another sha256"]
    true.unlink()
    for changes in forged.values():
        save_checkpoint(
            tmp_path / "w.pth", {**sound, "provenance": {**sound["provenance"], **changes}}
        )
        digest = hashlib.sha256((tmp_path / "w.pth").read_bytes()).hexdigest()[:16]
        planted = true.with_name(f"{true.stem.rpartition('-')[0]}-{digest}.pth")
        (tmp_path / "w.pth").rename(planted)
        assert catalog.weights_file("toy://one") == true
        assert visible(cache) == sorted([true.name, "toy.pth.tar"])
        true.unlink()


def test_what_cannot_be_converted_leaves_no_weights(publish, cache):
    with pytest.raises(UserError, match=r"toy.pth.tar"):
        publish().weights_file("toy://one")
    assert visible(cache) == ["toy.pth.tar"]


def slowly(handler, content, first):
    time.sleep(IMPATIENT.stall / 2)
    handler.whole(content, first)


def test_processes_fetch_once(server, cache, publish):
    publish()
    url, md5 = f"{server.address}/papers/toy.pth.tar", hashlib.md5(CONTENT).hexdigest()[:8]
    server.faults = [slowly] * 2
    code = (
        "import sys\n"
        "from moco_d2.checkpoint.weights_by_name import Catalog, Published\n"
        "catalog = Catalog([Published('toy://one', sys.argv[1], 'md5', sys.argv[2])])\n"
        "print('ready', flush=True)\n"
        "sys.stdin.readline()\n"
        "print(catalog.source_file('toy://one'))\n"
    )
    processes = [
        Python(["-c", code, url, md5], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    files = {process.communicate(timeout=600)[0] for process in processes}
    assert files == {f"{cache}/toy.pth.tar\n"}
    assert len(server.requests) == 1


def test_who_waits_finds_it_converted(server, publish, cache, checkpoint):
    catalog = publish(checkpoint)
    server.faults = [slowly] * 2
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(catalog.weights_file, ["toy://one"] * 2)
    assert first == second and first.is_file()
    assert len(server.requests) == 1
    assert visible(cache) == sorted([first.name, "toy.pth.tar"])
