import gzip
import io
import random
import zlib

import brotli
import pytest
from fastwarc import stream_io
from fastwarc.warc import ArchiveIterator, WarcRecord, WarcRecordType
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from openafm.data.warc import MAX_PAGE_BYTES, Page, is_robots, pages


def archive(path, count=20, status="200 OK", kind="text/html; charset=iso-8859-1"):
    with path.open("wb") as file:
        writer = WARCWriter(file, gzip=True)
        for number in range(count):
            draw = random.Random(number)
            body = f"<p>{number} {draw.random()} {draw.random()}".encode()
            headers = StatusAndHeaders(status, [("Content-Type", kind)], protocol="HTTP/1.1")
            url = f"https://h.example/{number}"
            writer.write_record(writer.create_warc_record(url, "response", io.BytesIO(body), http_headers=headers))
    return path


def test_pages_come_with_url_charset_and_body(tmp_path):
    found = list(pages(archive(tmp_path / "a.warc.gz")))
    assert [page.url for page in found] == [f"https://h.example/{n}" for n in range(20)]
    assert {page.charset for page in found} == {"iso-8859-1"} and not any(page.reject for page in found)
    assert found[3].body.startswith(b"<p>3 ")


def test_damage_costs_one_record_and_is_counted(tmp_path):
    path = archive(tmp_path / "a.warc.gz")
    data = bytearray(path.read_bytes())
    middle = data.index(b"\x1f\x8b\x08", len(data) // 2) + 40
    data[middle : middle + 30] = b"\xff" * 30
    path.write_bytes(data)
    found = list(pages(path))
    assert sum(page.reject == "warc.broken" for page in found) == 1
    assert sum(not page.reject for page in found) == 19


@pytest.mark.parametrize("cut", [0.3, 0.5, 0.97])
def test_a_cut_file_gives_what_is_whole(tmp_path, cut):
    path = archive(tmp_path / "a.warc.gz")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * cut)])
    found = list(pages(path))
    whole = [page for page in found if not page.reject]
    assert len(whole) == int(20 * cut) or len(whole) == int(20 * cut) - 1 or len(whole) == int(20 * cut) + 1
    assert all(page.body for page in whole) and len(found) - len(whole) <= 1


def test_no_archive_at_all_is_a_reject(tmp_path):
    for data in (b"", b"hello " * 50, gzip.compress(b"hello " * 50), b"\x1f\x8b\x08\x00"):
        (tmp_path / "a.warc.gz").write_bytes(data)
        assert [page.reject for page in pages(tmp_path / "a.warc.gz")][-1] == "warc.broken"


def test_status_and_type_are_told(tmp_path):
    assert {p.reject for p in pages(archive(tmp_path / "a.warc.gz", 2, "404 Not Found"))} == {"http.status"}
    assert {p.reject for p in pages(archive(tmp_path / "b.warc.gz", 2, kind="image/png"))} == {"http.type"}


def test_unwanted_urls_are_skipped(tmp_path):
    assert not [page for page in pages(archive(tmp_path / "a.warc.gz"), wanted=is_robots) if page.url]


def records(writer, bodies=12, **changes):
    """One response a body through fastwarc's own writers, each record a member of its own; `changes` are headers."""
    for number in range(bodies):
        draw, record = random.Random(number), WarcRecord()
        record.init_headers(WarcRecordType.response)
        record.is_http = True
        record.headers["WARC-Target-URI"] = f"https://h.example/{number}"
        for name, value in changes.items():
            record.headers[name.replace("_", "-")] = value
        body = f"<p>{number} a page of words {[draw.random() for _ in range(30)]}".encode()
        record.set_bytes_content(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n" + body)
        record.write(writer, checksum_data=True)
        if hasattr(writer, "finish"):
            writer.finish()
    writer.close()


def zstd(path, trained: bool, compressed: bool = False):
    samples = [f"WARC/1.1\r\nWARC-Target-URI: https://h.example/{n}\r\na page of words".encode() for n in range(300)]
    dictionary = stream_io.zstd_train_dictionary_from_samples(samples, 2048) if trained else None
    with path.open("wb") as file:
        records(stream_io.ZstdWriter(file, dictionary=dictionary, compress_dictionary_frame=compressed))
    return path


@pytest.mark.parametrize(("trained", "compressed"), [(False, False), (True, False), (True, True)])
def test_zstd_with_and_without_a_dictionary_also_behind_damage(tmp_path, trained, compressed):
    path = zstd(tmp_path / "a.warc.zst", trained, compressed)
    assert [page.url for page in pages(path)] == [f"https://h.example/{n}" for n in range(12)]
    data = bytearray(path.read_bytes())
    with path.open("rb") as file:
        at = [record.stream_pos for record in ArchiveIterator(file, parse_http=False)][5]
    data[at + 60 : at + 90] = b"\xff" * 30
    path.write_bytes(data)
    found = list(pages(path))
    assert [page.url for page in found if not page.reject] == [f"https://h.example/{n}" for n in range(12) if n != 5]
    assert [page.reject for page in found if page.reject] == ["warc.broken"]


def test_a_plain_file_goes_on_behind_damage(tmp_path):
    path = tmp_path / "a.warc"
    with path.open("wb") as file:
        records(file_writer(file))
    data = path.read_bytes()
    starts = [at for at in range(len(data)) if data.startswith(b"WARC/1.", at)]
    path.write_bytes(data[: starts[3]] + b"noise " * 20 + b"\r\n\r\n" + data[starts[4] :])
    assert {f"https://h.example/{n}" for n in range(12) if n != 3} <= {page.url for page in pages(path)}


class file_writer:  # noqa: N801
    """A plain file with the two methods that fastwarc calls."""

    def __init__(self, file):
        self.write, self.flush, self.close = file.write, file.flush, file.flush


def one(tmp_path, body: bytes, *headers: tuple[str, str], kind="text/html", **record) -> Page:
    with (tmp_path / "one.warc.gz").open("wb") as file:
        writer = WARCWriter(file, gzip=True)
        http = StatusAndHeaders("200 OK", [("Content-Type", kind), *headers], protocol="HTTP/1.1")
        fields = {"uri": "https://h.example/x", "record_type": "response", "payload": io.BytesIO(body)}
        if (fields | record)["record_type"] == "response":
            fields["http_headers"] = http
        writer.write_record(writer.create_warc_record(**(fields | record)))
    (page,) = pages(tmp_path / "one.warc.gz")
    return page


BODY = b"<p>A page of some words.</p>" * 20


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (BODY, []),
        (gzip.compress(BODY), [("Content-Encoding", "gzip")]),
        (BODY, [("Content-Encoding", "gzip")]),  # a crawler that had decoded it
        (zlib.compress(BODY), [("Content-Encoding", "deflate")]),
        (brotli.compress(BODY), [("Content-Encoding", "br")]),
        (BODY, [("Content-Encoding", "br")]),
        (b"230\r\n" + BODY + b"\r\n0\r\n\r\n", [("Transfer-Encoding", "chunked")]),
        (BODY, [("Transfer-Encoding", "chunked")]),
        (gzip.compress(gzip.compress(BODY)), [("Content-Encoding", "gzip, gzip")]),
    ],
)
def test_encodings_that_are_there_are_undone(tmp_path, body, headers):
    assert one(tmp_path, body, *headers).body == BODY


def test_a_bomb_is_too_large_and_a_cut_body_is_broken_unless_the_crawler_says_so(tmp_path):
    bomb = gzip.compress(b"\0" * (MAX_PAGE_BYTES * 4))
    assert one(tmp_path, bomb, ("Content-Encoding", "gzip")).reject == "too-large"
    cut = gzip.compress(random.Random(0).randbytes(5_000))[:-900]
    assert one(tmp_path, cut, ("Content-Encoding", "gzip")).reject == "warc.broken"
    known = one(tmp_path, cut, ("Content-Encoding", "gzip"), warc_headers_dict={"WARC-Truncated": "length"})
    assert not known.reject and len(known.body) > 3_000
    assert one(tmp_path, b"x" * (MAX_PAGE_BYTES + 1)).reject == "too-large"


def test_wet_texts_and_resources(tmp_path):
    wet = one(tmp_path, "Schöner Text\n".encode(), record_type="conversion", warc_content_type="text/plain")
    assert (wet.content_type, wet.body.decode(), wet.reject) == ("text/plain", "Schöner Text\n", "")
    kept = one(tmp_path, BODY, record_type="resource", warc_content_type="text/html; charset=koi8-r")
    assert (kept.content_type, kept.charset, kept.body) == ("text/html", "koi8-r", BODY)
    image = one(tmp_path, b"GIF89a", record_type="resource", warc_content_type="image/gif")
    assert image.reject == "http.type"
    (nothing,) = [one(tmp_path, b"{}", record_type="metadata", warc_content_type="application/json")]
    assert nothing.reject == "warc.broken" and "no record with a page" in nothing.evidence


@pytest.mark.parametrize("uri", ["", "urn:x", "http://[::1", "http://", "javascript:alert(1)", "ftp://h.example/x"])
def test_a_url_that_is_no_address_is_a_reject_without_url(tmp_path, uri):
    page = one(tmp_path, BODY, uri=uri)
    assert (page.url, page.reject) == ("", "warc.no-url")


def test_what_a_page_says_against_its_use_is_obeyed(tmp_path):
    assert one(tmp_path, BODY, ("X-Robots-Tag", "noai")).evidence == "noai"
    assert one(tmp_path, BODY, ("tdm-reservation", "1")).reject == "opt-out"
    assert one(tmp_path, b'<meta name="robots" content="noindex">' + BODY).reject == "opt-out"
    assert one(tmp_path, b"noindex" + BODY, ("X-Robots-Tag", "otherbot: noai"), kind="text/plain").reject == ""
