"""What can be said of the arm64 root without making one: what is missing, how much lies where, what the table looks like."""

import os

import pytest

from tests.arm64root import namespace, root
from tests.arm64root.conftest import Report


def test_what_is_missing_is_said_with_its_packages(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "apt install mmdebstrap qemu-user-static g++-aarch64-linux-gnu" in str(root.why_not())
    for name in root.NEEDS:
        (tmp_path / name).touch(mode=0o755)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "sudo make test-arm64-root" in str(root.why_not())
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(namespace, "registered", lambda: False)
    for release, told in [("5.15.0-91-generic", "binfmt-support"), ("6.7.0", None), ("6.12-rc1", None)]:
        monkeypatch.setattr("platform.release", lambda release=release: release)
        said = root.why_not()
        assert said is None if told is None else told in said


@pytest.mark.parametrize(
    ("entry", "there"),
    [
        ("enabled\ninterpreter /usr/bin/qemu-aarch64-static\nflags: PF\noffset 0\n", True),
        ("enabled\ninterpreter /usr/bin/qemu-aarch64-static\nflags: \noffset 0\n", False),
        ("disabled\ninterpreter /usr/bin/qemu-aarch64-static\nflags: PF\n", False),
        (None, False),
    ],
)
def test_only_an_emulator_that_is_open_already_is_found_in_a_root(monkeypatch, tmp_path, entry, there):
    monkeypatch.setattr(namespace, "FORMATS", tmp_path)
    if entry is not None:
        (tmp_path / "qemu-aarch64").write_text(entry)
    assert namespace.registered() == there


def test_a_file_with_two_names_is_counted_once(tmp_path):
    (tmp_path / "one").write_bytes(b"x" * 1000)
    os.link(tmp_path / "one", tmp_path / "two")
    empty = tmp_path / "folder"
    empty.mkdir()
    assert root.size(tmp_path) == 1000 + empty.stat().st_size and root.size(tmp_path / "one") == 1000


def test_table():
    report = Report()
    report.add("install", root.Ran(0, 12.34, 10.0, "", ""), 5_600_000)
    report.add("the kit", written=2_000_000)
    report.add("doctor", root.Ran(0, 1.0, 0.5, "", ""))
    assert [line.split() for line in report.table().splitlines()] == [
        ["step", "seconds", "of", "CPU", "MB"],
        ["install", "12.3", "10.0", "5.6"],
        ["the", "kit", "2.0"],
        ["doctor", "1.0", "0.5"],
    ]
