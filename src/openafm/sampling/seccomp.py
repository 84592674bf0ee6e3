"""Seccomp filters as BPF bytes, assembled here: what the kernel refuses a program, whatever code it runs.

Two filters. `guard` refuses what a sandboxed program has no use for and kernels have had holes in; it goes on top of
bubblewrap's namespaces (`bwrap --seccomp FD`). `lock` allows only reading, writing, memory, time and the end: it is the
wall itself where there are no namespaces. See seccomp(2), and linux/filter.h for the instructions.
"""

import errno
import platform
import struct
from collections.abc import Mapping

ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
"""AUDIT_ARCH_* of linux/audit.h by `platform.machine()`."""
_NEWEST = 457
"""Calls from this number on are younger than the table below and refused as unknown (ENOSYS)."""
_NEW_NAMESPACES = 0x7E020080
"""CLONE_NEW* flags of clone(2)."""
_TERMINAL_INPUT = (0x5412, 0x541C)
"""TIOCSTI and TIOCLINUX: typing into the terminal of whoever started us."""
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_KILL, _ERRNO, _ALLOW = 0x80000000, 0x00050000, 0x7FFF0000
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16
"""Offsets in `struct seccomp_data`; an argument has eight bytes, its low word first."""

# Name: its number on x86_64 and on aarch64 (None where that has no such call).
REFUSED: Mapping[str, tuple[int, int | None]] = {
    # the network; socketpair(2) stays for event loops
    "socket": (41, 198), "connect": (42, 203), "bind": (49, 200), "listen": (50, 201), "accept": (43, 202),
    "accept4": (288, 242), "sendmsg": (46, 211), "sendmmsg": (307, 269), "recvmsg": (47, 212), "recvmmsg": (299, 243),
    # other processes
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "process_madvise": (440, 440), "pidfd_getfd": (438, 438), "perf_event_open": (298, 241),
    # mounts, namespaces, devices
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "move_mount": (429, 429),
    "open_tree": (428, 428), "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433),
    "mount_setattr": (442, 442), "chroot": (161, 51), "swapon": (167, 224), "swapoff": (168, 225),
    "quotactl": (179, 60), "quotactl_fd": (443, 443), "unshare": (272, 97), "setns": (308, 268),
    "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265), "fanotify_init": (300, 262),
    "mknod": (133, None), "mknodat": (259, 33),
    # identities
    "setuid": (105, 146), "setgid": (106, 144), "setreuid": (113, 145), "setregid": (114, 143),
    "setresuid": (117, 147), "setresgid": (119, 149), "setfsuid": (122, 151), "setfsgid": (123, 152),
    "setgroups": (116, 159), "capset": (126, 91),
    # the kernel
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219), "bpf": (321, 280), "seccomp": (317, 277),
    "userfaultfd": (323, 282), "io_uring_setup": (425, 425), "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427), "io_setup": (206, 0), "kexec_load": (246, 104), "kexec_file_load": (320, 294),
    "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106), "reboot": (169, 142),
    "acct": (163, 89), "syslog": (103, 116), "sethostname": (170, 161), "setdomainname": (171, 162),
    "settimeofday": (164, 170), "clock_settime": (227, 112), "clock_adjtime": (305, 266), "adjtimex": (159, 171),
    "iopl": (172, None), "ioperm": (173, None), "modify_ldt": (154, None), "personality": (135, 92),
    "vhangup": (153, 58), "vmsplice": (278, 75), "lookup_dcookie": (212, 18), "uselib": (134, None),
    # memory that no process limit counts
    "memfd_create": (319, 279), "memfd_secret": (447, 447), "shmget": (29, 194), "msgget": (68, 186),
    "semget": (64, 190), "mq_open": (240, 180),
}  # fmt: skip
ALLOWED: Mapping[str, tuple[int, int | None]] = {
    "read": (0, 63), "write": (1, 64), "readv": (19, 65), "writev": (20, 66), "lseek": (8, 62), "close": (3, 57),
    "fstat": (5, 80), "mmap": (9, 222), "munmap": (11, 215), "mremap": (25, 216), "mprotect": (10, 226),
    "madvise": (28, 233), "brk": (12, 214), "futex": (202, 98), "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139), "sigaltstack": (131, 132), "restart_syscall": (219, 128), "clock_gettime": (228, 113),
    "clock_getres": (229, 114), "gettimeofday": (96, 169), "time": (201, None), "nanosleep": (35, 101),
    "clock_nanosleep": (230, 115), "poll": (7, None), "ppoll": (271, 73), "select": (23, None), "pselect6": (270, 72),
    "getpid": (39, 172), "gettid": (186, 178), "getrusage": (98, 165), "times": (100, 153), "getrandom": (318, 278),
    "sched_yield": (24, 124), "exit": (60, 93), "exit_group": (231, 94),
}  # fmt: skip
_CLONE, _CLONE3, _IOCTL = (56, 220), (435, 435), (16, 29)


def supported() -> bool:
    """Whether filters can be made for this machine: Linux on x86-64 or 64-bit ARM."""
    return platform.system() == "Linux" and platform.machine() in ARCHITECTURES


def guard(machine: str = platform.machine()) -> bytes:
    """The filter on top of namespaces: everything but `REFUSED`, new namespaces, and calls too young to be known."""
    column = list(ARCHITECTURES).index(machine)
    rules = [_rule(_AT_LEAST, _NEWEST, _refuse(errno.ENOSYS))]
    rules += [_rule(_EQUAL, _CLONE3[column], _refuse(errno.ENOSYS))]  # its flags are out of sight: libc takes clone
    rules += [_rule(_EQUAL, number, _refuse(errno.EPERM)) for number in _numbers(REFUSED, column)]
    terminal = [_step(_LOAD, _ARGUMENTS + 8)]
    for request in _TERMINAL_INPUT:
        terminal += [_rule(_EQUAL, request, _refuse(errno.EPERM))]
    clone = [_step(_LOAD, _ARGUMENTS), _rule(_ANY_BIT, _NEW_NAMESPACES, _refuse(errno.EPERM))]
    for number, body in ((_IOCTL[column], terminal), (_CLONE[column], clone)):
        body = [*body, _step(_RETURN, _ALLOW)]
        rules += [_step(_EQUAL, number, 0, sum(map(len, body)) // 8), *body]
    return b"".join([*_opening(machine), *rules, _step(_RETURN, _ALLOW)])


def lock(machine: str = platform.machine()) -> bytes:
    """The filter that is a wall by itself: `ALLOWED`, and a refusal (EPERM) for everything else."""
    column = list(ARCHITECTURES).index(machine)
    rules = [_rule(_EQUAL, number, _step(_RETURN, _ALLOW)) for number in _numbers(ALLOWED, column)]
    return b"".join([*_opening(machine), *rules, _refuse(errno.EPERM)])


def _numbers(calls: Mapping[str, tuple[int, int | None]], column: int) -> list[int]:
    return [number for pair in calls.values() if (number := pair[column]) is not None]


def _opening(machine: str) -> list[bytes]:
    """Kill programs that call by another architecture's numbers (32-bit int 0x80, x32), then load the call's number."""
    wrong = _step(_RETURN, _KILL)
    steps = [_step(_LOAD, _ARCHITECTURE), _step(_EQUAL, ARCHITECTURES[machine], 1, 0), wrong, _step(_LOAD, _NUMBER)]
    return [*steps, _rule(_AT_LEAST, 0x40000000, wrong)]


def _rule(test: int, value: int, action: bytes) -> bytes:
    """One comparison and what follows from it; else on to the next rule."""
    return _step(test, value, 0, 1) + action


def _refuse(error: int) -> bytes:
    return _step(_RETURN, _ERRNO | error)


def _step(code: int, value: int, when_true: int = 0, when_false: int = 0) -> bytes:
    """A `struct sock_filter`."""
    return struct.pack("<HBBI", code, when_true, when_false, value)
