"""What a visitor relies on before any code runs: README, Makefile, metadata, licence, embedded models, native build."""

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from quamba_edge import __version__
from quamba_edge.runtime.chat_template import render

REPO = Path(__file__).resolve().parent.parent
VERBS = "demo test test-all test-browser test-arm64 test-arm64-root lint native wheels offline-kit cubin-report gpu-check bench docs clean help".split()

# Speed and perplexity numbers in the docs were measured on exactly these files.
MODELS = {
    "storyteller-mamba1-5m": {
        "config.json": "188c2a11c619ee180fece2e8c2738bbecc4e76a2941845fac7dfe6b6b13ed94f",
        "model.safetensors": "48d700fdb19770b68fa31257cd9c6a702ff2e00018517e8ccaf1c735044815f7",
        "tokenizer.json": "b23f94fc1c6a4f47158f4678462d888b18569d587cf854f08f8a66f589ff8ec2",
    },
    "storyteller-mamba2-5m": {
        "config.json": "86d865254f438aa1392f6494611ab739ee122ec3775030351e9e664104e81415",
        "model.safetensors": "016d748db20ab26a1bd01c9aca035e60545adfb11c6d9f59652660ebb4561b78",
        "tokenizer.json": "b23f94fc1c6a4f47158f4678462d888b18569d587cf854f08f8a66f589ff8ec2",
    },
}


def makefile_targets() -> set[str]:
    return set(re.findall(r"^([a-z0-9-]+):", (REPO / "Makefile").read_text(), re.MULTILINE))


def documents() -> list[Path]:
    return [
        REPO / "README.md",
        *sorted((REPO / "docs").glob("*.md")),
        *sorted((REPO / "demos").rglob("*.md")),
        REPO / "export/README.md",
    ]


def in_code(text: str) -> str:
    """Only what stands in code blocks and between backticks, where a command is a command."""
    blocks = re.findall(r"^```.*?^```|^    .*$", text, re.MULTILINE | re.DOTALL)
    return "\n".join(blocks + re.findall(r"`[^`\n]+`", text))


def test_makefile_has_the_verbs_and_help_lists_them():
    assert set(VERBS) <= makefile_targets()
    listed = subprocess.run(["make", "--no-print-directory", "help"], cwd=REPO, capture_output=True, text=True).stdout
    assert sorted(line.split()[1] for line in listed.splitlines()) == sorted(VERBS)


@pytest.mark.parametrize("path", documents(), ids=lambda p: str(p.relative_to(REPO)))
def test_commands_in_documents_exist(path):
    from quamba_edge.cli import reference_markdown

    code, reference = in_code(path.read_text()), reference_markdown()
    for verb in re.findall(r"(?:^|`|\$ |  |&& )make +(?:[A-Z_]+=\S+ +)*([a-z0-9-]+)(?=[ `\n]|$)", code):
        assert verb in makefile_targets(), f"{path.name} says `make {verb}`"
    for verb in re.findall(r"quamba-edge ([a-z]+)", code):
        assert f"quamba-edge {verb}" in reference, f"{path.name} says `quamba-edge {verb}`"
    for script in re.findall(r"python3? ((?:demos|tests|export)/\S+\.py)", code):
        assert (REPO / script).is_file(), f"{path.name} runs {script}"


@pytest.mark.parametrize("path", documents(), ids=lambda p: str(p.relative_to(REPO)))
def test_links_in_documents_resolve(path):
    for target in re.findall(r"\]\(([^)#\s]+)", path.read_text()):
        if "://" not in target:
            assert (path.parent / target).exists(), f"{path.relative_to(REPO)} links to {target}"


def test_docs_index_names_every_document():
    index = (REPO / "docs" / "README.md").read_text()
    missing = [p.name for p in (REPO / "docs").glob("*.md") if p.name != "README.md" and f"({p.name})" not in index]
    assert missing == []


def test_metadata():
    text = (REPO / "pyproject.toml").read_text()
    assert re.search(r'^version = "(.*)"', text, re.MULTILINE)[1] == __version__
    assert 'requires-python = ">=3.10"' in text
    board = re.search(r"^dependencies = \[(.*?)\]", text, re.MULTILINE | re.DOTALL)[1]
    names = set(re.findall(r'"([a-z0-9_-]+)', board))
    assert names == {"numpy", "tokenizers", "safetensors", "jinja2"}, "the board needs these four and nothing else"
    assert 'quamba-edge = "quamba_edge.cli:main"' in text


def test_constraints_pin_what_tests_run_on():
    lines = [x.split("#")[0].strip() for x in (REPO / "constraints.txt").read_text().splitlines()]
    assert "torch==2.13.0" in lines
    for line in filter(None, lines):
        assert re.match(r"[a-z0-9_-]+==[0-9.]+(; python_version [<>]=? \"3\.\d+\")?$", line), line


def test_licence_is_apache_2():
    text = (REPO / "LICENSE").read_text()
    assert "Apache License" in text and "Version 2.0, January 2004" in text and "END OF TERMS AND CONDITIONS" in text


def test_tracked_files_are_small():
    if not (REPO / ".git").exists():
        pytest.skip("not a git checkout: no list of tracked files")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=REPO, capture_output=True, text=True, check=True).stdout
    names = [n for n in listed.split("\0") if n and (REPO / n).is_file()]
    assert names
    assert [n for n in names if (REPO / n).stat().st_size > 12e6] == []
    built = [n for n in names if n.endswith((".qedge", ".pt", ".bin", ".so", ".cubin"))]
    assert sorted(built) == ["tests/golden/mamba.qedge", "tests/golden/mamba2.qedge"]


@pytest.mark.parametrize("model", MODELS)
def test_embedded_model_is_the_published_one(model):
    folder = REPO / "demos" / "models" / model
    found = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in MODELS[model]}
    assert found == MODELS[model]
    assert (folder / "README.md").read_text().startswith("---\nlicense: apache-2.0\n")


@pytest.mark.parametrize("model", MODELS)
def test_chat_template_writes_the_training_format(model):
    template = (REPO / "demos" / "models" / model / "chat_template.jinja").read_text()
    user, reply = {"role": "user", "content": "Tell me a story."}, {"role": "assistant", "content": " Once.\n"}
    assert render(template, [user], add_generation_prompt=True) == "<|endoftext|>User: Tell me a story.\nAssistant:"
    assert render(template, [user, reply], add_generation_prompt=False).endswith("story.\nAssistant: Once.")
    two = render(template, [{"role": "system", "content": "Be kind."}, user, reply, user], add_generation_prompt=True)
    assert two == (
        "<|endoftext|>Be kind.\nUser: Tell me a story.\nAssistant: Once.<|endoftext|>User: Tell me a story.\nAssistant:"
    )


def build_native(folder: Path, recipe: str | None, **environment: str) -> subprocess.CompletedProcess:
    """Run this project's build_native on an empty package whose csrc/Makefile builds by `recipe`."""
    pytest.importorskip("setuptools", reason="setuptools is not installed: pip install setuptools")
    (folder / "quamba_edge").mkdir()
    (folder / "quamba_edge" / "__init__.py").touch()
    (folder / "pyproject.toml").write_text(
        '[project]\nname = "empty"\nversion = "0"\n[tool.setuptools]\npackages = ["quamba_edge"]\n'
    )
    (folder / "setup.py").write_bytes((REPO / "setup.py").read_bytes())
    if recipe is not None:
        (folder / "csrc").mkdir()
        (folder / "csrc" / "Makefile").write_text(f"cpu:\n\tmkdir -p $(OUT)\n\t{recipe}\n")
    command = [sys.executable, "setup.py", "-q", "build_native", "--build-lib=."]
    environment = {k: v for k, v in os.environ.items() if k != "QUAMBA_SKIP_NATIVE"} | environment
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(
    "recipe, environment, reason",
    [
        (None, {}, "no csrc/Makefile"),
        ("false", {"CXX": "no-such-compiler"}, "no-such-compiler not found"),
        ("false", {"QUAMBA_SKIP_NATIVE": "1"}, "QUAMBA_SKIP_NATIVE is set"),
    ],
)
def test_native_build_is_skipped_in_one_line(tmp_path, recipe, environment, reason):
    done = build_native(tmp_path, recipe, **environment)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1 and reason in done.stdout


def test_native_build_runs_make_and_stops_when_it_fails(tmp_path):
    (tmp_path / "good").mkdir()
    (tmp_path / "bad").mkdir()
    done = build_native(tmp_path / "good", "touch $(OUT)/libquamba_cpu.so", CXX="sh")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "good" / "quamba_edge" / "_native" / "libquamba_cpu.so").is_file()
    assert build_native(tmp_path / "bad", "false", CXX="sh").returncode != 0
