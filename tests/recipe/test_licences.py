from email.message import Message

import pytest

from openafm.recipe.licences import declared, dependencies, sources


def about(**fields):
    made = Message()
    for name, values in fields.items():
        for value in values if isinstance(values, list) else [values]:
            made[name.replace("_", "-")] = value
    return made


@pytest.mark.parametrize(
    ("fields", "licence"),
    [
        ({"License_Expression": "MIT OR Apache-2.0", "Classifier": ["License :: OSI Approved :: BSD License"]},
         "MIT OR Apache-2.0"),
        ({"Classifier": ["License :: OSI Approved", "License :: OSI Approved :: MIT License"], "License": "x"}, "MIT"),
        ({"Classifier": ["License :: OSI Approved :: MIT License",
                         "License :: OSI Approved :: GNU General Public License v3 (GPLv3)"]},
         "MIT AND GPL-3.0-only"),
        ({"License": "BSD-3-Clause\nmore of the text"}, "BSD-3-Clause"),
        ({}, ""),
    ],
)  # fmt: skip
def test_what_a_package_declares(fields, licence):
    assert declared(about(**fields)) == licence


def test_dependencies_are_those_of_the_installation_and_none_is_copyleft_but_the_known():
    found = {entry.name: entry for entry in dependencies()}
    assert {"torch", "numpy", "fastapi", "markupsafe"} <= found.keys()  # the last one of Jinja
    assert "pytest" not in found and "pytest" in {entry.name for entry in dependencies(["dev"])}
    assert "krippendorff" not in found
    others = {name for name, entry in found.items() if "GPL" in entry.licence or "General Public" in entry.licence}
    assert others <= {"python-stdnum"}, "a licence that asks for more than attribution: is that meant?"


def test_sources_of_every_catalogue_are_listed():
    found = sources()
    assert {entry.of for entry in found} >= {"tiny", "nano", "device"}
    assert any(entry.name == "folder:fixture" and entry.licence == "PostgreSQL" for entry in found)
    assert all(entry.licence for entry in found)
