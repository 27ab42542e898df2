"""Where a checkpoint is, and what kind: name or folder to a local folder, dialect and architecture of its config.json.

Two dialects describe the same models in a config.json.  state-spaces (mamba_ssm) says `d_model`, `n_layer`, and hides the
architecture in `ssm_cfg.layer`; transformers says `hidden_size`, `num_hidden_layers`, and `model_type`.  Mistral has a params.json
instead, Megatron-LM (megatron.py) no such file.
"""

from __future__ import annotations

import json
import re
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from quamba_edge import models
from quamba_edge.checkpoint import megatron
from quamba_edge.errors import BadCheckpoint, Missing
from quamba_edge.models.fields import Fields

BESIDE = ["config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "README.md", "LICENSE*"]
SAFETENSORS = ["model.safetensors", "model.safetensors.index.json", "model-*.safetensors"]
BINS = ["pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*.bin"]
MISTRAL = ["params.json", "consolidated.safetensors", "tokenizer.model*"]
KINDS = (SAFETENSORS, BINS, MISTRAL, megatron.PATTERNS)  # of weights; a repository that has several gives the first
LAYERS = {"Mamba1": "mamba", "Mamba2": "mamba2"}  # ssm_cfg.layer
NOT_THESE = {
    "jamba": "it has attention layers",
    "bamba": "it has attention layers",
    "zamba": "it has attention layers",
    "zamba2": "it has attention layers",
    "nemotron_h": "it has attention layers",
    "falcon_h1": "it has attention layers",
}


def locate(name_or_path: str | Path) -> Path:
    """The local folder of a checkpoint, downloaded first when it is a Hub name (org/name) and no folder.

    Raises BadCheckpoint when there is no such thing, Missing when the Hub cannot be reached.
    """
    path = Path(name_or_path)
    if path.is_dir():
        return path
    if path.exists():
        hint = (
            "it is packed already"
            if path.suffix == ".qedge"
            else "give the folder that has config.json and the weights"
        )
        raise BadCheckpoint(f"{path} is a file, expected a checkpoint folder: {hint}")
    name = str(name_or_path)
    if not is_name(name):
        raise BadCheckpoint(
            f"{path}: no such folder; give a checkpoint folder, or a Hugging Face name such as state-spaces/mamba2-130m"
        )
    return _download(name)


def is_name(text: str) -> bool:
    """Whether it can be a Hub name, org/name."""
    return re.fullmatch(r"[\w.-]*\w[\w.-]*/[\w.-]*\w[\w.-]*", text) is not None and not text.startswith(".")


def tokenizer_of(given: str | Path) -> Path:
    """A tokenizer's file: the given one, or where there is none of that name, tokenizer.json of a model on the Hub.

    Missing when the Hub cannot be reached; a file that is not there is for the reader to report.
    """
    path = Path(given)
    if path.exists() or not is_name(str(given)) or path.suffix in (".json", ".model"):
        return path
    try:
        from huggingface_hub import hf_hub_download

        return Path(hf_hub_download(str(given), "tokenizer.json"))
    except Exception as e:  # its HTTP client's, which differ by version
        reason = (str(e).strip().splitlines() or ["no reason given"])[0][:200]
        raise Missing(
            f"--tokenizer {given} is no file here, and its tokenizer.json did not come from the Hugging Face Hub ({reason}); where "
            f"there is network: hf download {given} tokenizer.json --local-dir DIR, and give that file"
        ) from None


def _download(name: str) -> Path:
    try:
        from huggingface_hub import HfApi, snapshot_download
    except ImportError:
        raise Missing(f"downloading {name} needs huggingface_hub: pip install 'quamba-edge[pack]'") from None
    try:
        try:
            listed = HfApi().list_repo_files(name)
        except Exception as unreachable:  # its HTTP client's, which differ by version
            if type(unreachable).__name__ in ("RepositoryNotFoundError", "GatedRepoError"):
                raise
            every = [pattern for kind in KINDS for pattern in kind]
            return Path(snapshot_download(name, allow_patterns=[*BESIDE, *every], local_files_only=True))
        weights = next((kind for kind in KINDS if any(fnmatchcase(f, p) for f in listed for p in kind)), BINS)
        return Path(snapshot_download(name, allow_patterns=[*BESIDE, *weights]))
    except Exception as e:  # likewise
        folder = name.split("/")[1]
        reason = f"{type(e).__name__}: {str(e).strip().splitlines()[0] if str(e).strip() else 'no reason given'}"[:200]
        raise Missing(
            f"{name} is no folder here and did not come from the Hugging Face Hub ({reason}); where there is network, fetch "
            f"config.json, tokenizer.json and model.safetensors (or pytorch_model.bin, or all shards with their index), bring "
            f"them here as the folder {folder}, and give that folder: hf download {name} --local-dir {folder}"
        ) from None


def read_config(folder: Path) -> tuple[str, Any]:
    """(family, Config) of a checkpoint folder.  BadCheckpoint names file, key, and what was expected."""
    path = folder / "config.json"
    if not path.is_file() and (folder / "params.json").is_file():
        return _of_params(folder / "params.json")
    if not path.is_file():
        if (pickled := megatron.find(folder)) is not None:
            return megatron.read_config(pickled)
        there = sorted(p.name for p in folder.iterdir())[:6]
        raise BadCheckpoint(
            f"{folder}: has no config.json ({', '.join(there) or 'it is empty'}); is it a checkpoint folder?"
        )
    raw = read_json(path)
    try:
        family, dialect = _kind(Fields(raw))
        config = models.find(family, "config").Config
        return family, config.from_state_spaces(raw) if dialect == "state-spaces" else config.from_transformers(raw)
    except BadCheckpoint as e:
        raise BadCheckpoint(f"{folder}/{e}" if str(e).startswith("config.json") else f"{path}: {e}") from None


def _of_params(path: Path) -> tuple[str, Any]:
    """Of Mistral's params.json (Codestral-Mamba), whose model mistral-inference builds with mamba_ssm's Mamba2."""
    raw = Fields(read_json(path), path.name)
    if "dim" not in raw.raw or "n_groups" not in raw.raw:
        raise BadCheckpoint(
            f"{path}: has no dim and n_groups, expected those of a Mamba2 model such as Codestral-Mamba"
        )
    config: dict[str, Any] = {
        "d_model": raw.count("dim"),
        "n_layer": raw.count("n_layers"),
        "vocab_size": raw.count("vocab_size"),
    }
    config |= {"ssm_cfg": {"layer": "Mamba2", "ngroups": raw.count("n_groups")}}
    config |= {k: raw.raw[k] for k in ("rms_norm", "tie_embeddings", "pad_vocab_size_multiple") if k in raw.raw}
    try:
        return "mamba2", models.find("mamba2", "config").Config.from_state_spaces(config)
    except BadCheckpoint as e:
        raise BadCheckpoint(f"{path}: {str(e).removeprefix('config.json: ')}") from None


def _kind(raw: Fields) -> tuple[str, str]:
    """(family, dialect).  A config that speaks both dialects is read as state-spaces."""
    model_type = raw.raw.get("model_type")
    if "d_model" in raw.raw:
        layer = raw.nested("ssm_cfg").raw.get("layer")
        if layer is None:  # mamba_ssm wrote no layer before there were two
            return ("mamba2" if model_type == "mamba2" else "mamba"), "state-spaces"
        if layer not in LAYERS:
            raise BadCheckpoint(f"config.json: ssm_cfg.layer is {layer!r}, expected {' or '.join(LAYERS)}")
        return LAYERS[layer], "state-spaces"
    if "hidden_size" not in raw.raw:
        raise BadCheckpoint("config.json: has neither d_model nor hidden_size: it is not that of a Mamba model")
    if model_type == "falcon_mamba":  # Mamba1 with norms on dt, B and C, which its Config reads
        return "mamba", "transformers"
    if model_type not in ("mamba", "mamba2"):
        why = f" ({NOT_THESE[model_type]})" if isinstance(model_type, str) and model_type in NOT_THESE else ""
        raise BadCheckpoint(
            f"config.json: model_type is {model_type!r}, expected mamba, mamba2 or falcon_mamba: other architectures{why} are "
            "not supported"
        )
    return str(model_type), "transformers"


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as e:
        raise BadCheckpoint(f"{path}: cannot be read as JSON ({e}); copy or download it again") from None


def read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as e:
        raise BadCheckpoint(f"{path}: cannot be read as UTF-8 text ({e}); copy or download it again") from None


def chat_template(folder: Path) -> str | None:
    """chat_template.jinja, or the template in tokenizer_config.json (of several, the one called default)."""
    if (folder / "chat_template.jinja").is_file():
        return read_text(folder / "chat_template.jinja")
    path = folder / "tokenizer_config.json"
    raw = read_json(path) if path.is_file() else {}
    found = raw.get("chat_template") if isinstance(raw, dict) else None
    if isinstance(found, list):
        found = {t.get("name"): t.get("template") for t in found if isinstance(t, dict)}.get("default")
    if found is not None and not isinstance(found, str):
        raise BadCheckpoint(f"{path}: chat_template is {type(found).__name__}, expected text")
    return found


def license_of(folder: Path) -> str | None:
    """The licence that README.md's front matter names, else the first line of LICENSE, else None."""
    readme = folder / "README.md"
    if readme.is_file():
        front = re.match(r"---\s*\n(.*?)\n---", read_text(readme), re.DOTALL)
        named = re.search(r"^license:[ \t]*(?:\n\s*-[ \t]*)?(\S[^\n#]*)", front[1], re.MULTILINE) if front else None
        if front and named and (own := re.search(r"^license_name:[ \t]*(\S[^\n#]*)", front[1], re.MULTILINE)):
            named = own  # beside "license: other"
        if named:
            return named[1].strip().strip("\"'[]")
    for path in sorted(p for p in folder.glob("LICENSE*") if p.is_file()):
        lines = [line.strip() for line in read_text(path).splitlines() if line.strip()]
        if lines:
            return lines[0]
    return None
