"""Confines a running service: no programs, no writes to files, no access to other processes.

A filter of system calls (seccomp(2)), and rules for files and signals (landlock(7)). Neither can be undone.
"""

import ctypes
import logging
import os
import resource
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from vtl_tools.common.errors import VTLError

log = logging.getLogger(__name__)

_libc = ctypes.CDLL(None, use_errno=True)
_PR_SET_DUMPABLE: Final = 4

# --- system calls

_GENERIC: Final = 1
_COLUMN: Final = {"x86_64": 0, "aarch64": _GENERIC, "riscv64": _GENERIC}
_AUDIT_ARCH: Final = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7, "riscv64": 0xC00000F3}
_X32: Final = 0x40000000
"""First number of the x32 ABI, which repeats the system calls of x86-64."""

_DENIED: Final[Mapping[str, tuple[int | None, int | None]]] = {
    # other programs, and other processes
    "execve": (59, 221), "execveat": (322, 281), "ptrace": (101, 117), "kcmp": (312, 272),
    "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "process_madvise": (440, 440),
    "pidfd_getfd": (438, 438), "kill": (62, 129), "tkill": (200, 130), "pidfd_send_signal": (424, 424),
    "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240),
    # other users, and more rights
    "setuid": (105, 146), "setgid": (106, 144), "setreuid": (113, 145), "setregid": (114, 143),
    "setresuid": (117, 147), "setresgid": (119, 149), "setfsuid": (122, 151), "setfsgid": (123, 152),
    "setgroups": (116, 159), "capset": (126, 91),
    # other file systems and namespaces
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51),
    "move_mount": (429, 429), "open_tree": (428, 428), "fsopen": (430, 430), "fsconfig": (431, 431),
    "fsmount": (432, 432), "fspick": (433, 433), "mount_setattr": (442, 442), "unshare": (272, 97),
    "setns": (308, 268), "open_by_handle_at": (304, 265), "name_to_handle_at": (303, 264),
    # the host
    "kexec_load": (246, 104), "kexec_file_load": (320, 294), "init_module": (175, 105),
    "finit_module": (313, 273), "delete_module": (176, 106), "reboot": (169, 142), "swapon": (167, 224),
    "swapoff": (168, 225), "acct": (163, 89), "quotactl": (179, 60), "quotactl_fd": (443, 443),
    "syslog": (103, 116), "sethostname": (170, 161), "setdomainname": (171, 162),
    "settimeofday": (164, 170), "clock_settime": (227, 112), "adjtimex": (159, 171),
    "clock_adjtime": (305, 266), "iopl": (172, None), "ioperm": (173, None), "modify_ldt": (154, None),
    "personality": (135, 92), "vhangup": (153, 58),
    # parts of the kernel with a history of exploits, which no service uses
    "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218), "userfaultfd": (323, 282),
    "perf_event_open": (298, 241), "fanotify_init": (300, 262), "lookup_dcookie": (212, 18),
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    "bpf": (321, 280),
}  # fmt: skip
_CLONE: Final = (56, 220)
_CLONE3: Final = (435, 435)
_IOCTL: Final = (16, 29)
_TO_ONESELF: Final[Mapping[str, tuple[int, int]]] = {
    "tgkill": (234, 131),  # abort() needs it for the own process
    "prlimit64": (302, 261), "sched_setaffinity": (203, 122), "sched_setattr": (314, 274),
    "sched_setparam": (142, 118), "sched_setscheduler": (144, 119),
}  # fmt: skip
"""Calls whose first argument is a process ID."""
_TYPED_INPUT: Final = (0x5412, 0x541C)
"""TIOCSTI, TIOCLINUX: they inject terminal input, which root's shell would execute."""
_SECCOMP: Final = (317, 277)
_NEW_NAMESPACES: Final = 0x7E020080  # CLONE_NEW*: user, PID, network, mount, IPC, UTS, cgroup, time

_SET_MODE_FILTER: Final = 1
_FLAGS: Final = 1 | 4  # TSYNC, and SPEC_ALLOW: no slow-down of the whole process on older kernels
_INSTRUCTION: Final = struct.Struct("=HBBI")  # code, jump if true, jump if false, k
_LD, _JEQ, _JGE, _JSET, _RET = 0x20, 0x15, 0x35, 0x45, 0x06
_NR, _ARCH, _ARG0, _ARG1 = 0, 4, 16, 24  # struct seccomp_data; the lower halves of arguments
_ALLOW: Final = 0x7FFF0000
_ERRNO: Final = 0x00050000
_EPERM, _ENOSYS = 1, 38
_Step = tuple[int, int, int, int]


def can_deny_calls() -> bool:
    """Return whether deny_calls() knows this machine's system calls."""
    return os.uname().machine in _COLUMN


def landlock_abi() -> int:
    """Return the version of Landlock that this kernel has; 0: none."""
    return max(0, int(_libc.syscall(_CREATE_RULESET, None, 0, _VERSION)))


def deny_calls(allowed: Iterable[str] = ()) -> None:
    """Let the kernel refuse (EPERM) system calls that no running service makes. allowed: exceptions, by name.

    Needs no_new_privs. On machines whose call numbers are unknown here it does nothing but log a warning.
    """
    machine = os.uname().machine
    if not can_deny_calls():
        log.warning("system calls are not filtered: their numbers on %s are unknown", machine)
        return
    column = _COLUMN[machine]
    numbers = [n[column] for name, n in _DENIED.items() if name not in set(allowed)]
    program = _program(_AUDIT_ARCH[machine], [n for n in numbers if n is not None], column)
    held = ctypes.create_string_buffer(program, len(program))
    count = len(program) // _INSTRUCTION.size
    fprog = struct.pack("HxxxxxxP", count, ctypes.addressof(held))
    if _libc.syscall(_SECCOMP[column], _SET_MODE_FILTER, _FLAGS, fprog):
        raise _error("system calls cannot be filtered")


def _program(arch: int, denied: list[int], column: int) -> bytes:
    """Return a classic BPF program.

    It reads the arguments of few calls only. For the others the kernel caches the verdict (seccomp's action
    cache).
    """
    refuse, allow = (_RET, 0, 0, _ERRNO | _EPERM), (_RET, 0, 0, _ALLOW)

    def call(number: int, *steps: _Step) -> list[_Step]:
        return [(_JEQ, 0, len(steps), number), *steps]

    steps = [(_LD, 0, 0, _ARCH), (_JEQ, 1, 0, arch), refuse, (_LD, 0, 0, _NR)]
    if column != _GENERIC:
        steps += [(_JGE, 0, 1, _X32), refuse]
    for number in sorted(denied):
        steps += call(number, refuse)
    # BPF cannot read the flags of clone3: if it is refused, the C library calls clone.
    steps += call(_CLONE3[column], (_RET, 0, 0, _ERRNO | _ENOSYS))
    steps += call(_CLONE[column], (_LD, 0, 0, _ARG0), (_JSET, 0, 1, _NEW_NAMESPACES), refuse, allow)
    for numbers in _TO_ONESELF.values():
        own = (_JEQ, 2, 0, 0), (_JEQ, 1, 0, os.getpid())
        steps += call(numbers[column], (_LD, 0, 0, _ARG0), *own, refuse, allow)
    typed = [(_JEQ, len(_TYPED_INPUT) - i, 0, k) for i, k in enumerate(_TYPED_INPUT)]
    steps += call(_IOCTL[column], (_LD, 0, 0, _ARG1), *typed, allow, refuse)
    return b"".join(_INSTRUCTION.pack(*step) for step in [*steps, allow])


# --- files and signals

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # on every machine
_VERSION: Final = 1
_PATH_BENEATH: Final = 1
_EXECUTE, _WRITE_FILE, _REMOVE_FILE, _MAKE_REG, _TRUNCATE = 1 << 0, 1 << 1, 1 << 5, 1 << 8, 1 << 14
_TO_WRITE: Final = 0x1FF2
"""Access rights of the first ABI: write, remove and create files of any kind, and directories."""
_REFER: Final = 1 << 13
_SCOPED: Final = 1 | 2  # abstract unix sockets and signals of other processes
_REPLACE: Final = _WRITE_FILE | _REMOVE_FILE | _MAKE_REG | _TRUNCATE
_DEVICES: Final = ("/dev/null",)


def deny_writing(but: Iterable[Path] = ()) -> None:
    """Let the kernel refuse (EACCES) that this process writes, creates, removes or executes a file.

    but: exceptions: directories in which it may create, write and remove regular files, and device files that
    it may write to. Open files stay usable. Signals and abstract sockets reach only its own children. Older
    kernels enforce a part or nothing, which is logged. Needs no_new_privs.
    """
    abi = landlock_abi()
    if not abi:
        log.info("no Landlock in this kernel: only file permissions restrict the service's access to files")
        return
    handled = _EXECUTE | _TO_WRITE | (_REFER if abi >= 2 else 0) | (_TRUNCATE if abi >= 3 else 0)
    attributes = struct.pack("=QQQ", handled, 0, _SCOPED if abi >= 6 else 0)
    size = 24 if abi >= 6 else 16 if abi >= 4 else 8
    ruleset = _libc.syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(size), 0)
    if ruleset < 0:
        raise _error("files cannot be kept from the service")
    try:
        for path in {*but, *map(Path, _DEVICES)}:
            _permit(ruleset, path, handled)
        if _libc.syscall(_RESTRICT_SELF, ruleset, 0):
            raise _error("files cannot be kept from the service")
    finally:
        os.close(ruleset)


def _permit(ruleset: int, path: Path, handled: int) -> None:
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        rights = handled & (_REPLACE if path.is_dir() else _WRITE_FILE | _TRUNCATE)
        if _libc.syscall(_ADD_RULE, ruleset, _PATH_BENEATH, struct.pack("=Qi", rights, fd), 0):
            raise _error(f"{path}: cannot be opened to the service")
    finally:
        os.close(fd)


# --- memory


def keep_memory_private() -> None:
    """Let no other process of the same user read this one's memory, and write no core file."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def _error(what: str) -> VTLError:
    return VTLError(f"{what}: {os.strerror(ctypes.get_errno())}; use --user root to run without confinement")
