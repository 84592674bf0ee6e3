import random

import pytest

from openafm.data import documents, sorting
from openafm.stage import Context


def contents(folder):
    """{path: bytes} of every file below."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("part_bytes", [documents.PART_BYTES, 300])
def test_runs_on_disk_give_the_parts_that_memory_gives(tmp_path, monkeypatch, part_bytes):
    monkeypatch.setattr(documents, "PART_BYTES", part_bytes)  # parts of one and of two digits
    monkeypatch.setattr(sorting, "RUN_BYTES", 2000)
    monkeypatch.setattr(documents, "GROUP_ROWS", 7)
    rows = [documents.document(f"http://x/{number}", "web", f"text {number} " * 3) for number in range(500)]
    documents.write(rows, tmp_path / "memory")
    random.Random(0).shuffle(rows)
    context = Context(tmp_path / "disk", tmp_path / "scratch")
    sorter = sorting.Sorter(context.scratch)
    for start in range(0, len(rows), 30):
        sorter.add(documents.pa.Table.from_pylist(rows[start : start + 30], documents.SCHEMA))
    assert len(list(sorter.folder.iterdir())) > 3
    (tmp_path / "disk").mkdir()
    funnel = sorter.write(tmp_path / "disk", lambda table: table.sort_by("id"))
    assert funnel[0]["documents"] == 500
    assert contents(tmp_path / "disk") == contents(tmp_path / "memory")
    digits = documents.digits_of(sorter.size)
    assert [part.stem for part in documents.parts(tmp_path / "disk")] == documents.part_names(digits)
    assert max(len(table) for part in documents.parts(tmp_path / "disk") for table in documents.batches(part)) <= 7
    assert documents.fate("http://x/3", tmp_path).bytes == len("text 3 " * 3)
