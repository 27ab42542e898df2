"""jetson/setup.sh on recorded boards and with a tiny kit: what it decides, that twice is once, and what it refuses."""

import os
import pty
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.jetson import fake_kit
from tests.jetson.fake_kit import JETSON, PYTHON, REPO, Board, program


@pytest.fixture(scope="module")
def kit(tmp_path_factory):
    return fake_kit.make(tmp_path_factory.mktemp("kit") / "quamba-edge-kit")


@pytest.fixture
def board(tmp_path):
    return Board(tmp_path)


@pytest.mark.parametrize(
    ("tree", "code", "told"),
    [
        (
            "jp5",
            4,
            "stop  board     L4T 35.4.1 is JetPack 5 or older (Python 3.8, CUDA 11.4); expected JetPack 6.1 or later",
        ),
        ("jp62", 0, "ok    board     L4T 36.4.7, JetPack 6, CUDA 12.6"),
        ("jp72", 0, "ok    board     L4T 39.2.0, JetPack 7, CUDA 13"),
        ("", 0, "warn  board     not a Jetson"),
    ],
)
def test_dry_run_decides_by_the_board_and_changes_nothing(tmp_path, kit, tree, code, told):
    board = Board(tmp_path, tree)
    done = board.setup(kit, "--dry-run")
    assert done.returncode == code, done.stdout + done.stderr
    assert told in done.stdout and board.files() == {}
    toolkit = {"jp62": "cuda-toolkit-12-6", "jp72": "cuda-toolkit-13-2"}.get(tree)
    assert toolkit is None or toolkit in done.stdout  # the trees have no CUDA headers
    assert ("-m venv" in done.stdout) == (code == 0) and ("nothing was changed" in done.stdout.lower())


@pytest.mark.parametrize(
    ("release", "told"),
    [
        ("36 3.0", "CUDA 12.2 does not take these kernels"),
        ("38 2.0", "not for an Orin"),
        ("40 1.0", "JetPack 7, CUDA 13"),
    ],
)
def test_other_releases(board, kit, release, told):
    major, minor = release.split()
    (board.root / "etc/nv_tegra_release").write_text(f"# R{major} (release), REVISION: {minor}, GCID: 1\n")
    assert told in board.setup(kit, "--dry-run").stdout


def test_one_board_from_its_first_run_on(tmp_path, kit):
    """One test, because making an environment takes seconds and each part goes on with what the last one left."""
    board = Board(tmp_path)
    first_run_on_a_terminal(board, kit)
    second_run_changes_nothing(board, kit)
    another_build_of_the_same_version_replaces_it(board, fake_kit.make(tmp_path / "second"))
    what_does_not_run_at_the_end_is_no_success(board, fake_kit.make(tmp_path / "third"))
    pycuda_comes_from_the_cache_that_a_first_board_filled(board, kit)
    service_puts_units_below_the_root_once(board, kit)


def answered(board, kit, answer):
    """setup.sh on a terminal, where somebody types `answer`."""
    ours, theirs = pty.openpty()
    os.write(ours, answer)
    command = ["bash", str(kit / "setup.sh"), "--root", str(board.root)]
    done = subprocess.run(command, env=board.environment, stdin=theirs, capture_output=True, text=True, timeout=120)
    os.close(ours)
    os.close(theirs)
    return done


def first_run_on_a_terminal(board, kit):
    done = answered(board, kit, b"y\n")
    assert done.returncode == 0, done.stdout + done.stderr
    prefix = board.home / ".quamba-edge"
    model = prefix / "bundles" / "tale.qedge"
    assert f"PROGRAM doctor --bundle {model}\n" in done.stdout
    assert f"PROGRAM run {model} --prompt Once upon a time --max-tokens 16\n" in done.stdout
    assert os.readlink(board.home / ".local/bin/quamba-edge") == str(prefix / "venv/bin/quamba-edge")
    assert model.read_bytes() == b"not really a bundle" and not list(prefix.rglob("*.part"))
    assert list(prefix.rglob("tinyserve.py")), "the server's libraries came along"


def second_run_changes_nothing(board, kit):
    before = board.files()
    done = board.setup(kit)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Everything is already so: nothing was changed." in done.stdout and "PROGRAM doctor" in done.stdout
    assert done.stdout.count("   already so\n") == 4 and board.files() == before
    more = board.setup(kit, "--yes", "--with-jetson-stats")
    assert "'quamba-edge[jetson,serve]'" in more.stdout and "jtop --install-service" in more.stdout
    before = board.files()
    assert "Everything is already so" in board.setup(kit).stdout and board.files() == before, "what was added stays"


def another_build_of_the_same_version_replaces_it(board, kit):
    fake_kit.quamba_edge(kit / "wheels", "second")
    (kit / "bundle" / "tale.qedge").write_bytes(b"another model")
    fake_kit.sums(kit)
    done = board.setup(kit, "--yes")
    assert done.returncode == 0 and "--force-reinstall" in done.stdout, done.stdout + done.stderr
    python = board.home / ".quamba-edge/venv/bin/python"
    assert subprocess.check_output([python, "-c", "import quamba_edge as q; print(q.build)"], text=True) == "second\n"
    assert (board.home / ".quamba-edge/bundles/tale.qedge").read_bytes() == b"another model"


def what_does_not_run_at_the_end_is_no_success(board, kit):
    fake_kit.quamba_edge(kit / "wheels", code=1)
    fake_kit.sums(kit)
    done = board.setup(kit, "--yes")
    assert done.returncode == 4 and "PROGRAM doctor" in done.stdout and "PROGRAM run" not in done.stdout


def pycuda_comes_from_the_cache_that_a_first_board_filled(board, kit):
    cache = board.home / ".cache" / "quamba-edge" / f"cuda12-cp{PYTHON.replace('.', '')}"
    cache.mkdir(parents=True)
    shutil.copy(next((kit / "wheels").glob("pycuda-*")), cache)
    done = board.setup(kit, "--yes")
    assert done.returncode == 0 and "compiled before, kept in" in done.stdout, done.stdout + done.stderr
    assert (
        list((board.home / ".quamba-edge").rglob("pycuda/__init__.py")) and " wheel --no-cache-dir" not in done.stdout
    )


def service_puts_units_below_the_root_once(board, kit):
    program(board.programs, "id", "echo 0")
    program(board.programs, "systemctl", "echo SYSTEMCTL; exit 1")
    prefix = str(board.home / ".quamba-edge")
    done = board.setup(kit, "--yes", "--no-cuda", "--service", "--prefix", prefix)
    assert done.returncode == 0 and "SYSTEMCTL" not in done.stdout, done.stdout + done.stderr
    unit = (board.root / "etc/systemd/system/quamba-edge.service").read_text()
    assert f"ExecStart={prefix}/venv/bin/quamba-edge serve" in unit and "/opt/quamba-edge" not in unit
    settings = board.root / "etc/default/quamba-edge"
    assert f"BUNDLE={prefix}/bundles/tale.qedge\nPORT=8080\n" in settings.read_text()
    settings.write_text(settings.read_text().replace("PORT=8080", "PORT=9090"))
    again = board.setup(kit, "--yes", "--no-cuda", "--service", "--prefix", prefix)
    assert "Everything is already so" in again.stdout and "PORT=9090" in settings.read_text()


def test_pycuda_is_compiled_with_headers_named_and_curand_off(board, kit):
    if not shutil.which("g++") or not Path(sysconfig.get_path("include"), "Python.h").exists():
        pytest.skip("no g++ or no Python.h: apt install g++ python3-dev")
    (board.root / "usr/local/cuda/include").mkdir(parents=True)
    (board.root / "usr/local/cuda/include/cuda.h").touch()
    shown = board.setup(kit, "--dry-run").stdout
    assert "can be compiled with" in shown and "CUDA_ENABLE_CURAND = False" in shown
    assert f'CUDA_INC_DIR = ["{board.root}/usr/local/cuda/include"]' in shown
    assert "CUDA_INC_DIR" not in board.setup(kit, "--dry-run", "--no-cuda").stdout


@pytest.mark.parametrize("option", ["--dry-run", pytest.param("--yes", marks=pytest.mark.slow)])
def test_a_python_without_ensurepip_takes_the_kits_pip(board, tmp_path, option):
    import ensurepip

    bundled = list(Path(ensurepip.__file__).parent.glob("_bundled/pip-*.whl"))
    if not bundled:
        pytest.skip("this Python has no pip wheel of its own to put into the kit")
    kit = fake_kit.make(tmp_path / "kit")
    program(board.programs, "poor", f'case "$2" in *ensurepip*) exit 1 ;; esac\nexec {sys.executable} "$@"')
    refused = board.setup(kit, "--yes", PYTHON="poor")
    assert refused.returncode == 4 and "cannot make environments" in refused.stdout
    shutil.copy(bundled[0], kit / "wheels")
    fake_kit.sums(kit)
    done = board.setup(kit, option, "--no-cuda", PYTHON="poor")
    assert done.returncode == 0 and "--without-pip" in done.stdout, done.stdout + done.stderr
    assert ("PROGRAM doctor" in done.stdout) == (option == "--yes")


@pytest.mark.parametrize(
    ("options", "code", "told"),
    [
        ([], 2, "no terminal to ask on, and no --yes"),
        (["--yes", "--bundle", "/no/such.qedge"], 3, "/no/such.qedge is not there"),
        (["--yes", "--with-demo"], 3, "Gradio is not in this kit"),
        (["--turbo"], 2, "no such option: --turbo"),
        (["--prefix"], 2, "--prefix needs a value"),
    ],
)
def test_refusals(board, kit, options, code, told):
    done = board.setup(kit, *options)
    assert done.returncode == code and told in done.stdout + done.stderr
    assert board.files() == {}


def test_no_is_no(board, kit):
    done = answered(board, kit, b"n\n")
    assert done.returncode == 2 and done.stdout.endswith("Nothing was changed.\n") and board.files() == {}


def test_a_damaged_kit_is_refused_by_name(board, tmp_path):
    kit = fake_kit.make(tmp_path / "kit")
    (kit / "bundle" / "tale.qedge").write_bytes(b"cut")
    done = board.setup(kit, "--yes")
    assert done.returncode == 3 and "bundle/tale.qedge: FAILED" in done.stdout and board.files() == {}
    (kit / "kit.txt").unlink()
    done = board.setup(kit, "--yes")
    assert done.returncode == 3 and "has no kit.txt, and is no checkout" in done.stdout


def test_too_little_disk(board, kit):
    program(
        board.programs,
        "df",
        'echo "Filesystem 1024-blocks Used Available Capacity Mounted on"; echo "/dev/x 9 8 1000 99% /"',
    )
    done = board.setup(kit, "--yes")
    assert done.returncode == 4 and "1 MB free on" in done.stdout and "--prefix DIR" in done.stdout


def test_python_too_old_or_not_the_kits(board, kit):
    program(board.programs, "old", 'case "$2" in *"%d.%d"*) echo 3.8 ;; *) exit 1 ;; esac')
    done = board.setup(kit, "--yes", PYTHON="old")
    assert done.returncode == 4 and f"old is 3.8; expected {PYTHON}" in done.stdout and "apt install" in done.stdout


def test_a_folder_with_other_things_in_it_stays_as_it_is(board, kit):
    (board.home / "letters").mkdir()
    (board.home / "letters" / "one.txt").write_text("dear")
    done = board.setup(kit, "--yes", "--prefix", str(board.home / "letters"))
    assert done.returncode == 4 and "has other files in it" in done.stdout
    assert [Path(p).name for p in board.files()] == ["one.txt"]


def test_another_program_of_that_name_stays(board, kit):
    program(board.home / "bin", "theirs", "true")
    (board.home / ".local/bin").mkdir(parents=True)
    (board.home / ".local/bin/quamba-edge").symlink_to(board.home / "bin/theirs")
    done = board.setup(kit, "--dry-run")
    assert "left alone: another program is there" in done.stdout and "ln -sfn" not in done.stdout


def test_a_checkout_installs_itself(board):
    done = board.setup(JETSON, "--dry-run")
    assert done.returncode == 0 and f"installs the checkout {REPO}" in done.stdout and f"'{REPO}[serve]'" in done.stdout


def test_service_needs_root(board, kit):
    program(board.programs, "id", "echo 1000")
    done = board.setup(kit, "--yes", "--service")
    assert done.returncode == 4 and "installing units needs root" in done.stdout
