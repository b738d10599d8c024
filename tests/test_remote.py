"""Pictures from URLs and from fsspec's file systems, by all roads; hostile ones are in faults."""

from __future__ import annotations

import hashlib
import io
import ipaddress
import shutil
import socket
import ssl
import subprocess
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import fsspec
import numpy as np
import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from internet import PUBLIC, answer, redirect
from llama_index.core.schema import ImageNode, MediaResource, Node, NodeWithScore, QueryBundle
from llama_index.core.storage.kvstore import SimpleKVStore
from PIL import Image

from llama_index_clip_ext import (
    CLIPEmbedding,
    ImageLoadError,
    ImageNotFoundError,
    aingest_images,
    create_retriever,
    ingest_images,
    load_image,
    load_image_nodes,
    remote,
    show_results,
)
from llama_index_clip_ext.nodes import list_images
from llama_index_clip_ext.remote import fetch
from llama_index_clip_ext.urls import check_hosts, describe_url, is_public


def encoded(color="red", size=(40, 30)):
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, "PNG")
    return buffer.getvalue()


RED, BLUE = encoded("red"), encoded("blue")
URL = "https://pictures.example/a%20folder/red.png"


@pytest.fixture
def page(internet):
    """A picture on the internet."""
    return internet.put("http://pictures.example/red.png", answer(RED))


@pytest.fixture
def open_clip(clip_dir):
    """A model that fetches URLs."""
    return CLIPEmbedding(clip_dir, allow_urls=True)


def everything(store):
    rows = store.client.query(store.collection_name, filter='id != ""', output_fields=["id"])
    return store.get_nodes([row["id"] for row in rows])


def only_red_then_blue(internet, url):
    """Answer with another picture each time, so that one that is fetched twice is found out."""
    pictures = iter([RED, BLUE, RED, BLUE])
    return internet.put(url, lambda connection: connection.sendall(answer(next(pictures))))


def test_a_picture_is_fetched_from_the_address_that_was_checked(internet, page):
    assert load_image(page, allow_urls=True).getpixel((0, 0)) == (255, 0, 0)
    assert internet.looked_up == ["pictures.example"]
    assert internet.reached == [PUBLIC]
    (request,) = internet.asked
    assert request.startswith("GET /red.png HTTP/1.1\r\nHost: pictures.example\r\n")
    assert "Accept-Encoding: identity\r\n" in request
    assert not {"cookie", "authorization", "referer"} & set(request.lower().split())


def test_the_network_itself():
    found = remote.resolve("localhost", 80)
    assert {ipaddress.ip_address(one).is_loopback for one in found} == {True}
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        port = server.getsockname()[1]
        for host in ("localhost", "127.0.0.1", "[::1]", "[::ffff:127.0.0.1]"):
            with pytest.raises(ImageLoadError, match="no public address"):
                fetch(f"http://{host}:{port}/", True)
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()
        remote.connect("127.0.0.1", port, 5).close()
        server.accept()[0].close()


def test_no_proxy_of_the_environment_is_used(internet, page, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert fetch(page, True) == RED


def test_an_address_that_does_not_answer_leaves_time_for_the_next(internet, page, monkeypatch):
    internet.hosts["pictures.example"] = [["93.184.216.35", PUBLIC]]
    connect = internet.connect

    def refusing(address, port, seconds):
        if address != PUBLIC:
            raise remote.httpcore.ConnectError("refused")
        return connect(address, port, seconds)

    monkeypatch.setattr(remote, "connect", refusing)
    assert fetch(page, True) == RED


@pytest.mark.parametrize(
    ("hosts", "host", "is_allowed"),
    [
        (["pictures.example"], "pictures.example", True),
        (["Pictures.Example."], "pictures.example", True),
        (["pictures.example"], "PICTURES.example.", True),
        (["pictures.example"], "www.pictures.example", False),
        (["*.pictures.example"], "www.pictures.example", True),
        (["*.pictures.example"], "a.b.pictures.example", True),
        (["*.pictures.example"], "pictures.example", False),
        (["*.pictures.example"], "evilpictures.example", False),
        (["bücher.example"], "xn--bcher-kva.example", True),
        (["xn--bcher-kva.example"], "BÜCHER.example", True),
        (["other.example", PUBLIC], PUBLIC, True),
        ([], "pictures.example", False),
        (False, "pictures.example", False),
        (True, "pictures.example", True),
    ],
)
def test_only_hosts_of_the_list_are_asked(internet, hosts, host, is_allowed):
    ascii_host = "xn--bcher-kva.example" if "CHER" in host else host.lower().removesuffix(".")
    internet.put(f"http://{ascii_host}/", answer(RED))
    if is_allowed:
        assert fetch(f"http://{host}/", hosts) == RED
    else:
        with pytest.raises(ImageLoadError, match="allow_urls"):
            fetch(f"http://{host}/", hosts)
        assert internet.looked_up == internet.reached == []


@pytest.mark.parametrize(
    ("hosts", "error"),
    [
        ("pictures.example", TypeError),
        ({"pictures.example": True}, TypeError),
        ([7], TypeError),
        (["https://pictures.example"], ValueError),
        (["pictures.example/a"], ValueError),
        (["pictures.example:443"], ValueError),
        (["*"], ValueError),
        (["a.*.example"], ValueError),
        ([""], ValueError),
    ],
)
def test_a_list_that_is_none_is_refused_at_once(clip_dir, hosts, error):
    with pytest.raises(error, match="allow_urls"):
        check_hosts(hosts)
    with pytest.raises(error, match="allow_urls"):
        CLIPEmbedding(clip_dir, allow_urls=hosts)
    with pytest.raises(error, match="allow_urls"):
        load_image(RED, allow_urls=hosts)


def test_a_model_keeps_its_hosts_when_it_is_stored(clip_dir):
    embed_model = CLIPEmbedding(clip_dir, allow_urls=("Pictures.Example", "*.example.org"))
    assert embed_model.allow_urls == ["pictures.example", "*.example.org"]
    again = CLIPEmbedding.from_json(embed_model.to_json())
    assert again.allow_urls == ["pictures.example", "*.example.org"]


@pytest.mark.parametrize(
    "location", ["http://other.example/b.png", "//other.example/b.png", "/b.png", "b.png", "?b#c"]
)
def test_redirects_are_followed(internet, location):
    url = internet.put("http://pictures.example/a", redirect(location))
    for place in ("other.example/b.png", "pictures.example/b.png", "pictures.example/a?b"):
        internet.put(f"http://{place}", answer(BLUE))
    assert fetch(url, True) == BLUE


def test_threads_do_not_disturb_each_other(internet):
    urls = [
        internet.put(f"http://pictures.example/{number}", answer(b"%d" % number * 1000))
        for number in range(64)
    ]
    with ThreadPoolExecutor(16) as threads:
        contents = list(threads.map(lambda url: fetch(url, True), urls))
    assert contents == [b"%d" % number * 1000 for number in range(64)]
    assert [content.url for content in contents] == urls


def test_redirects_end(internet):
    for number in range(9):
        internet.put(f"http://pictures.example/{number}", redirect(f"/{number + 1}"))
    internet.put("http://pictures.example/9", answer(RED))
    assert fetch("http://pictures.example/4", True) == RED
    with pytest.raises(ImageLoadError, match="more than 5 redirects"):
        fetch("http://pictures.example/3", True)


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        ("404 Not Found", r"answers 404 \(Not Found\), not 200"),
        ("403 Forbidden", "download it"),
        ("429 Slow down", "try again later"),
        ("503 Full", r"503 \(Service Unavailable\); try again later"),
        ("206 Part", "not 200"),
        ("204 None", "not 200"),
        ("799 Odd", "799"),
    ],
)
def test_what_the_server_answers_is_said_and_not_tried_again(internet, status, reason):
    url = internet.put("http://pictures.example/a", answer(RED, status=status))
    with pytest.raises(ImageLoadError, match=reason):
        fetch(url, True)
    assert len(internet.asked) == 1


@pytest.mark.parametrize(
    ("url", "target", "host"),
    [
        ("http://pictures.example", "/", "pictures.example"),
        ("http://pictures.example:80/a#b", "/a", "pictures.example"),
        ("http://pictures.example:8080/a?b=1&c=%20", "/a?b=1&c=%20", "pictures.example:8080"),
        ("http://pictures.example/猫 .jpg".replace(" ", "%20"), "/%E7%8C%AB%20.jpg", None),
        ("HTTP://Pictures.Example./A?ü", "/A?%C3%BC", "pictures.example"),
        (f"http://{PUBLIC}/a", "/a", PUBLIC),
        ("http://[2606:2800:220::1]:8080/a", "/a", "[2606:2800:220::1]:8080"),
    ],
)
def test_what_is_asked_for(internet, url, target, host):
    host = host or "pictures.example"
    internet.hosts["pictures.example"] = [[PUBLIC]]
    internet.pages[host, target] = answer(RED)
    assert fetch(url, True).url == f"http://{host}{target}"
    assert internet.asked[0].startswith(f"GET {target} HTTP/1.1\r\nHost: {host}\r\n")


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://a.example/b.png", "https://a.example/b.png"),
        ("https://a.example/@me/b.png", "https://a.example/@me/b.png"),
        ("https://a.example/b.png?X-Amz-Signature=s3cret", "https://a.example/b.png?..."),
        ("https://a.example/b.png#s3cret", "https://a.example/b.png?..."),
        ("https://user:s3cret@a.example/b.png", "https://a.example/b.png"),
        ("https://user:s3c@ret@a.example/b.png", "https://a.example/b.png"),
        ("https://user:s/3cret@a.example/b.png", "https://a.example/b.png"),
        ("https://user:s?3cret@a.example/b.png", "https://a.example/b.png"),
        ("https://user:s#3cret@a.example/b.png", "https://a.example/b.png"),
        ("https://s3cret@a.example:x/b", "https://a.example:x/b"),
        ("https://a.example/\r\n\x1b[31m", "https://a.example/\ufffd\ufffd\ufffd[31m"),
    ],
)
def test_a_name_holds_no_secret(url, name):
    assert describe_url(url) == name
    with pytest.raises(ImageLoadError) as caught:
        load_image(url)
    assert caught.value.source == name
    if "s3cret" in url or "3cret" in url:
        with pytest.raises(ImageLoadError) as caught:
            load_image(url, allow_urls=["other.example"])
        chain = (caught.value, caught.value.__cause__, caught.value.__context__)
        assert "3cret" not in "".join(map(str, chain))


def test_a_name_is_short():
    assert len(describe_url("https://a.example/" + "b" * 1000)) == 256


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        (PUBLIC, True),
        ("2606:2800:220::1", True),
        (f"::ffff:{PUBLIC}", True),
        (f"64:ff9b::{PUBLIC}", True),
        ("::ffff:127.0.0.1", False),
        ("64:ff9b::10.0.0.1", False),
        ("64:ff9b:1::a00:1", False),
        ("2002:7f00:1::", False),
        ("2002:5db8:d822::", False),
        ("2001:0:5db8:d822::1", False),
        ("::7f00:1", False),
        ("::ffff:0:7f00:1", False),
        ("fd00:ec2::254", False),
        ("fe80::1", False),
        ("2606:2800:220::1%eth0", False),
        ("ff02::1", False),
        ("fec0::1", False),
        ("3fff::1", False),
        ("2001:db8::1", False),
        ("127.0.0.1", False),
        ("0.0.0.0", False),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("100.100.100.200", False),
        ("168.63.129.16", False),
        ("192.0.0.192", False),
        ("192.88.99.1", False),
        ("198.18.0.1", False),
        ("224.0.0.1", False),
        ("240.0.0.1", False),
        ("255.255.255.255", False),
    ],
)
def test_public_addresses(address, expected):
    assert is_public(address) is expected


def _certificate(folder, name):
    if not shutil.which("openssl"):
        pytest.skip("openssl makes the certificate, and is not here")
    command = [
        *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
        *("-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}"),
        *("-addext", "keyUsage=digitalSignature,keyCertSign"),
        *("-keyout", folder / "key.pem", "-out", folder / "certificate.pem"),
    ]
    subprocess.run(command, check=True, capture_output=True)
    return folder / "certificate.pem", folder / "key.pem"


@pytest.mark.parametrize(
    ("host", "is_known"),
    [("pictures.example", True), ("other.example", True), ("pictures.example", False)],
)
def test_tls_is_of_the_name_though_the_address_is_connected_to(
    internet, tmp_path, monkeypatch, host, is_known
):
    certificate, key = _certificate(tmp_path, "pictures.example")
    if is_known:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    monkeypatch.setattr(remote, "_tls", remote._tls.__wrapped__)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    names = []
    context.sni_callback = lambda sock, name, _: names.append(name)
    internet.tls = context
    url = internet.put(f"https://{host}/red.png", answer(RED))
    if is_known and host == "pictures.example":
        assert load_image(url, allow_urls=True).getpixel((0, 0)) == (255, 0, 0)
    else:
        with pytest.raises(ImageLoadError, match=r"connection failed .*certificate"):
            load_image(url, allow_urls=True)
        assert internet.asked == []
    assert names == [host]


def test_a_stranger_of_https_is_refused(internet, page):
    internet.at_once = lambda connection: connection.sendall(answer(RED))
    with pytest.raises(ImageLoadError, match="the connection failed"):
        fetch(page.replace("http:", "https:"), True)


# By all roads


@pytest.mark.parametrize("kind", ["str", "ImageNode", "Node"])
def test_every_kind_is_embedded_as_its_picture(open_clip, page, kind):
    source = {
        "str": page,
        "ImageNode": ImageNode(image_url=page),
        "Node": Node(image_resource=MediaResource(url=page)),
    }[kind]
    np.testing.assert_allclose(
        open_clip.get_image_embedding(source), open_clip.get_image_embedding(RED), atol=1e-6
    )


async def test_every_road_of_the_model(open_clip, page):
    expected = open_clip.get_image_embedding(RED)
    node = ImageNode(image_url=page)
    rows = [
        await open_clip.aget_image_embedding(page),
        open_clip.get_image_embedding_batch([page])[0],
        open_clip([node])[0].embedding,
        (await open_clip.acall([ImageNode(image_url=page)]))[0].embedding,
        open_clip.compose_query(image=page).embedding,
        *[batch.embeddings[0] for batch in open_clip.stream_images([page])],
    ]
    for row in rows:
        np.testing.assert_allclose(row, expected, atol=1e-6)
    assert node.image is None


def test_a_text_is_not_fetched_where_images_are(open_clip, internet, page):
    for row in (open_clip.get_query_embedding(page), open_clip.get_text_embedding(page)):
        assert np.dot(row, open_clip.get_image_embedding(RED)) < 0.99
    assert internet.asked == internet.looked_up == []


def test_a_batch_goes_on_without_what_fails(open_clip, internet, page):
    lost = "http://pictures.example/lost.png?token=s3cret"
    internet.pages["pictures.example", "/lost.png?token=s3cret"] = answer(b"", status="404 No")
    html = internet.put(
        "http://pictures.example/page", answer(b"<html>", "Content-Type: image/png")
    )
    result = open_clip.embed_images([page, lost, html], on_error="skip")
    assert result.kept == [0]
    assert [(one.index, one.source) for one in result.failures] == [
        (1, "http://pictures.example/lost.png?..."),
        (2, html),
    ]
    assert "404" in result.failures[0].reason
    assert "not a picture" in result.failures[1].reason
    with pytest.raises(ImageLoadError, match=r"image \(http://pictures.example/page\): not a pict"):
        open_clip.get_image_embedding(html)


def test_a_picture_is_fetched_once_for_its_hash_and_its_pixels(clip_dir, store, internet):
    cached = CLIPEmbedding(clip_dir, allow_urls=True, embeddings_cache=SimpleKVStore())
    red, blue = (cached.get_image_embedding(content) for content in (RED, BLUE))
    url = only_red_then_blue(internet, "http://pictures.example/changing.png")
    # The cache's key is the hash.
    np.testing.assert_allclose(cached.get_image_embedding(url), red, atol=1e-6)
    np.testing.assert_allclose(cached.get_image_embedding(url), blue, atol=1e-6)
    assert len(internet.asked) == 2

    report = ingest_images([url], embed_model=cached, vector_store=store)
    assert (report.added, len(internet.asked)) == (1, 3)
    (hit,) = create_retriever(cached, store).retrieve_image(RED)
    assert hit.score == pytest.approx(1, abs=1e-5)
    assert hit.metadata["content_hash"] == hashlib.sha256(RED).hexdigest()


async def test_what_leaves_itself_out_is_fetched_once(open_clip, store, internet):
    files = {"red": RED, "blue": BLUE}
    for name, content in files.items():
        internet.put(f"http://pictures.example/{name}.png", answer(content))
    ingest_images(
        [f"http://pictures.example/{name}.png" for name in files],
        embed_model=open_clip,
        vector_store=store,
    )
    retriever = create_retriever(open_clip, store)

    def names(hits):
        return [hit.metadata["file_name"] for hit in hits]

    url = only_red_then_blue(internet, "http://pictures.example/changing.png")
    asked = len(internet.asked)
    assert names(retriever.retrieve_image(url, exclude_self=True)) == ["blue.png"]
    assert names(retriever.retrieve_image(url)) == ["blue.png", "red.png"]
    assert names(await retriever.aretrieve_image(url, exclude_self=True)) == ["blue.png"]
    next_is_blue = ImageNode(image_url=url)
    assert names(retriever.retrieve_like([next_is_blue])) == ["red.png"]
    assert len(internet.asked) == asked + 4
    bundle = QueryBundle("", image_path="http://pictures.example/blue.png")
    assert names(retriever.retrieve(bundle)) == ["blue.png", "red.png"]


def test_ingest_of_urls(open_clip, store, internet, monkeypatch):
    internet.put("http://pictures.example/a%20folder/red.png?v=1", answer(RED))
    url = "http://Pictures.Example/a%20folder/red.png?v=1"
    report = ingest_images(url, embed_model=open_clip, vector_store=store)
    assert (report.added, report.failed) == (1, [])
    (node,) = everything(store)
    namespace = uuid.UUID("7a1f6f0e-3a55-5c5e-9d0b-6c2f1d8a4b11")
    assert node.node_id == str(
        uuid.uuid5(namespace, "http://pictures.example/a%20folder/red.png?v=1")
    )
    assert (node.image_url, node.image_path, node.image) == (url, None, None)
    assert node.image_mimetype == "image/png"
    assert node.metadata == {
        "file_name": "red.png",
        "file_type": "image/png",
        "file_size": len(RED),
        "width": 40,
        "height": 30,
        "content_hash": hashlib.sha256(RED).hexdigest(),
    }
    monkeypatch.setattr(open_clip.encoder, "_rows", lambda *args: pytest.fail("embedded again"))
    report = ingest_images([url], embed_model=open_clip, vector_store=store)
    assert (report.unchanged, report.total, store.count()) == (1, 1, 1)
    assert len(internet.asked) == 2


@pytest.mark.parametrize("kind", ["ImageNode", "Node"])
def test_ingest_of_nodes_with_urls(open_clip, store, internet, page, kind):
    node = {
        "ImageNode": lambda: ImageNode(id_="n", image_url=page, metadata={"k": 1}),
        "Node": lambda: Node(id_="n", image_resource=MediaResource(url=page), metadata={"k": 1}),
    }[kind]
    given = node()
    report = ingest_images([given], embed_model=open_clip, vector_store=store)
    assert (report.added, report.failed, len(internet.asked)) == (1, [], 1)
    assert given == node()
    row = store.client.get(store.collection_name, ids=["n"])[0]
    assert (row["modality"], row["k"]) == ("image", 1)
    assert row["content_hash"] == hashlib.sha256(RED).hexdigest()
    (stored,) = store.get_nodes(["n"])
    if kind == "Node":
        assert (stored.image_resource.data, str(stored.image_resource.url)) == (None, page)
    else:
        assert (stored.image, stored.image_url) == (None, page)
    report = ingest_images([node()], embed_model=open_clip, vector_store=store)
    assert report.unchanged == 1
    np.testing.assert_allclose(row["embedding"], open_clip.get_image_embedding(RED), atol=1e-6)


def test_ingest_reports_what_is_not_allowed_or_lost(clip, open_clip, store, internet, page):
    report = ingest_images([page, ImageNode(image_url=page)], embed_model=clip, vector_store=store)
    assert [failure.source for failure in report.failed] == [page, page]
    assert all("allow_urls=True" in failure.reason for failure in report.failed)
    assert internet.looked_up == []
    internet.put("http://pictures.example/none", answer(b"<html>"))
    report = ingest_images(
        ["http://pictures.example/none", "http://nowhere.example/a", "s3://bucket/a.png"],
        embed_model=open_clip,
        vector_store=store,
    )
    assert [failure.source for failure in report.failed] == [
        "http://pictures.example/none",
        "http://nowhere.example/a",
        "s3://bucket/a.png",
    ]
    for failure, reason in zip(
        report.failed, ["not a picture", "is not found", r"fsspec.open"], strict=True
    ):
        assert reason in failure.reason


def test_hits_of_urls_are_drawn_where_they_are_allowed(internet, page):
    hits = [NodeWithScore(node=ImageNode(image_url=page, metadata={"file_name": "red.png"}))]
    show_results(hits)
    assert internet.asked == []
    red = (255, 0, 0)
    assert red in show_results(hits, allow_urls=["pictures.example"]).getdata()
    assert len(internet.asked) == 1


def test_nodes_are_not_made_of_urls_without_fetching():
    with pytest.raises(ImageLoadError, match=r"pass it to ingest_images") as caught:
        load_image_nodes([URL])
    assert caught.value.source == URL


# fsspec


@pytest.fixture
def memory():
    """A file system that is none of this machine's."""
    fs = MemoryFileSystem()
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]
    for name, content in {
        "/bucket/b.png": BLUE,
        "/bucket/a/red.PNG": RED,
        "/bucket/a/red.txt": "a red picture".encode("utf-8-sig"),
        "/bucket/.hidden/x.png": RED,
        "/bucket/._b.png": b"none",
        "/bucket/notes.md": b"none",
    }.items():
        fs.pipe(name, content)
    yield fs
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]


def test_an_fsspec_file_is_an_image(clip, memory):
    file = fsspec.open("memory://bucket/a/red.PNG")
    assert load_image(file).getpixel((0, 0)) == (255, 0, 0)
    np.testing.assert_allclose(
        clip.get_image_embedding(file), clip.get_image_embedding(RED), atol=1e-6
    )
    assert not file.fobjects  # Nothing was left open.


def test_what_is_wrong_with_an_fsspec_file_is_said(memory, monkeypatch):
    with pytest.raises(ImageNotFoundError, match="no such file") as caught:
        load_image(fsspec.open("memory://bucket/lost.png"))
    assert caught.value.source == "memory:///bucket/lost.png"
    with pytest.raises(ImageLoadError, match="mode 'rb'"):
        load_image(fsspec.open("memory://bucket/a/red.txt", "r"))
    monkeypatch.setattr("llama_index_clip_ext.filesystems.MAX_BYTES", len(RED) - 1)
    with pytest.raises(ImageLoadError, match="more than"):
        load_image(fsspec.open("memory://bucket/a/red.PNG"))


def test_a_bomb_in_an_fsspec_file_is_read_no_further(memory, monkeypatch):
    import gzip

    memory.pipe("/bucket/bomb.png.gz", gzip.compress(bytes(10_000_000)))
    monkeypatch.setattr("llama_index_clip_ext.filesystems.MAX_BYTES", 1000)
    with pytest.raises(ImageLoadError, match="more than 1000 bytes"):
        load_image(fsspec.open("memory://bucket/bomb.png.gz", compression="infer"))


def test_a_file_that_comes_in_pieces_is_read_whole(memory, monkeypatch):
    """As over HTTP: a stream gives what is there, which may be less than it was asked for."""
    read = io.BytesIO.read
    pieces = type("Pieces", (io.BytesIO,), {"read": lambda self, size=-1: read(self, min(size, 7))})
    memory.pipe("/bucket/b.txt", b"a blue picture, and a long text")
    monkeypatch.setattr(
        type(memory), "_open", lambda self, path, *args, **kwargs: pieces(self.cat_file(path))
    )
    (node,) = load_image_nodes("bucket/b.png", fs=memory)
    assert node.metadata["content_hash"] == hashlib.sha256(BLUE).hexdigest()
    assert node.text == "a blue picture, and a long text"


def test_an_error_of_a_file_system_at_a_caption_is_one_failure(clip, store, memory):
    class ForbiddenError(Exception):
        """As libraries of file systems have their own."""

    class Forbidding(MemoryFileSystem):
        def open(self, path, *args, **kwargs):
            if path.endswith("/b.txt"):
                raise ForbiddenError("403")
            return super().open(path, *args, **kwargs)

    report = ingest_images("bucket", embed_model=clip, vector_store=store, fs=Forbidding())
    assert report.added == 1
    assert "caption b.txt cannot be read (403)" in report.failed[0].reason


def test_a_caption_that_is_no_caption_is_read_no_further(memory):
    memory.pipe("/bucket/b.txt", b"a" * (2**20 + 1))
    with pytest.raises(ImageLoadError, match="more than 1048576 bytes"):
        load_image_nodes("bucket/b.png", fs=memory)


@pytest.mark.parametrize("url", ["s3://bucket/a.png", "memory://bucket/b.png", "gs://b/c.png"])
def test_a_string_is_no_consent(memory, url):
    with pytest.raises(ImageLoadError, match=r"pass fsspec.open\(url\)") as caught:
        load_image(url, allow_urls=True)
    assert caught.value.source == url


@pytest.mark.parametrize(
    ("source", "recursive", "names"),
    [
        ("bucket", True, ["/bucket/a/red.PNG", "/bucket/b.png"]),
        ("memory://bucket/", True, ["/bucket/a/red.PNG", "/bucket/b.png"]),
        ("bucket", False, ["/bucket/b.png"]),
        ("bucket/b.png", True, ["/bucket/b.png"]),
        ("bucket/*.png", True, ["/bucket/._b.png", "/bucket/b.png"]),
        ("bucket/**/red.*", True, ["/bucket/a/red.PNG"]),
        (["bucket/b.png", "bucket/a/red.PNG"], True, ["/bucket/b.png", "/bucket/a/red.PNG"]),
    ],
)
def test_a_file_system_is_listed_in_order(memory, source, recursive, names):
    files = list_images(source, recursive=recursive, fs=memory)
    assert [file.path for file in files] == names


@pytest.mark.parametrize("source", ["", "lost", "bucket/*.tif"])
def test_what_is_not_there_is_said(memory, source):
    with pytest.raises(FileNotFoundError):
        list(list_images(source, fs=memory))


def test_nodes_of_a_file_system(clip, memory):
    red, blue = load_image_nodes("bucket", fs=memory)
    assert red.metadata == {
        "file_path": "memory:///bucket/a/red.PNG",
        "file_name": "red.PNG",
        "file_type": "image/png",
        "file_size": len(RED),
        "width": 40,
        "height": 30,
        "content_hash": hashlib.sha256(RED).hexdigest(),
    }
    assert (red.text, blue.text) == ("a red picture", "")
    assert red.image is None
    assert red.image_url == "memory:///bucket/a/red.PNG"
    # The same ones each time, and by content those of local files.
    again = load_image_nodes(["memory://bucket/a/red.PNG"], fs=memory, captions=None)
    assert [(node.node_id, node.text) for node in again] == [(red.node_id, "")]
    embedded = clip([red, blue])
    np.testing.assert_allclose(embedded[0].embedding, clip.get_image_embedding(RED), atol=1e-6)
    (called,) = load_image_nodes("bucket/b.png", fs=memory, captions=lambda path: path.stem)
    assert called.text == "b"


def test_a_sidecar_that_is_no_text_is_said(memory):
    memory.pipe("/bucket/b.txt", b"\xff\xfe\x00")
    with pytest.raises(ImageLoadError, match=r"caption b.txt .*UTF-8") as caught:
        load_image_nodes("bucket/b.png", fs=memory)
    assert caught.value.source == "memory:///bucket/b.png"


async def test_ingest_of_a_file_system(clip, store, memory):
    opened = []

    class Noting(MemoryFileSystem):
        def open(self, path, *args, **kwargs):
            opened.append(path)
            return super().open(path, *args, **kwargs)

    memory = Noting()
    report = ingest_images("bucket", embed_model=clip, vector_store=store, fs=memory)
    assert (report.added, report.failed) == (2, [])
    pictures = sorted(path for path in opened if not path.endswith(".txt"))
    assert pictures == ["/bucket/a/red.PNG", "/bucket/b.png"]  # Each once.
    stored = {node.metadata["file_name"]: node for node in everything(store)}
    assert stored["red.PNG"].text == "a red picture"
    assert stored["red.PNG"].image is None
    nodes = {node.node_id for node in load_image_nodes("bucket", fs=memory)}
    assert {node.node_id for node in stored.values()} == nodes
    for again in (
        await aingest_images("bucket", embed_model=clip, vector_store=store, fs=memory),
        ingest_images(["bucket/b.png", fsspec.open("memory://bucket/a/red.PNG")],
                      embed_model=clip, vector_store=store, fs=memory),
        ingest_images(load_image_nodes("bucket", fs=memory), embed_model=clip, vector_store=store),
    ):  # fmt: skip
        assert (again.unchanged, again.total) == (2, 2)
    memory.pipe("/bucket/b.png", RED)
    report = ingest_images("bucket", embed_model=clip, vector_store=store, fs=memory)
    assert (report.unchanged, report.replaced, store.count()) == (1, 1, 2)
    with pytest.raises(ImageLoadError, match=r"pass fsspec.open\(url\)"):
        load_image(everything(store)[0])


def test_a_local_file_system_is_the_files_themselves(pictures):
    fs = LocalFileSystem()
    expected = load_image_nodes(pictures)
    assert load_image_nodes(pictures, fs=fs) == expected
    assert load_image_nodes(f"file://{pictures}", fs=fs) == expected
    assert load_image_nodes([f"file://{pictures}/red.png"], fs=fs)[0] in expected
    file = fsspec.open(f"file://{pictures}/red.png")
    assert load_image(file).getpixel((0, 0)) == (255, 0, 0)
