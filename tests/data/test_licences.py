import itertools

import pytest

from openafm.data.licences import judge_licence, permissive


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
