"""What Linux gives to shut a process in: namespaces, a file system of its own, a filter of system calls.

Used by the launcher (launcher.py), a single-threaded process: what is unshared here is unshared for good.
Not here: who is shut in, and for how long. By ctypes on libc, since Python 3.11 has no os.unshare; no other library
of these calls is small and well kept.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET = (
    0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000,
)  # fmt: skip
_EVERYTHING = NEWNS | NEWCGROUP | NEWUTS | NEWIPC | NEWUSER | NEWPID | NEWNET
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 4096, 16384, 1 << 18
_SIGCHLD, _SIGKILL, _MNT_DETACH = 17, 9, 2
INNER_ID = 1000  # the candidate's uid and gid as it sees them; not 0: exec takes all capabilities away then

# The numbers of the calls used here and of those that the filter refuses, on x86_64 and aarch64; -1: it has none.
_CALLS = {
    "clone": (56, 220), "fork": (57, -1), "vfork": (58, -1), "shmget": (29, 194), "socket": (41, 198),
    "semget": (64, 190), "msgget": (68, 186), "ptrace": (101, 117), "syslog": (103, 116), "mount": (165, 40),
    "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "swapon": (167, 224), "reboot": (169, 142),
    "sethostname": (170, 161), "init_module": (175, 105), "quotactl": (179, 60), "mq_open": (240, 180),
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219), "unshare": (272, 97),
    "perf_event_open": (298, 241), "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265),
    "setns": (308, 268), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "finit_module": (313, 273), "memfd_create": (319, 279), "kexec_load": (246, 104), "bpf": (321, 280),
    "userfaultfd": (323, 282), "personality": (135, 92), "modify_ldt": (154, -1), "inotify_init": (253, -1),
    "inotify_init1": (294, 26), "fanotify_init": (300, 262), "flock": (73, 32), "io_setup": (206, 0),
    "sched_setaffinity": (203, 122), "sched_setscheduler": (144, 119), "sched_setparam": (142, 118),
    "sched_setattr": (314, 274), "setpriority": (141, 140), "ioprio_set": (251, 30), "migrate_pages": (256, 238),
    "move_pages": (279, 239), "tkill": (200, 130), "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240),
}  # fmt: skip
_EVERYWHERE = {  # numbers from 424 on are the same on all architectures
    "pidfd_send_signal": 424, "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427,
    "open_tree": 428, "move_mount": 429, "fsopen": 430, "fsconfig": 431, "fsmount": 432, "fspick": 433,
    "pidfd_open": 434, "pidfd_getfd": 438, "mount_setattr": 442, "memfd_secret": 447,
}  # fmt: skip
_CLONE3 = 435
# Of fcntl, what would hold or watch the host's files: locks (POSIX, open file description), leases, notices.
_LOCKS = (6, 7, 37, 38, 1024, 1026)
_FCNTL = {"x86_64": 72, "aarch64": 25}
_OF_A_PROCESS = {"x86_64": (62, 234, 302), "aarch64": (129, 131, 261)}  # kill, tgkill, prlimit64
_AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # the architectures' own numbers

_libc = ctypes.PyDLL(None, use_errno=True)  # keeps the GIL: after clone nobody else could give it back
_libc.syscall.restype = ctypes.c_long


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number).lower()}")
    return result


def _syscall(number: int, what: str, *args: int | bytes | ctypes.Array[ctypes.c_char]) -> int:
    padded = [ctypes.c_long(a) if isinstance(a, int) else a for a in args]
    padded += [ctypes.c_long(0)] * (6 - len(padded))
    return _check(_libc.syscall(ctypes.c_long(number), *padded), what)


def mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    """Mount. Raises OSError."""
    encoded = [os.fsencode(x) for x in (source, target, kind)]
    result = _libc.mount(*encoded, ctypes.c_ulong(flags), os.fsencode(options) if options else None)
    _check(result, f"mounting {target}")


def unmount(target: str) -> None:
    """Let what is mounted there go. Raises OSError."""
    _check(_libc.umount2(os.fsencode(target), _MNT_DETACH), f"letting {target} go")


def calls() -> dict[str, int]:
    """Return this architecture's numbers of the system calls above. Raises OSError on another architecture."""
    machine = platform.machine()
    if machine not in _AUDIT:
        raise OSError(f"no table of system calls for {machine}")
    column = list(_AUDIT).index(machine)
    return {name: both[column] for name, both in _CALLS.items() if both[column] >= 0} | _EVERYWHERE


def leave_host() -> None:
    """Move into namespaces of our own; the next child is the first process of one, with which all others there end.

    No network and no other users' processes are in reach then. Started by root, no user namespace is made, otherwise
    one in which we may mount. Raises OSError.
    """
    uid, gid, root = os.getuid(), os.getgid(), os.geteuid() == 0
    if root:
        os.setgroups([])
    _check(_libc.unshare(_EVERYTHING & ~NEWNS & ~(NEWUSER if root else 0)), "making a namespace")
    if not root:
        map_ids("/proc/self", uid, uid, gid, gid)
    _check(_libc.sethostname(b"sandbox", 7), "naming the host")


class View:
    """Be in a mount namespace of our own that shows, read-only, what the interpreter needs, and nothing else.

    The whole process moves into it (after leave_host). `proc` stays a handle on the host's /proc, by which children's
    ids are mapped.
    """

    def __init__(self, binds: Sequence[str], empty: Sequence[str], files: dict[str, bytes]) -> None:
        """Show the paths `binds` where they are, cover the folders `empty`, add `files` (absolute names)."""
        self.proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
        self.root = os.geteuid() == 0
        _check(_libc.unshare(NEWNS), "making a namespace")
        mount("none", "/", "", MS_REC | MS_PRIVATE)
        # /proc as the place to build on: it always exists, and nothing that is shown lies below it.
        at = "/proc"
        mount("view", at, "tmpfs", MS_NOSUID, "size=8m,mode=755")
        for path in binds:
            show(path, at + path)
        os.makedirs(at + "/tmp", 0o755, exist_ok=True)
        for path in empty:
            if os.path.isdir(at + path):
                mount(at + "/tmp", at + path, "", MS_BIND)
        for name, data in files.items():
            Path(at + name).write_bytes(data)
            os.chmod(at + name, 0o444)
        numbers = calls()
        # struct mount_attr: set read-only and nosuid, on the view and all that is mounted in it.
        attributes = ctypes.create_string_buffer(struct.pack("QQQQ", 1 | 2, 0, 0, 0), 32)
        _syscall(
            numbers["mount_setattr"], "making the view read-only", -100, at.encode(), 0x8000, attributes, 32
        )
        os.chdir(at)
        _syscall(numbers["pivot_root"], "changing the root", b".", b".")
        unmount(".")
        os.chdir("/")


def map_ids(
    process: str, inner_uid: int, outer_uid: int, inner_gid: int, outer_gid: int, proc: int | None = None
) -> None:
    """Say who a process of a new user namespace is, inside and outside; proc: where its path begins. Raises OSError."""
    _write(f"{process}/setgroups", "deny", proc)
    _write(f"{process}/uid_map", f"{inner_uid} {outer_uid} 1", proc)
    _write(f"{process}/gid_map", f"{inner_gid} {outer_gid} 1", proc)


def _write(name: str, text: str, folder: int | None) -> None:
    fd = os.open(name, os.O_WRONLY, dir_fd=folder)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def bind(source: str, place: str) -> None:
    """Show a folder or file in another place, too. Raises OSError."""
    mount(source, place, "", MS_BIND | MS_REC)


def show(source: str, place: str) -> None:
    """Show what is at `source`, if anything, at `place`, folders included; a link as a link. Raises OSError."""
    if not os.path.lexists(source):
        return
    folder = os.path.isdir(source) and not os.path.islink(source)
    if os.path.lexists(place) and (not folder or os.stat(place).st_dev == os.stat(source).st_dev):
        return  # lies in one that is shown already
    os.makedirs(place if folder else os.path.dirname(place), exist_ok=True)
    if os.path.islink(source):
        os.symlink(os.readlink(source), place)
        return
    if not folder:
        Path(place).touch()
    bind(source, place)


def start(view: View | None, outer_uid: int, child: Callable[[int], NoReturn]) -> int:
    """Fork, in strong mode (view) into new namespaces, and return the process once it has become a program.

    child(broken) runs there; it keeps the file number `broken` open until exec closes it. outer_uid: its user outside
    where we are root. Raises OSError with what was raised there.
    """
    gate, broken = os.pipe(), os.pipe()
    pid = _syscall(calls()["clone"], "making namespaces", _EVERYTHING | _SIGCHLD) if view else os.fork()
    if pid == 0:
        try:
            os.close(gate[1])
            if view:
                # A shortage of memory ends this process first.
                _write("self/oom_score_adj", "1000", view.proc)
                os.write(broken[1], os.readlink("self", dir_fd=view.proc).encode())
            if os.read(gate[0], 1) == b".":
                child(broken[1])
        except BaseException as e:
            os.write(broken[1], str(e).encode()[:4000])
        finally:
            os._exit(127)
    os.close(gate[0])
    os.close(broken[1])
    try:
        if view:
            number = os.read(broken[0], 4096).decode()  # the host's number of the process, which is not pid
            if not number.isdecimal():
                raise OSError(number)
            uid, gid = (outer_uid, outer_uid) if view.root else (os.getuid(), os.getgid())
            map_ids(number, INNER_ID, uid, INNER_ID, gid, view.proc)
        with contextlib.suppress(BrokenPipeError):  # one that has failed already says why below
            os.write(gate[1], b".")
        if why := os.read(broken[0], 4096):  # exec closes the other end: nothing is to be read then
            raise OSError(why.decode())
    except BaseException:
        os.kill(pid, _SIGKILL)
        os.waitpid(pid, 0)
        raise
    finally:
        os.close(gate[1])
        os.close(broken[0])
    return pid


def shut_in(disk_bytes: int) -> None:
    """In the child, once its ids are mapped: a writable /tmp of its own, no name, no privileges, the filter."""
    os.setresgid(INNER_ID, INNER_ID, INNER_ID)
    os.setresuid(INNER_ID, INNER_ID, INNER_ID)
    mount("tmp", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, f"size={disk_bytes},nr_inodes=1000,mode=700")
    os.chdir("/tmp")
    drop_privileges()
    install_filter()


def drop_privileges() -> None:
    """Give up all capabilities for good, and end with the parent process. Raises OSError."""
    for capability in range(64):
        if _libc.prctl(24, ctypes.c_ulong(capability), 0, 0, 0) < 0:  # PR_CAPBSET_DROP; there are no more
            break
    die_with_parent()
    set_process(38, 1, "PR_SET_NO_NEW_PRIVS")


def set_process(option: int, value: int, name: str) -> None:
    """Call prctl. Raises OSError with the option's name."""
    _check(_libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0), name)


def filter_program() -> bytes:
    """Return the BPF program: refuse new processes (threads may start), namespaces, sockets and what only attacks need.

    Only this process may be sent signals. Locks are refused since the host's files are seen and could be held.
    Refused calls fail with EPERM; clone3 with ENOSYS, upon which libc takes clone, whose flags can be looked at.
    """
    audit, table = _AUDIT[platform.machine()], calls()
    load, equal, at_least, has, give = 0x20, 0x15, 0x35, 0x45, 0x06
    allow, refuse, missing, kill = 0x7FFF0000, 0x00050001, 0x00050026, 0x80000000
    # Call, offset of an argument's lower half, values, what these give, what all others give.
    rules: list[tuple[int, int, tuple[int, ...], int, int]]
    rules = [(_FCNTL[platform.machine()], 24, _LOCKS, refuse, allow)]
    rules += [(n, 16, (0, os.getpid()), allow, refuse) for n in _OF_A_PROCESS[platform.machine()]]
    refused = sorted({n for name, n in table.items() if name != "clone"})
    code: list[tuple[int, int, int, int]] = [
        (load, 0, 0, 4),  # the architecture: a 32-bit call has other numbers
        (equal, 1, 0, audit),
        (give, 0, 0, kill),
        (load, 0, 0, 0),  # the call's number
        (at_least, 0, 1, 0x40000000),  # x32's numbers
        (give, 0, 0, kill),
        (equal, 0, 1, _CLONE3),
        (give, 0, 0, missing),
    ]
    for number in refused:
        code += [(equal, 0, 1, number), (give, 0, 0, refuse)]
    for number, offset, values, given, otherwise in rules:
        code += [(equal, 0, len(values) + 3, number), (load, 0, 0, offset)]
        code += [(equal, len(values) - i, 0, value) for i, value in enumerate(values)]
        code += [(give, 0, 0, otherwise), (give, 0, 0, given)]
    code += [
        (equal, 1, 0, table["clone"]),
        (give, 0, 0, allow),
        (load, 0, 0, 16),  # the lower half of clone's flags
        (has, 0, 1, 0x00010000),  # CLONE_THREAD; with it the kernel itself refuses new user namespaces
        (give, 0, 0, allow),
        (give, 0, 0, refuse),
    ]
    return b"".join(struct.pack("HBBI", *instruction) for instruction in code)


def install_filter() -> None:
    """Put the filter on this process for good; it needs no_new_privs. Raises OSError."""
    program = ctypes.create_string_buffer(filter_program())
    count = (len(program) - 1) // 8
    header = ctypes.create_string_buffer(struct.pack("HL", count, ctypes.addressof(program)), 16)
    _check(_libc.prctl(22, ctypes.c_ulong(2), header, 0, 0), "installing the filter of system calls")


def die_with_parent(signal: int = _SIGKILL) -> None:
    """Send this process a signal when its parent ends. Raises OSError."""
    set_process(1, signal, "PR_SET_PDEATHSIG")
