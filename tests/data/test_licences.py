import itertools
import random
from pathlib import Path

import pytest

from openafm.data import licences
from openafm.data.licences import judge_licence, judge_set, permissive, recognise, spdx, terms


@pytest.mark.parametrize(
    ("expression", "answer"),
    [
        ("MIT", True), ("mit", True), ("GPL-3.0-only", False), ("MIT OR GPL-3.0-only", True),
        ("MIT AND GPL-3.0-only", False),
        ("(MIT OR GPL-2.0-only) AND Apache-2.0", True), ("Apache-2.0 WITH LLVM-exception", True),
        ("MIT/Apache-2.0", True),
        ("GPL-2.0-only WITH Classpath-exception-2.0", False), ("", False), ("(", False),
        ("MIT AND", False), ("MIT)", False),
    ],
)  # fmt: skip
def test_spdx_expressions(expression, answer):
    assert permissive(expression) is answer


def test_and_binds_closer_than_or():
    for a, b, c in itertools.product(("MIT", "GPL-3.0-only"), repeat=3):
        values = [name == "MIT" for name in (a, b, c)]
        assert permissive(f"{a} OR {b} AND {c}") is (values[0] or (values[1] and values[2]))


def test_the_files_own_header_wins():
    assert judge_licence("// SPDX-License-Identifier: GPL-2.0-only\nint x;", "MIT")[0] == "licence.not-permissive"
    assert judge_licence("/* SPDX-License-Identifier: BSD-3-Clause */", "GPL-2.0-only") == ("", "")
    assert judge_licence("# under the GNU General Public License", "MIT")[0] == "licence.copyleft"
    assert judge_licence("int x;", "")[0] == "licence.unknown"
    assert judge_licence("int x;", "Apache-2.0") == ("", "")


FOLDER = Path(licences.__file__).parent / "licence_texts"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.txt")), ids=lambda path: path.stem)
def test_a_licence_is_recognised_as_a_comment_with_names_put_in(path):
    draw, words = random.Random(path.stem), path.read_text().split()
    for place in draw.sample(range(len(words)), max(1, len(words) // 60)):
        words[place] = "Contributors"
    lines = [" ".join(words[at : at + 11]) for at in range(0, len(words), 11)]
    wanted = path.name.removesuffix(".txt").removesuffix(".notice")
    for sign in (" * ", "// ", "# ", "-- ", ""):
        text = f"{sign}Copyright (c) 2020 The Authors\n" + "".join(f"{sign}{line}\n" for line in lines) + "int x;\n"
        found = [name for name, _ in recognise(text)]
        assert found == [wanted], (sign, found)
        assert (judge_licence(text, "MIT")[0] == "") is permissive(wanted)


def test_two_licences_in_one_head_bind_together_unless_one_may_choose():
    mit, gpl = (FOLDER / "MIT.txt").read_text(), (FOLDER / "GPL-2.0-or-later.notice.txt").read_text()
    assert {name for name, _ in recognise(mit + gpl)} == {"MIT", "GPL-2.0-or-later"}
    reason, evidence = judge_licence(mit + gpl, "MIT")
    assert reason == "licence.copyleft" and "GPL-2.0-or-later" in evidence
    assert judge_licence(f"{mit}\nAlternatively, this file may be used as follows.\n{gpl}", "") == ("", "")
    assert judge_licence(mit, "") == judge_licence(mit, "GPL-3.0-only") == ("", "")  # the file's own word wins


def test_code_that_speaks_of_licences_is_under_none():
    assert recognise("def check_license(permission):\n    return permission.granted and not self.warranty\n" * 20) == []


def test_declared_names_become_identifiers_and_terms():
    assert [spdx(name) for name in ("MIT License", "License :: OSI Approved :: BSD License", "Foo-1.0")] == [
        "MIT", "BSD-3-Clause", "Foo-1.0",
    ]  # fmt: skip
    assert judge_licence("int x;", "Apache Software License") == ("", "")
    assert judge_licence("int x;", "GPLv3+")[0] == "licence.not-permissive"
    assert [terms(name).split(":")[0] for name in ("", "MIT", "GPL-2.0-or-later", "CC0-1.0", "CC-BY-SA-4.0")] == [
        "unknown", "attribution", "copyleft", "none", "attribution and share alike",
    ]  # fmt: skip


def test_public_sets_are_picked_by_licence():
    assert judge_set("CC-BY-4.0", ()) == ("", "") and judge_set("CC-BY-SA-4.0", ("CC-BY-SA-4.0",)) == ("", "")
    assert judge_set("CC-BY-NC-4.0", ())[0] == "licence.not-listed" and judge_set("", ())[0] == "licence.unknown"
