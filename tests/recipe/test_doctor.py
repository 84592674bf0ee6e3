"""What the doctor says on this machine, and on others."""

import platform

import pytest

from openafm.recipe import doctor
from openafm.sampling import sandbox


def test_a_path_without_helpers_names_what_is_gone_and_how_to_get_it(monkeypatch):
    monkeypatch.setattr(sandbox, "backend", lambda: "none")
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(doctor, "system", lambda: "fedora")
    found = {check.name: check for check in doctor.examine()}
    assert found["npm"].remedy == "sudo dnf install npm" and not found["npm"].good and not found["npm"].needed
    assert found["sandbox"].remedy == "sudo dnf install bubblewrap"
    assert "Docker" in found["apt"].remedy
    assert found["python"].good and found["torch"].good and found["packages"].good


@pytest.mark.parametrize(
    ("release", "name"),
    [
        ({"ID": "debian"}, "debian"),
        ({"ID": "linuxmint", "ID_LIKE": "ubuntu debian"}, "debian"),
        ({"ID": "rocky", "ID_LIKE": "rhel centos fedora"}, "fedora"),
        ({"ID": "arch"}, ""),
    ],
)
def test_systems_are_told_by_their_kin(monkeypatch, release, name):
    monkeypatch.setattr(doctor.sys, "platform", "linux")
    monkeypatch.setattr(platform, "freedesktop_os_release", lambda: release)
    assert doctor.system() == name


def test_macos_gets_its_own_commands(monkeypatch):
    monkeypatch.setattr(doctor.sys, "platform", "darwin")
    assert doctor.remedy("npm") == "brew install node"
    assert "Docker" in doctor.remedy("sandbox")


def test_a_package_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr(doctor, "_version", lambda name: "" if name == "daft" else "9999")
    wrong = {check.name: check for check in doctor._packages()}
    assert not wrong["packages"].good and wrong["daft"].needed and wrong["daft"].found == "not installed"


def test_instruction_sets_are_read_from_the_kernel(tmp_path):
    info = tmp_path / "cpuinfo"
    info.write_text("processor : 0\nflags\t: fpu avx2 avx512f sse\n")
    assert doctor._instructions(info) == ["avx2", "avx512f"]
    info.write_text("Features\t: fp asimd bf16\n")
    assert doctor._instructions(info) == ["asimd", "bf16"]
    assert doctor._instructions(tmp_path / "none") == []
