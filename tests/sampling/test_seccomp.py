"""The filters, run by an interpreter of the same instructions that shares nothing with the assembler but the format."""

import re
import struct
from pathlib import Path

import pytest

from openafm.sampling import seccomp

EPERM, ENOSYS, ALLOW, KILL = 0x50001, 0x50026, 0x7FFF0000, 0x80000000


def decide(program, machine, number, *arguments):
    """What the kernel would answer: linux/filter.h in a few lines."""
    data = struct.pack("<IIQ6Q", number, seccomp.ARCHITECTURES[machine], 0, *arguments, *[0] * (6 - len(arguments)))
    steps = list(struct.iter_unpack("<HBBI", program))
    at, value = 0, 0
    while True:
        code, yes, no, k = steps[at]
        at += 1
        if code == 0x06:
            return k
        if code == 0x20:
            (value,) = struct.unpack_from("<I", data, k)
        else:
            holds = {0x15: value == k, 0x35: value >= k, 0x45: bool(value & k)}[code]
            at += yes if holds else no


@pytest.mark.parametrize("machine", seccomp.ARCHITECTURES)
def test_the_guard_refuses_its_list_and_nothing_common(machine):
    column = list(seccomp.ARCHITECTURES).index(machine)
    guard = seccomp.guard(machine)
    refused = {pair[column] for pair in seccomp.REFUSED.values()} - {None}
    for number in range(600):
        if number >= 457 or number == 435:
            assert decide(guard, machine, number) == ENOSYS
        else:
            assert decide(guard, machine, number) == (EPERM if number in refused else ALLOW), number
    clone, ioctl = ((56, 16), (220, 29))[column]
    assert decide(guard, machine, clone, 0x10000000 | 17) == EPERM  # a user namespace
    assert decide(guard, machine, clone, 0x3D0F00) == ALLOW  # a thread
    assert decide(guard, machine, ioctl, 0, 0x5412) == EPERM and decide(guard, machine, ioctl, 0, 0x5401) == ALLOW
    assert decide(guard, machine, ioctl, 0, 0x5412 | 1 << 32) == EPERM  # the kernel reads 32 bits of it
    assert decide(guard, machine, 0x40000000 + 39) == KILL


@pytest.mark.parametrize("machine", seccomp.ARCHITECTURES)
def test_the_lock_allows_its_list_alone(machine):
    column = list(seccomp.ARCHITECTURES).index(machine)
    allowed = {pair[column] for pair in seccomp.ALLOWED.values()} - {None}
    for number in range(600):
        assert decide(seccomp.lock(machine), machine, number) == (ALLOW if number in allowed else EPERM)


def test_another_architecture_is_killed():
    program = seccomp.guard("x86_64")
    assert decide(program, "aarch64", 1) == KILL and len(program) < 8 * 4096


@pytest.mark.parametrize(("column", "header"), [(0, "x86_64-linux-gnu/asm/unistd_64.h"), (1, "asm-generic/unistd.h")])
def test_numbers_are_the_kernels(column, header):
    path = Path("/usr/include") / header
    if not path.exists():
        pytest.skip("no kernel headers here (linux-libc-dev)")
    found = {name: int(n) for name, n in re.findall(r"#define __NR(?:3264)?_(\w+) (\d+)", path.read_text())}
    assert len(found) > 200
    for name, pair in {**seccomp.REFUSED, **seccomp.ALLOWED}.items():
        assert pair[column] == found.get(name, pair[column]), name
