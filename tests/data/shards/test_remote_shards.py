import http.server
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest

from imbdiff.data import cache
from imbdiff.data.shards import download, stream
from imbdiff.data.sources import load
from imbdiff.runtime.errors import ConfigError, DataError
from tests.data.making import encoded, noise, tarred
from tests.data.shards.test_shards import samples, two_shards


@pytest.fixture(autouse=True)
def _own_indexes(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("IMBDIFF_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(download, "WAITS", (0.0, 0.0))
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


class Server:
    """A web server for the files of a folder; what it was asked for is in `asked`."""

    def __init__(self, root):
        self.root, self.asked = root, []
        self.ranges, self.break_at, self.busy, self.tag = True, None, 0, "v1"

    @contextmanager
    def serving(self):
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def do_GET(self):
                path = outer.root / self.path.lstrip("/")
                asked = self.headers.get("Range")
                outer.asked.append((self.path.lstrip("/"), asked))
                if outer.busy:
                    outer.busy -= 1
                    self.send_error(503)
                    return
                if not path.is_file():
                    self.send_error(404)
                    return
                data = path.read_bytes()
                start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and outer.ranges else 0
                self.send_response(206 if start else 200)
                if start:
                    self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
                self.send_header("Content-Length", str(len(data) - start))
                self.send_header("ETag", outer.tag)
                self.end_headers()
                stop = None if outer.break_at is None else start + outer.break_at
                self.wfile.write(data[start:stop])

        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
            thread.start()
            try:
                yield f"http://127.0.0.1:{server.server_port}"
            finally:
                server.shutdown()
                thread.join()


@pytest.mark.parametrize("ranges", [True, False])
def test_as_local_shards(tmp_path, ranges):
    server = Server(two_shards(tmp_path / "s"))
    server.ranges = ranges
    local = load(tmp_path / "s")
    with server.serving() as url:
        remote = load(f"{url}/train-{{0..1}}.tar")
        assert remote.ids() == local.ids()
        assert remote.labels().tolist() == local.labels().tolist()
        assert remote.survey().sizes == local.survey().sizes == {(4, 5): 5}
        assert remote.scan("train").hashes == local.scan("train").hashes
        kept, _ = remote.read_all(size=4, cache=tmp_path / "kept")
        plain, _ = remote.read_all(size=4, cache="off")
    mine, _ = local.read_all(size=4)
    assert np.array_equal(np.asarray(kept["train"].images), mine["train"].images)
    assert np.array_equal(plain["train"].images, mine["train"].images)


def test_threads_may_ask(tmp_path):
    """One connection, many askers, in any order."""
    tarred(tmp_path / "s" / "a.tar", samples([0, 1] * 20))
    with Server(tmp_path / "s").serving() as url:
        source = load(f"{url}/a.tar")
        places = [source.records["train"].opened[i] for i in np.random.default_rng(0).permutation(40)] * 3
        with ThreadPoolExecutor(8) as threads:
            found = list(threads.map(lambda place: source.reader.open(place).read(), places))
    local = load(tmp_path / "s" / "a.tar").reader
    path = str(tmp_path / "s" / "a.tar")
    assert found == [local.open((path, offset, size)).read() for _, offset, size in places]


def test_addresses_of_files(tmp_path):
    two_shards(tmp_path / "s")
    tarred(tmp_path / "s" / "val-0.tar", samples([1, 0], start=20))
    source = load((tmp_path / "s").as_uri() + "/{train-{0..1},val-0}.tar")
    assert {split: len(source.labels(split)) for split in source.splits} == {"train": 5, "val": 2}
    assert np.array_equal(source.read("val").images[0], noise(4, 5, 3, seed=20))


def test_a_later_start_needs_no_network(tmp_path):
    server = Server(two_shards(tmp_path / "s"))
    with server.serving() as url:
        pattern = f"{url}/train-{{0..1}}.tar"
        first, _ = load(pattern).read_all()  # kept without being asked, however small
        assert [name for name, _ in server.asked] == ["train-0.tar", "train-1.tar"] * 2  # two passes
    again, _ = load(pattern).read_all()
    assert np.array_equal(np.asarray(again["train"].images), np.asarray(first["train"].images))
    with pytest.raises(DataError, match="cannot be read: Connection refused"):
        load(pattern).read_all(cache=tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"cannot be read: Connection refused(?s:.)*download"):
        load(f"{url}/train-2.tar")


def test_only_missing_chunks_are_fetched(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "CHUNK_BYTES", 2 * 4 * 5 * 3)  # two images
    monkeypatch.setattr(download, "SKIP", 0)
    import imbdiff.data.shards.remote as remote

    monkeypatch.setattr(remote, "_BUFFER", 512)
    tarred(tmp_path / "s" / "a.tar", samples([0, 1] * 4))
    server = Server(tmp_path / "s")
    with server.serving() as url:
        load(f"{url}/a.tar").read_all(cache=tmp_path / "kept")
        (made,) = (tmp_path / "kept").iterdir()
        whole = (made / "images.u8").read_bytes()
        lines = (made / "journal.jsonl").read_text().splitlines(keepends=True)
        assert len(lines) == 4
        (made / "journal.jsonl").write_text("".join(lines[:3]))  # the last two images are missing
        server.asked.clear()
        load(f"{url}/a.tar").read_all(cache=tmp_path / "kept")
        places = load(f"{url}/a.tar").records["train"].opened
        asked = [int(wanted.removeprefix("bytes=").rstrip("-")) for _, wanted in server.asked]
        assert min(asked) == places[6][1]  # nothing before the first missing image
    assert (made / "images.u8").read_bytes() == whole


def test_broken_connections_and_busy_servers(tmp_path):
    big = {f"{i}.png": encoded(noise(64, 64, 3, seed=i)) for i in range(8)}
    members = {k: v for i in range(8) for k, v in ((f"{i}.png", big[f"{i}.png"]), (f"{i}.cls", b"%d" % (i % 2)))}
    path = tarred(tmp_path / "s" / "a.tar", members)
    server = Server(tmp_path / "s")
    server.break_at, server.busy = path.stat().st_size // 3 + 7, 1
    with server.serving() as url:
        source = load(f"{url}/a.tar")
        assert np.array_equal(source.read().images[7], noise(64, 64, 3, seed=7))
        assert len([wanted for _, wanted in server.asked if wanted]) >= 4  # gone on from the middle, in both passes
        server.break_at = 0
        with pytest.raises(DataError, match="broke off at byte"):
            source.read_all(cache="off")


def test_what_the_server_refuses(tmp_path):
    server = Server(two_shards(tmp_path))
    with server.serving() as url:
        with pytest.raises(DataError, match=r"train-2\.tar: the server answers 404"):
            load(f"{url}/train-{{0..2}}.tar")
        server.busy = 100
        with pytest.raises(DataError, match="answers 503"):
            load(f"{url}/other.tar")


def test_a_shard_that_changed(tmp_path):
    server = Server(two_shards(tmp_path))
    with server.serving() as url:
        source = load(f"{url}/train-0.tar")
        server.tag = "v2"
        with pytest.raises(DataError, match=r"has changed.*v1.*v2(?s:.)*start again"):
            source.read()
        assert load(f"{url}/train-0.tar").read().images.shape == (3, 4, 5, 3)


def test_a_cut_shard_and_bad_images(tmp_path):
    path = tarred(tmp_path / "x.tar", samples([0, 1]) | {"0001.png": b"no image"})
    with pytest.raises(DataError, match=r"x\.tar/0001\.png: not an image"):
        load(path.as_uri()).read()
    path.write_bytes(path.read_bytes()[:2048])
    with pytest.raises(DataError, match=r"x\.tar: cut off"):
        load(f"file://{tmp_path}/./x.tar")


@pytest.mark.parametrize("text", ["pipe:touch {mark} #.tar", "s3://bucket/x.tar", "ftp://host/x.tar"])
def test_addresses_that_are_not_read(tmp_path, text):
    with pytest.raises(ConfigError, match="not read"):
        load(text.replace("{mark}", str(tmp_path / "mark")))
    assert not (tmp_path / "mark").exists()


def test_addresses_with_passwords_or_other_schemes():
    with pytest.raises(ConfigError, match="password"):
        load("https://user:secret@host/x.tar")
    with pytest.raises(ConfigError, match="no https:, http: or file: address"):
        load("https://host/x.tar?val=pipe:ls")
    with pytest.raises(DataError, match="compressed"):
        load("https://host/x.tar.gz")


@pytest.mark.parametrize(
    "text", ["https://[bad/x.tar", "http://x:y/a.tar", "https:x.tar", "file:///", "http://\u2028./x.tar"]
)
def test_addresses_that_are_none(text):
    with pytest.raises(DataError, match=r"no address|cannot be read"):
        load(text)


def test_connections_are_closed_after_a_pass(tmp_path):
    with Server(two_shards(tmp_path / "s")).serving() as url:
        source = load(f"{url}/train-{{0..1}}.tar")
        x = source.read().images  # also where nothing is kept
        source.reader.open(source.records["train"].opened[0])
        assert not source.reader._file.closed
        first, _ = source.read_all(cache="off")
        assert source.reader._file.closed
        source.reader.open(source.records["train"].opened[0])
        source.scan("train")
        assert source.reader._file.closed
        assert np.array_equal(source.read().images, x)  # and opened again
    assert np.array_equal(first["train"].images, x)


def test_images_that_are_too_large_are_unusable(tmp_path, monkeypatch):
    with Server(two_shards(tmp_path / "s")).serving() as url:
        source = load(f"{url}/train-{{0..1}}.tar")
        sizes = [size for *_, size in source.records["train"].opened]
        monkeypatch.setattr(stream, "LARGEST", max(sizes) - 1)
        bad = source.scan("train").bad
    assert set(bad) == {name for name, size in zip(source.ids(), sizes, strict=True) if size == max(sizes)}
    assert all("more than 0 MiB" in why for why in bad.values())
