"""URLs, names, redirects and servers that would lead us where nobody may: none is let in."""

from __future__ import annotations

import gc
import gzip
import io
import ipaddress
import itertools
import random
import threading
import time

import psutil
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from internet import PUBLIC, answer, redirect
from PIL import Image

from llama_index_clip_ext import CLIPEmbedding, ImageLoadError, ingest_images, load_image, remote
from llama_index_clip_ext.remote import fetch
from llama_index_clip_ext.urls import is_public, parse_url

# Nothing here may take longer than this, with limits as `limits` has them: else it hangs.
PATIENCE = 10

PRIVATE = [
    *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16"),
    *("172.16.0.0/12", "192.0.0.0/29", "192.0.2.0/24", "192.168.0.0/16", "198.18.0.0/15"),
    *("198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4", "168.63.129.16/32"),
]
PRIVATE_6 = [
    *("::/128", "::1/128", "fc00::/7", "fe80::/10", "fec0::/10", "ff00::/8", "100::/64"),
    *(
        "2001:db8::/32",
        "2002::/16",
        "2001::/32",
        "64:ff9b:1::/48",
        "3fff::/20",
        "::/96",
        "4000::/3",
    ),
]


def encoded():
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), "red").save(buffer, "PNG")
    return buffer.getvalue()


RED = encoded()


@pytest.fixture
def limits(monkeypatch):
    """Limits that are reached soon."""
    monkeypatch.setattr(remote, "MAX_SECONDS", 0.5)
    monkeypatch.setattr(remote, "MAX_BYTES", 100_000)
    monkeypatch.setattr(remote, "_MAX_OVERHEAD", 20_000)


def lets_in(internet, url, allow_urls=True):
    """Whether a URL is fetched, or an address reached that `ipaddress` does not call global."""
    internet.reached.clear()
    started = time.monotonic()
    try:
        fetch(url, allow_urls)
    except ImageLoadError:
        assert time.monotonic() - started < PATIENCE
        return any(not ipaddress.ip_address(one).is_global for one in internet.reached)
    return True


# Addresses


def _spellings(address):
    """Every spelling of an IPv4 address that some resolver or browser takes for it."""
    number = int(address)
    a, b, c, d = address.packed
    return [
        str(address),
        f"{address}.",
        str(number),
        hex(number),
        f"0{number:o}",
        f"{a}.{number & 0xFFFFFF}",
        f"{a}.{b}.{number & 0xFFFF}",
        f"{a:#x}.{b:#x}.{c:#x}.{d:#x}",
        f"0{a:o}.0{b:o}.0{c:o}.0{d:o}",
        f"{a:04d}.{b}.{c}.{d}",
        f"{a:#x}.{number & 0xFFFFFF}",
        str(address).translate(str.maketrans("0123456789.", "０１２３４５６７８９。")),
        str(address).translate(str.maketrans("0123456789", "⓪①②③④⑤⑥⑦⑧⑨")),
        str(address).replace(".", "%2e"),
        *(f"[{one}]" for one in _within_ipv6(address)),
    ]


def _within_ipv6(address):
    """The addresses of IPv6 that lead to one of IPv4."""
    number = int(address)
    holders = {
        "::ffff:0:0": 0, "::ffff:0:0:0": 0, "64:ff9b::": 0, "64:ff9b:1::": 0, "::": 0,
        "2002::": 80, "fe80::5efe:0:0": 0,
    }  # fmt: skip
    found = [int(ipaddress.IPv6Address(one)) + (number << at) for one, at in holders.items()]
    # Teredo: the server's address, and the client's with its bits turned over.
    for server in (number, int(ipaddress.IPv4Address(PUBLIC))):
        found.append((0x20010000 << 96) + (server << 64) + (~number & 0xFFFFFFFF))
    written = [ipaddress.IPv6Address(one) for one in found]
    return [*map(str, written), *(one.exploded.upper() for one in written), f"::ffff:{address}"]


def _private(networks):
    return st.sampled_from(networks).flatmap(lambda network: st.ip_addresses(network=network))


def test_no_spelling_of_a_private_address_is_let_in(internet, tally, tries):
    internet.pages = _Everything(answer(RED))

    @settings(max_examples=tries(short=40, full=1000), deadline=None)
    @given(_private(PRIVATE))
    @example(ipaddress.ip_address("127.0.0.1"))
    @example(ipaddress.ip_address("169.254.169.254"))
    def attempt(address):
        spellings = _spellings(address)
        let_in = [one for one in spellings if lets_in(internet, f"http://{one}/latest/meta-data/")]
        # A name that leads there is no better, and no address is found by a resolver only.
        for spelling in _within_ipv6(address):
            internet.hosts["evil.example"] = [[spelling]]
            if lets_in(internet, "http://evil.example/"):
                let_in.append(spelling)
        tally("URLs of private addresses", tried=2 * len(spellings), let_in=len(let_in))
        assert not let_in

    attempt()


def test_no_private_address_of_ipv6_is_let_in(internet, tally, tries):
    internet.pages = _Everything(answer(RED))

    @settings(max_examples=tries(short=40, full=1000), deadline=None)
    @given(_private(PRIVATE_6))
    @example(ipaddress.ip_address("fd00:ec2::254"))
    def attempt(address):
        internet.hosts["evil.example"] = [[str(address)]]
        urls = [f"http://[{address}]/", f"http://[{address}%25eth0]/", "http://evil.example/"]
        let_in = [url for url in urls if lets_in(internet, url)]
        tally("URLs of private addresses", tried=len(urls), let_in=len(let_in))
        assert not let_in

    attempt()


def test_public_addresses_are_not_refused(tries):
    @settings(max_examples=tries(short=100, full=2000), deadline=None)
    @given(st.ip_addresses(v=4))
    def attempt(address):
        expected = address.is_global and not (address.is_multicast or address.is_reserved)
        ours = ("192.0.0.0/24", "192.88.99.0/24", "168.63.129.16/32")
        if any(address in ipaddress.ip_network(network) for network in ours):
            expected = False
        for spelling in (f"{address}", f"::ffff:{address}", f"64:ff9b::{address}"):
            assert is_public(spelling) is expected

    attempt()


@pytest.mark.parametrize(
    "addresses",
    [
        ["127.0.0.1"],
        [PUBLIC, "127.0.0.1"],
        ["10.0.0.1", PUBLIC],
        [PUBLIC, "::1"],
        [PUBLIC, "fe80::1%eth0"],
        [PUBLIC, "::ffff:169.254.169.254"],
        [],
    ],
)
@pytest.mark.parametrize("hosts", [True, ["evil.example"]])
def test_a_host_of_which_one_address_is_private_is_refused(internet, tally, addresses, hosts):
    url = internet.put("http://evil.example/", answer(RED), addresses)
    let_in = lets_in(internet, url, hosts) or internet.reached != []
    tally("names of private addresses", tried=1, let_in=let_in)
    assert not let_in


def test_a_name_that_changes_its_address_is_not_asked_twice(internet, tally):
    url = internet.put("http://evil.example/", answer(RED))
    internet.hosts["evil.example"] = [[PUBLIC], ["127.0.0.1"]]
    assert fetch(url, True) == RED
    assert (internet.looked_up, internet.reached) == (["evil.example"], [PUBLIC])
    # A redirect is another request, and is checked anew.
    internet.hosts["evil.example"] = [[PUBLIC], ["127.0.0.1"]]
    internet.put("http://evil.example/a", redirect("/"))
    let_in = lets_in(internet, "http://evil.example/a")
    tally("names that change their address", tried=2, let_in=let_in)
    assert not let_in
    assert internet.reached == [PUBLIC]


# URLs

HOSTILE_URLS = [
    "http://good.example@127.0.0.1/",
    "http://127.0.0.1#@good.example/",
    "http://127.0.0.1?@good.example/",
    "http://127.0.0.1\\@good.example/",
    "http://good.example\\@127.0.0.1/",
    "http://good.example:80@127.0.0.1/",
    "http://@127.0.0.1/",
    "http://:@good.example/",
    "http://user:s3cret@good.example/",
    "http://127.0.0.1:80\\good.example/",
    "http:\\\\127.0.0.1/",
    "http:///127.0.0.1/",
    "http://good.example /",
    "http:// 127.0.0.1/",
    "http://127.0.0.1\t/",
    "http://good\n.example/",
    "http://good.example/\r\nHost: localhost",
    "http://good.example/a\x00b",
    "http://good.example\x7f/",
    "ht\ntp://127.0.0.1/",
    "http://good.example\u2028/",
    "http://good.example\u3002evil/",
    "http://good.example\u2100/",
    "http://127.0.0.1%2f@good.example/",
    "http://good.example%00.evil/",
    "http://%31%32%37.0.0.1/",
    "http://①②⑦.0.0.1/",
    "http://localhost/",
    "http://localhost./",
    "http://LOCALHOST/",
    "http://localhost:6379/",
    "http://[::]/",
    "http://[0:0:0:0:0:0:0:1]/",
    "http://[::ffff:7f00:1]/",
    "http://[::127.0.0.1]/",
    "http://[::1%25lo]/",
    "http://[::1]evil.example/",
    "http://[good.example]/",
    "http://[127.0.0.1]/",
    "http://[/",
    "http://]/",
    "http://good.example:99999/",
    "http://good.example:-1/",
    "http://good.example:0/",
    "http://good.example:80:80/",
    "http://good.example:８０x/",
    "http://good..example/",
    "http://.good.example/",
    "http://good.example../",
    "http://" + "a" * 64 + ".example/",
    "http://" + "a." * 200 + "example/",
    "http://" + "ä" * 5000 + "/",
    "http://good.example/" + "a" * 10_000,
    "http://*.example/",
    "http://good,example/",
    "http://good.example;evil/",
    "http://xn--.example/",
    "http://xn--a\u0338.example/",
    "http://1.1.1/",
    "http://256.256.256.256/",
    "http://0x/",
    "http://good.example.0x7f/",
    "http://metadata.google.internal/",
    "http://127.0.0.1.nip.example/",
    "file:///etc/passwd",
    "file://localhost/etc/passwd",
    "ftp://good.example/a.png",
    "gopher://127.0.0.1:6379/_FLUSHALL",
    "dict://127.0.0.1:11211/stat",
    "ldap://127.0.0.1/",
    "jar:http://good.example!/",
    "netdoc:///etc/passwd",
    "unix:///var/run/docker.sock",
    "http+unix://%2Fvar%2Frun%2Fdocker.sock/info",
    "ws://good.example/",
    "s3://bucket/a.png",
    "javascript://good.example/%0aalert(1)",
]


@pytest.mark.parametrize("hosts", [True, ["good.example", "*.example", "127.0.0.1", "localhost"]])
def test_no_hostile_url_is_let_in(internet, tally, hosts):
    internet.pages = _Everything(answer(RED))
    # As a resolver does that takes whatever it is given for this machine.
    internet.hosts = _Everything([["127.0.0.1"]])
    let_in = [url for url in HOSTILE_URLS if _is_let_in_by_any_road(internet, url, hosts)]
    tally("hostile URLs", tried=len(HOSTILE_URLS), let_in=len(let_in))
    assert not let_in


def _is_let_in_by_any_road(internet, url, hosts):
    if lets_in(internet, url, hosts):
        return True
    with pytest.raises(ImageLoadError) as caught:
        load_image(url, allow_urls=hosts)
    assert "s3cret" not in str(caught.value)
    return internet.asked != []


def test_what_is_taken_for_a_url_is_taken_apart_in_one_way(tries):
    parts = ["http://", "https://", "good.example", "127.0.0.1", "[::1]", "@", ":", "80", "/", "\\"]
    parts += [
        "#",
        "?",
        "%",
        "%2f",
        "..",
        "//",
        "é",
        "猫",
        "\t",
        "\n",
        " ",
        "x",
        "A",
        "[",
        "]",
        "。",
    ]

    @settings(max_examples=tries(short=200, full=5000), deadline=None)
    @given(st.lists(st.sampled_from(parts) | st.characters(), max_size=8).map("".join))
    def attempt(text):
        for url in (text, f"http://{text}", f"http://good.example{text}"):
            try:
                parsed = parse_url(url)
            except ImageLoadError:
                continue
            assert str(parsed).isascii()
            assert str(parsed).isprintable()
            assert parse_url(str(parsed)) == parsed
            assert not set(parsed.host) & set("@/\\?#%[] ")

    attempt()


# Redirects

HOSTILE_LOCATIONS = [
    "http://127.0.0.1/",
    "//127.0.0.1/",
    "http://localhost:8080/",
    "http://169.254.169.254/latest/meta-data/",
    "http://[fd00:ec2::254]/latest/",
    "http://[::ffff:10.0.0.1]/",
    "http://0x7f000001/",
    "http://inside.example/",
    "http://other.test/",
    "https://other.test/",
    "http://good.example@127.0.0.1/",
    "http://user:s3cret@good.example/ok",
    "/\\127.0.0.1/",
    "\\\\127.0.0.1\\",
    "http:\\\\127.0.0.1",
    "/a\tb",
    "file:///etc/passwd",
    "gopher://127.0.0.1:6379/_FLUSHALL",
    "ftp://good.example/ok",
    "data:image/png;base64,iVBORw0KGgo=",
    "javascript:alert(1)",
    "",
    "/start",
    "http://good.example:0/",
]


@pytest.mark.parametrize("location", HOSTILE_LOCATIONS)
@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 See", "307 Temp", "308 Perm"])
def test_no_redirect_leads_away(internet, tally, location, status):
    internet.pages = _Everything(answer(RED))
    internet.put("http://good.example/start", redirect(location, status))
    internet.put("http://inside.example/", answer(RED), ["192.168.0.1"])
    internet.put("http://other.test/", answer(RED))
    hosts = ["good.example", "inside.example", "127.0.0.1", "169.254.169.254", "localhost"]
    internet.hosts["localhost"] = [["127.0.0.1"]]
    let_in = lets_in(internet, "http://good.example/start", hosts)
    tally("redirects", tried=1, let_in=let_in)
    assert not let_in
    assert set(internet.reached) == {PUBLIC}
    assert len(internet.reached) == (6 if location == "/start" else 1)


def test_two_locations_lead_nowhere(internet, tally):
    two = b"HTTP/1.1 302 Found\r\nLocation: /ok\r\nLocation: http://127.0.0.1/\r\n\r\n"
    internet.put("http://good.example/ok", answer(RED))
    internet.put("http://good.example/", two)
    let_in = lets_in(internet, "http://good.example/")
    tally("redirects", tried=1, let_in=let_in)
    assert not let_in


def test_no_redirect_from_https_to_http(internet, tally, monkeypatch):
    # A context that takes any server for the right one: only the redirect is looked at.
    url = internet.put("http://good.example/ok", answer(RED))
    internet.put("https://good.example/", redirect(url))
    connect = internet.connect

    def as_if_tls(*args):
        stream = connect(*args)
        monkeypatch.setattr(stream, "start_tls", lambda *args: stream)
        return stream

    monkeypatch.setattr(remote, "connect", as_if_tls)
    with pytest.raises(ImageLoadError, match="from https to http"):
        fetch("https://good.example/", True)
    tally("redirects", tried=1)


# Servers


def _drip(content, *, every, seconds=0.02):
    """Send a few bytes at a time, so that each comes in time."""

    def page(connection):
        for start in range(0, len(content), every):
            connection.sendall(content[start : start + every])
            time.sleep(seconds)

    return page


def _endless(head, part):
    """Send the head, and then the part for ever: until the other side hangs up."""

    def page(connection):
        connection.sendall(head)
        while True:
            connection.sendall(part)

    return page


def _silent(connection):
    connection.recv(1)


OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
BOMB = gzip.compress(bytes(50_000_000))
TAKES_TOO_LONG = "takes longer than 0.5 seconds"
TOO_MUCH = "more than 100000 bytes"

SERVERS = {
    "says nothing": (_silent, TAKES_TOO_LONG),
    "drips its body": (_drip(answer(bytes(50_000)), every=100), TAKES_TOO_LONG),
    "drips its headers": (_drip(OK + b"X: y\r\n" * 500, every=5), TAKES_TOO_LONG),
    "drips its chunks": (_drip(CHUNKED + b"1\r\nx\r\n" * 500, every=6), TAKES_TOO_LONG),
    "stops in its headers": (lambda c: (c.sendall(OK), _silent(c)), TAKES_TOO_LONG),
    "stops in its body": (lambda c: (c.sendall(answer(RED)[:-9]), _silent(c)), TAKES_TOO_LONG),
    "endless body": (_endless(OK + b"\r\n", bytes(10_000)), TOO_MUCH),
    "endless chunks": (_endless(CHUNKED, b"3e8\r\n" + bytes(1000) + b"\r\n"), TOO_MUCH),
    "endless small chunks": (_endless(CHUNKED, b"1\r\nx\r\n" * 100), TOO_MUCH),
    "endless chunk size": (_endless(CHUNKED, b"0" * 1000), "connection failed|more than"),
    "endless chunk extension": (_endless(CHUNKED, b"1;" + b"x" * 999), "failed|more than"),
    "endless headers": (_endless(OK, b"X: y\r\n" * 100), "connection failed|more than"),
    "endless header": (_endless(OK + b"X: ", b"y" * 1000), "connection failed|more than"),
    "endless status": (_endless(b"HTTP/1.1 200 ", b"O" * 1000), "connection failed|more than"),
    "endless continues": (_endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 50), "more than|longer"),
    "endless trailers": (_endless(CHUNKED + b"0\r\n", b"X: y\r\n" * 100), "connection failed|more"),
    "too long by its own word": (OK + b"Content-Length: 100001\r\n\r\n", TOO_MUCH),
    "huge by its own word": (OK + b"Content-Length: 99999999999999999999\r\n\r\n", "more|failed"),
    "shorter than it says": (OK + b"Content-Length: 9999\r\n\r\n" + RED, "connection failed"),
    "of two lengths": (OK + b"Content-Length: 1\r\nContent-Length: 9\r\n\r\n" + RED, "failed"),
    "of no length": (OK + b"Content-Length: -1\r\n\r\n" + RED, "connection failed"),
    "of a worded length": (OK + b"Content-Length: many\r\n\r\n" + RED, "connection failed"),
    "gzip": (answer(gzip.compress(RED), "Content-Encoding: gzip"), "compressed"),
    "a gzip bomb": (answer(BOMB, "Content-Encoding: GZIP"), "compressed"),
    "brotli": (answer(RED, "Content-Encoding: br"), "compressed"),
    "twice compressed": (answer(RED, "Content-Encoding: identity, gzip"), "compressed"),
    "once not, once compressed": (
        answer(RED, "Content-Encoding: identity", "Content-Encoding: gzip"), "compressed"
    ),
    "a gzip bomb in transfer": (OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n" + BOMB, "failed"),
    "wrong chunks": (CHUNKED + b"zz\r\n" + RED, "connection failed"),
    "no HTTP": (b"\x89PNG\r\n" + RED, "connection failed"),
    "nothing": (b"", "connection failed"),
    "another protocol": (b"SSH-2.0-OpenSSH_9.2\r\n" + RED, "connection failed"),
    "a switch of protocol": (b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\n\r\n" + RED, "failed"),
    "a zero in a header": (OK + b"X: a\x00b\r\n\r\n" + RED, "connection failed"),
}  # fmt: skip


@pytest.mark.parametrize("name", SERVERS)
def test_no_server_keeps_us_or_fills_memory(internet, limits, tally, name):
    page, reason = SERVERS[name]
    url = internet.put("http://evil.example/", page)
    let_in = lets_in(internet, url)
    tally("hostile servers", tried=1, let_in=let_in)
    assert not let_in
    with pytest.raises(ImageLoadError, match=reason):
        fetch(url, True)


def test_a_slow_handshake_ends(internet, limits, tally):
    # Bytes of a handshake that go on coming, so that no single read waits for long.
    internet.at_once = _drip(b"\x16\x03\x03\x40\x00" + bytes(16_000), every=20)
    internet.put("https://evil.example/", b"")
    let_in = lets_in(internet, "https://evil.example/")
    tally("hostile servers", tried=1, let_in=let_in)
    assert not let_in


def test_a_name_server_that_says_nothing_is_not_waited_for(internet, limits, tally, monkeypatch):
    silent = threading.Event()
    monkeypatch.setattr(remote, "resolve", lambda *args: silent.wait(PATIENCE) or [PUBLIC])
    internet.put("http://evil.example/", answer(RED))
    with pytest.raises(ImageLoadError, match=TAKES_TOO_LONG):
        fetch("http://evil.example/", True)
    silent.set()
    tally("hostile servers", tried=1)


def test_redirects_share_their_time(internet, limits, tally):
    for number in range(5):
        page = _drip(redirect(f"/{number + 1}"), every=4, seconds=0.015)
        internet.put(f"http://evil.example/{number}", page)
    internet.put("http://evil.example/5", answer(RED))
    with pytest.raises(ImageLoadError, match=TAKES_TOO_LONG):
        fetch("http://evil.example/0", True)
    tally("hostile servers", tried=1)


@pytest.mark.parametrize(
    "content",
    [
        b"<html><img src=x></html>",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%PDF-1.7",
        b"",
        RED[:50],
    ],
)
def test_what_is_no_picture_is_none_whatever_its_type_says(internet, tally, content):
    url = internet.put("http://evil.example/a.png", answer(content, "Content-Type: image/png"))
    with pytest.raises(ImageLoadError) as caught:
        load_image(url, allow_urls=True)
    assert caught.value.source == url
    # And a picture is one.
    internet.pages["evil.example", "/a.png"] = answer(RED, "Content-Type: text/html")
    assert load_image(url, allow_urls=True).size == (40, 30)
    tally("hostile servers", tried=1)


def test_damaged_answers_raise_nothing_else(internet, limits, tally, tries):
    chance = random.Random(5)
    whole = answer(RED, "Content-Type: image/png", "ETag: x")
    chunked = CHUNKED + b"%x\r\n%b\r\n0\r\n\r\n" % (len(RED), RED)
    url = internet.put("http://evil.example/", whole)
    let_in = 0
    n_open = psutil.Process().num_fds()
    n_tried = tries(short=100, full=3000)
    for start in itertools.islice(itertools.cycle([whole, chunked, redirect("/")]), n_tried):
        damaged = bytearray(start)
        for _ in range(chance.randint(1, 4)):
            if not damaged:
                break
            place = chance.randrange(min(len(damaged), 150))
            change = chance.choice(["byte", "cut", "insert", "drop"])
            if change == "byte":
                damaged[place] = chance.randrange(256)
            elif change == "cut":
                del damaged[place + 1 :]
            elif change == "insert":
                damaged[place:place] = chance.choice([b"\r\n", b"\x00", b": ", b"1" * 30, b"\xff"])
            else:
                del damaged[place]
        internet.pages["evil.example", "/"] = bytes(damaged)
        started = time.monotonic()
        try:
            content = fetch(url, True)
        except ImageLoadError:
            pass
        else:
            # A length or a status may have been hit, and all be well otherwise.
            let_in += len(content) > remote.MAX_BYTES
        assert time.monotonic() - started < PATIENCE
        assert set(internet.reached) == {PUBLIC}
    gc.collect()
    assert psutil.Process().num_fds() < n_open + 20
    tally("damaged answers", tried=n_tried, let_in=let_in)
    assert let_in == 0


def test_an_ingest_goes_on_past_hostile_urls(clip_dir, store, internet, limits, tally):
    good = internet.put("http://good.example/red.png", answer(RED))
    lost = [
        internet.put("http://inside.example/", answer(RED), ["10.0.0.1"]),
        internet.put("http://good.example/slow", _silent),
        internet.put("http://good.example/away", redirect("http://127.0.0.1/")),
        "http://user:s3cret@good.example/red.png",
        "http://2130706433/",
    ]
    embed_model = CLIPEmbedding(clip_dir, allow_urls=True)
    report = ingest_images([*lost, good], embed_model=embed_model, vector_store=store)
    tally("hostile URLs", tried=len(lost), let_in=store.count() - 1)
    assert (report.added, store.count()) == (1, 1)
    assert [failure.index for failure in report.failed] == [0, 1, 2, 3, 4]
    assert "s3cret" not in str(report)
    assert set(internet.reached) == {PUBLIC}


class _Everything(dict):
    """The same for every key, unless it was put there."""

    def __init__(self, value):
        super().__init__()
        self._value = value

    def __missing__(self, key):
        return self._value

    def get(self, key, default=None):
        return self[key]
