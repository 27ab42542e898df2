"""The import rules of docs/architecture.md, read from the source and tried in a fresh process.

    workstation (torch)                    │ board (numpy, tokenizers, safetensors, jinja2)
    checkpoint, models → calibrate → quant ┼→ bundle → backends → runtime → telemetry, profile → apps

No module imports one further right, also not inside a function; so runtime knows nothing of telemetry or profile.
Imports under `if TYPE_CHECKING:` never run, and do not count.
"""

import ast
import subprocess
import sys
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

import pytest

REPO = Path(__file__).resolve().parent.parent
PACKAGE = "quamba_edge"

# May be imported from anywhere, and import only each other.
FREE = (
    "errors",
    "rotation",
    "layouts",
    "devices",
    "ops*",
    "models",
    "models.fields",
    "models.program",
    "models.*.config",
    "models.*.program",
)
# Left to right; the first pattern that fits names a module's place.  "" is the package itself.
ORDER = (
    ("checkpoint*", "models.*"),
    ("calibrate*",),
    ("quant*",),
    ("bundle*",),
    ("backends*",),
    ("runtime*",),
    ("telemetry*", "profile*", "tasks*"),
    ("", "apps*", "serve*", "cli*", "doctor", "pack", "search*", "harness", "__main__"),
)
WORKSTATION = (
    "checkpoint*",
    "models.stack",
    "models.*.weights",
    "models.*.reference",
    "calibrate*",
    "quant*",
    "pack",
    "search*",
)
BOARD_AFTER_ALL = ("quant", "quant.recipe")  # plain data, and the package it lies in
# Faces that reach over to the workstation side, inside the function that needs it.
DOORS = ("", "apps.pack", "apps.evaluate", "apps.tasks", "apps.plan", "apps.search")
# To the right of its place, each with its reason.
EXCEPTIONS = {
    ("quant.walk", "bundle.writer"): "the walk puts every finished layer on disk as a part of the bundle",
    ("quant.work", "bundle.writer"): "what lies beside the parts is written as they are: whole or not at all",
}

BOARD_LIBRARIES = {"numpy", "tokenizers", "safetensors", "jinja2"}
# Libraries that one module, and inside its functions only, may use.
SPECIAL = {
    "pycuda": "backends.cuda",
    "rich": "apps.pack",
    "starlette": "serve.*",
    "uvicorn": "serve.*",
    "jtop": "telemetry.*",
    "pynvml": "telemetry.nvidia",
    "matplotlib": "apps.*_plot",
    "optuna": "search.*",
    "lm_eval": "harness",
}


class Import(NamedTuple):
    target: str  # "torch", or a module of the package as "quamba_edge.runtime.session"
    lazy: bool  # inside a function
    line: int


def fits(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, p) for p in patterns)


def place(name: str) -> int:
    """Position from the left; 0 for what may be imported from anywhere."""
    if fits(name, FREE):
        return 0
    found = [i for i, patterns in enumerate(ORDER, 1) if fits(name, patterns)]
    assert found, f"{PACKAGE}.{name} has no place yet: give it one in tests/test_layering.py and docs/architecture.md"
    return found[0]


def on_board(name: str) -> bool:
    return name in BOARD_AFTER_ALL or not fits(name, WORKSTATION)


def modules() -> dict[str, Path]:
    """Every module by its name without the package: "" is the package itself, "ops" a package, "ops.op" a file."""
    found = {}
    for path in sorted((REPO / PACKAGE).rglob("*.py")):
        parts = path.relative_to(REPO / PACKAGE).with_suffix("").parts
        found[".".join(p for p in parts if p != "__init__")] = path
    return found


def imports(source: str, known: set[str]) -> list[Import]:
    """What a source imports: plainly, by models.find(family, part), or by import_module of a constant."""
    found: list[Import] = []

    def visit(node: ast.AST, lazy: bool) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            for child in node.orelse:
                visit(child, lazy)
            return
        if isinstance(node, ast.Import):
            found.extend(Import(a.name, lazy, node.lineno) for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute here"
            for alias in node.names:  # from quamba_edge.quant import recipe: the module, when it is one
                whole = f"{node.module}.{alias.name}"
                inner = whole.removeprefix(PACKAGE + ".")
                found.append(Import(whole if inner in known else str(node.module), lazy, node.lineno))
        elif isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            texts = [a.value if isinstance(a, ast.Constant) and isinstance(a.value, str) else None for a in node.args]
            if called == "import_module" and texts and texts[0]:
                found.append(Import(texts[0], lazy, node.lineno))
            elif called == "find" and len(texts) == 2 and texts[1] in ("config", "program", "weights", "reference"):
                found.append(Import(f"{PACKAGE}.models.any.{texts[1]}", lazy, node.lineno))
        inside = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            visit(child, inside)

    visit(ast.parse(source), False)
    return found


def violations(name: str, source: str, known: set[str]) -> list[str]:
    """One sentence for each import of module `name` that breaks a rule."""
    wrong = []
    for target, lazy, line in imports(source, known):
        where = f"{PACKAGE}.{name}, line {line}: imports {target}"
        if target == PACKAGE:
            continue  # the package itself holds only __version__ and lazy names
        library = target.split(".")[0]
        if library == PACKAGE:
            inner = target.removeprefix(PACKAGE + ".")
            if place(inner) > place(name) and (name, inner) not in EXCEPTIONS:
                wrong.append(f"{where}, which is further right")
            if on_board(name) and not on_board(inner) and not (lazy and name in DOORS):
                wrong.append(f"{where}, which is for the workstation")
        elif library in SPECIAL:
            if not fnmatchcase(name, SPECIAL[library]) or not lazy:
                wrong.append(f"{where}, which only {SPECIAL[library]} may use, inside a function")
        elif library == "gradio":
            wrong.append(f"{where}, which belongs in demos/")
        elif on_board(name) and library not in BOARD_LIBRARIES | sys.stdlib_module_names | {"__future__"}:
            if not (lazy and name in DOORS and library in ("torch", "huggingface_hub")):
                wrong.append(f"{where}, which a board does not have")
    return wrong


@pytest.mark.parametrize("name", modules())
def test_imports_keep_the_order(name):
    assert violations(name, modules()[name].read_text(), set(modules())) == []


def test_exceptions_are_still_needed():
    for name, target in EXCEPTIONS:
        found = {i.target for i in imports(modules()[name].read_text(), set(modules()))}
        assert f"{PACKAGE}.{target}" in found, f"{name} no longer imports {target}: take the exception out"


@pytest.mark.parametrize(
    "name, source",
    [
        ("runtime.session", "import torch"),
        ("runtime.session", "def f():\n    import torch"),
        ("runtime.session", "from quamba_edge.apps import run"),
        ("runtime.generate", "from quamba_edge.telemetry.sample import Sample"),
        ("runtime.generate", "def f():\n    from quamba_edge import profile"),
        ("runtime.session", "from quamba_edge import models\nmodels.find('mamba', 'reference')"),
        ("runtime.session", "from quamba_edge.quant.rtn import quantize_rtn"),
        ("backends.cpu", "import pycuda.driver"),
        ("backends.cuda", "import pycuda.driver"),
        ("apps.run", "def f():\n    import gradio"),
        ("apps.run", "def f():\n    from quamba_edge.checkpoint import open_checkpoint"),
        ("apps.evaluate", "from quamba_edge.checkpoint import open_checkpoint"),
        ("ops.linear", "from quamba_edge.bundle.reader import Bundle"),
        ("models.mamba.program", "import torch"),
        ("models.mamba.config", "from quamba_edge.models.mamba import reference"),
        ("quant.rtn", "from quamba_edge.bundle.writer import write_part"),
        ("calibrate.text", "from quamba_edge.quant import gptq"),
        ("bundle.reader", "import pandas"),
    ],
)
def test_a_broken_rule_is_seen(name, source):
    known = set(modules()) | {"apps.run", "models.mamba.reference", "profile", "checkpoint", "quant.gptq"}
    assert len(violations(name, source, known)) >= 1


@pytest.mark.parametrize(
    "name, source",
    [
        ("backends.cuda", "def f():\n    import pycuda.driver"),
        ("apps.evaluate", "def f():\n    from quamba_edge.checkpoint import open_checkpoint"),
        ("apps.evaluate", "def f():\n    models.find('mamba', 'reference')"),
        ("runtime.session", "models.find('mamba', 'program')\nimport json, numpy as np"),
        ("bundle.manifest", "from quamba_edge.quant.recipe import Recipe"),
        ("models.mamba.program", "if TYPE_CHECKING:\n    from quamba_edge.bundle.manifest import Manifest"),
        ("quant.rtn", "import torch"),
    ],
)
def test_what_the_rules_allow(name, source):
    assert violations(name, source, set(modules())) == []


def test_gradio_only_in_demos():
    known = set(modules())
    for folder in ("quamba_edge", "tests", "export", "jetson"):
        for path in sorted((REPO / folder).rglob("*.py")):
            assert "gradio" not in {i.target.split(".")[0] for i in imports(path.read_text(), known)}, path


def in_a_fresh_process(source: str) -> None:
    done = subprocess.run([sys.executable, "-c", source], cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_board_modules_import_without_the_workstation():
    names = [f"{PACKAGE}.{n}".rstrip(".") for n in modules() if on_board(n) and n not in ("__main__", "backends.cuda")]
    away = [
        "torch",
        "transformers",
        "huggingface_hub",
        "rich",
        "pycuda",
        "gradio",
        "optuna",
        "lm_eval",
        "starlette",
        "jtop",
        "pynvml",
        "matplotlib",
    ]
    in_a_fresh_process(
        f"import sys, importlib\nsys.modules.update(dict.fromkeys({away}))\nfor n in {names}: importlib.import_module(n)"
    )


def test_importing_the_package_is_instant():
    in_a_fresh_process(
        "import sys, quamba_edge\n"
        "heavy = {'numpy', 'torch', 'tokenizers', 'jinja2', 'safetensors'} & set(sys.modules)\n"
        "assert not heavy, f'import quamba_edge brings in {heavy}'"
    )
