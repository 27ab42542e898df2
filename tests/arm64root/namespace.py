"""Runs one command in an arm64 root, in namespaces of its own: no mount, no network and no process outlives it.

    python tests/arm64root/namespace.py --root FOLDER [--changes FOLDER] [--bind HERE:THERE]... [--network] -- COMMAND...

A user namespace has its own list of binary formats since Linux 6.7, so the emulator is registered for this command alone, and the
machine's own list stays as it is.  The kernel takes everything apart when the command ends, however it ends.

With --changes the root is only read: what the command writes lies in FOLDER/upper, and the next command with the same folder finds it
again.  Without --root the command is one of this machine, which may start arm64 programs (mmdebstrap does).
"""

from __future__ import annotations

import argparse
import ctypes
import fcntl
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
from pathlib import Path

EMULATOR = "qemu-aarch64-static"
# The closest to an Orin's Cortex-A78AE that this emulator has: Armv8.2 with dot products and f16, and nothing later.
CPU = "cortex-a76"

NEWNS, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET = 0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
PDEATHSIG = 1

# An ELF file of 64 bits, little endian, executable or shared, for machine 183.
MAGIC = r"\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00"
MASK = r"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff"
FORMATS = Path("/proc/sys/fs/binfmt_misc")
DEVICES = "null zero full random urandom tty".split()


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--root", type=Path, help="folder with the arm64 system")
    p.add_argument("--changes", type=Path, help="folder for what the command writes; the root is not touched")
    p.add_argument(
        "--bind", action="append", default=[], metavar="HERE:THERE", help="a folder to show, to be read only"
    )
    p.add_argument("--network", action="store_true", help="keep this machine's network (default: only 127.0.0.1)")
    p.add_argument("--cpu", default=CPU, help="what the emulator says it is (default: %(default)s)")
    p.add_argument("command", nargs="+")
    options = p.parse_args()

    _die_with_parent()
    ready, go = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        _die_with_parent()
        _unshare(NEWNS | NEWUTS | NEWIPC | NEWUSER | NEWPID | (0 if options.network else NEWNET))
        os.write(ready[1], b".")
        os.read(go[0], 1)
        first = os.fork()  # the first process of its namespace: when it ends, the kernel ends the others
        if first == 0:
            _die_with_parent()
            _inside(options)
        os._exit(_status(first))
    os.close(ready[1])
    if os.read(ready[0], 1):  # nothing comes when the child failed, and has said why
        for kind in ("uid_map", "gid_map"):  # every id is itself: files of a root keep their owners
            Path(f"/proc/{child}/{kind}").write_text("0 0 65536\n")
        os.write(go[1], b".")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the command gets it too, and decides
    return _status(child)


def _status(process: int) -> int:
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    return code if code >= 0 else 128 - code


def _libc(name: str, *arguments: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments):
        error = ctypes.get_errno()
        raise OSError(error, f"{name}: {os.strerror(error)}")


def _die_with_parent() -> None:
    _libc("prctl", PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _unshare(flags: int) -> None:
    _libc("unshare", flags)


def _mount(*arguments: str | Path) -> None:
    subprocess.run(["mount", *map(str, arguments)], check=True)


def _inside(options: argparse.Namespace) -> None:
    """Never returns: lays the root out, and becomes its first process, which waits for the command."""
    register()
    if not options.network:
        _loopback_up()
    environment = dict(os.environ)
    if options.root:
        _lay_out(options)
        environment = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"}
        environment |= {"LANG": "C.UTF-8", "TERM": os.environ.get("TERM", "dumb"), "QEMU_CPU": options.cpu}
    # A first process ignores signals it has no handler for, and inherits orphans; a child of it is a process as any other.
    child = os.fork()
    if child == 0:
        try:
            os.execvpe(options.command[0], options.command, environment)
        except OSError as e:
            print(f"{options.command[0]}: {e.strerror}", file=sys.stderr)
            os._exit(127)
    while True:
        ended, status = os.wait()
        if ended == child:
            code = os.waitstatus_to_exitcode(status)
            os._exit(code if code >= 0 else 128 - code)


def registered() -> bool:
    """Whether this machine's own list has the emulator, opened beforehand (F), so that it is found in a root too."""
    entry = FORMATS / "qemu-aarch64"
    try:
        text = entry.read_text()
    except OSError:
        return False
    return text.startswith("enabled") and "F" in text.partition("flags:")[2].partition("\n")[0]


def register() -> None:
    """Give this namespace a list of binary formats, with the emulator in it."""
    try:
        _mount("-t", "binfmt_misc", "none", FORMATS)
    except subprocess.CalledProcessError:
        if registered():
            return
        raise SystemExit(
            "binary formats of a namespace take Linux 6.7; on an older one: apt install binfmt-support"
        ) from None
    # P: programs see the name they were called by.  F: the emulator is opened now, so a root needs none inside.
    (FORMATS / "register").write_text(f":qemu-aarch64:M::{MAGIC}:{MASK}:{shutil.which(EMULATOR)}:PF\n")


def _loopback_up() -> None:
    """127.0.0.1, for programs that talk to themselves: SIOCSIFFLAGS with IFF_UP on "lo"."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        fcntl.ioctl(s, 0x8914, struct.pack("16sh14x", b"lo", 1))


def _lay_out(options: argparse.Namespace) -> None:
    root = options.root.resolve()
    if options.changes:
        places = {name: (options.changes / name).resolve() for name in ("upper", "work", "merged")}
        for place in places.values():
            place.mkdir(parents=True, exist_ok=True)
        layers = f"userxattr,lowerdir={root},upperdir={places['upper']},workdir={places['work']}"
        root = places["merged"]
        _mount("-t", "overlay", "overlay", "-o", layers, root)
    else:
        _mount("--bind", root, root)
    _mount("-t", "proc", "proc", root / "proc")
    _mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", root / "dev")
    for name in DEVICES:
        (root / "dev" / name).touch()
        _mount("--bind", f"/dev/{name}", root / "dev" / name)
    (root / "dev/shm").mkdir()
    _mount("-t", "tmpfs", "-o", "mode=1777", "tmpfs", root / "dev/shm")
    (root / "dev/pts").mkdir()
    _mount("-t", "devpts", "-o", "newinstance,ptmxmode=666", "devpts", root / "dev/pts")
    (root / "dev/ptmx").symlink_to("pts/ptmx")
    (root / "dev/fd").symlink_to("/proc/self/fd")
    for bind in options.bind:
        here, _, there = bind.rpartition(":")
        inside = root / there.lstrip("/")
        if Path(here).is_dir():
            inside.mkdir(parents=True, exist_ok=True)
        else:
            inside.parent.mkdir(parents=True, exist_ok=True)
            inside.touch()
        _mount("--bind", "-o", "ro", Path(here).resolve(), inside)
    os.chroot(root)
    os.chdir("/root")


if __name__ == "__main__":
    sys.exit(main())
