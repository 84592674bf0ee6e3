import gzip
import io
import random

import pytest
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from openafm.data.warc import is_robots, pages


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
