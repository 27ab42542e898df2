"""llama.cpp's side of quality_vs_llama_cpp.py: GGUF files of a checkpoint, and what llama-perplexity says token by token.

    checkpoint -> f16 (its converter) -> importance matrix, other types (llama-quantize) -> log-probabilities -> NAME-TYPE.npz

The converter does not know the storytellers' tokenizer (byte-level BPE with GPT-2's expression); CONVERT tells it.  Their
config.json gets the Hugging Face keys.  llama-perplexity reads no control tokens from a text, so in these files, and in the text
that it gets, <|endoftext|> is the character END.  Weights are taken as they are.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from quamba_edge.checkpoint import open_checkpoint

WINDOW, FIRST = 1024, 512  # llama-perplexity scores the tokens after position FIRST of each window
FLOOR = 16.0  # nats under the largest logit, where --save-all-logits cuts
END_OF_TEXT, END = "<|endoftext|>", "\ue000"
CONVERT = """
import runpy, sys
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/gguf-py"]
from conversion.base import TextModel
TextModel.get_vocab_base_pre = lambda self, tokenizer: "gpt-2"
sys.argv = ["convert_hf_to_gguf.py", *sys.argv[2:]]
runpy.run_path(sys.path[0] + "/convert_hf_to_gguf.py", run_name="__main__")
"""


@dataclass(frozen=True)
class Tools:
    """Where llama.cpp's source and programs are, the texts, and the folder for all that is made."""

    source: Path
    programs: Path
    calib: Path
    text: Path
    folder: Path
    windows: int | None = None  # of the text, from its beginning; None: all
    threads: int = 2


@dataclass(frozen=True)
class Scores:
    """Of one file: nll and kl (windows, 511) in nats, kl from the f16 of the same program; bytes of its tensors and of the file."""

    nll: np.ndarray
    kl: np.ndarray
    bytes: int
    file_bytes: int


def scored(logp: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """-log p of each token: logp (T, V), tokens (T)."""
    return -logp[np.arange(len(tokens)), tokens]


def divergence(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """KL(p || q) in nats of each row of log-probabilities (T, V)."""
    return np.einsum("tv,tv->t", np.exp(p), p - q)


def scores(model: Path, kind: str, tools: Tools) -> tuple[np.ndarray, Scores]:
    """tokens (windows, 1024) and Scores of the GGUF file of a type, "f16" or one of llama-quantize's; with + by importance matrix."""
    out = tools.folder / f"{model.name}-{kind}.npz"
    if not out.exists():
        gguf, base = made(model, kind, tools), tools.folder / f"{model.name}-f16.logits"
        if not base.exists():
            save_logits(made(model, "f16", tools), base, tools)
        own = base if kind == "f16" else base.with_name(f"{model.name}-{kind}.logits")
        if own != base:
            save_logits(gguf, own, tools)
        tokens, nll, kl = read_logits(own, base)
        sizes = tensor_bytes(gguf, tools)
        print(f"  {gguf.name}: " + ", ".join(f"{kind} {size} B" for kind, size in sizes.items()), flush=True)
        np.savez(out, tokens=tokens, nll=nll, kl=kl, bytes=sum(sizes.values()), file_bytes=gguf.stat().st_size)
        if own != base:
            own.unlink()  # 0.3 GB
    with np.load(out) as found:
        return found["tokens"], Scores(found["nll"], found["kl"], int(found["bytes"]), int(found["file_bytes"]))


def save_logits(gguf: Path, out: Path, tools: Tools) -> None:
    words = ["-m", gguf, "-f", plain(tools.text, tools.folder), "-c", WINDOW, "-b", WINDOW, "-t", tools.threads]
    words += ["--save-all-logits", out, *(["--chunks", tools.windows] if tools.windows else [])]
    run(tools.programs / "llama-perplexity", *words, log=out.with_suffix(".log"))


def read_logits(own: Path, base: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(tokens, nll, kl) of a --save-all-logits file: magic, window, vocabulary, windows, tokens, then per scored position
    a row of scale f32, smallest log-probability f32 and codes u16, padded to an even number."""
    heads, rows = [], []
    for path in (own, base):
        assert path.open("rb").read(8) == b"_logits_", f"{path} is no file of llama-perplexity --save-all-logits"
        window, vocabulary, count = (int(v) for v in np.fromfile(path, np.int32, 3, offset=8))
        width = 2 * ((vocabulary + 1) // 2) + 4
        heads.append(np.fromfile(path, np.int32, window * count, offset=20).reshape(count, window))
        shape = (count, window - 1 - window // 2, width)
        rows.append(np.memmap(path, np.uint16, "r", 20 + 4 * window * count, shape))
    assert np.array_equal(*heads), f"{own} and {base} are of different tokens"
    nll, kl = np.empty(shape[:2]), np.empty(shape[:2])
    for i, tokens in enumerate(heads[0]):
        p, q = (log_probabilities(r[i], vocabulary) for r in (rows[1], rows[0]))
        nll[i], kl[i] = scored(q, tokens[FIRST + 1 :]), divergence(p, q)
    return heads[0], nll, kl


def log_probabilities(rows: np.ndarray, vocabulary: int) -> np.ndarray:
    scale, least = rows[:, :4].copy().view(np.float32).T[..., None]
    return (rows[:, 4 : 4 + vocabulary] * scale + least).astype(np.float64)


def tensor_bytes(gguf: Path, tools: Tools) -> dict[str, int]:
    """Bytes of tensors by type."""
    sys.path.insert(0, str(tools.source / "gguf-py"))
    from gguf import GGUFReader

    sizes: dict[str, int] = {}
    for tensor in GGUFReader(gguf).tensors:
        sizes[tensor.tensor_type.name] = sizes.get(tensor.tensor_type.name, 0) + int(tensor.n_bytes)
    return sizes


def made(model: Path, kind: str, tools: Tools) -> Path:
    """The GGUF file of a type; f16 by the converter, others by llama-quantize."""
    out = tools.folder / f"{model.name}-{kind}.gguf"
    if out.exists():
        return out
    if kind == "f16":
        words = [tools.source.resolve(), hugging_face(model, tools.folder), "--outtype", "f16", "--outfile", out]
        run(sys.executable, "-c", CONVERT, *words, log=out.with_suffix(".log"))
        return out
    source, more = made(model, "f16", tools), []
    if kind.endswith("+"):
        matrix = tools.folder / f"{model.name}.imatrix.gguf"
        if not matrix.exists():
            words = ["-m", source, "-f", plain(tools.calib, tools.folder), "-o", matrix]
            words += ["-c", 512, "-b", 512, "--chunks", 128, "-t", tools.threads]
            run(tools.programs / "llama-imatrix", *words, log=matrix.with_suffix(".log"))
        more = ["--imatrix", matrix]
    words = [*more, source, out, kind.rstrip("+"), 2]
    run(tools.programs / "llama-quantize", *words, log=out.with_suffix(".log"))
    return out


def hugging_face(model: Path, folder: Path) -> Path:
    """A folder with the keys and the tokenizer settings that the converter asks for, and links to the rest."""
    checkpoint = open_checkpoint(model)
    config, out = checkpoint.config, folder / f"{model.name}-hf"
    out.mkdir(exist_ok=True)
    raw = json.loads((model / "config.json").read_text())
    name = {"mamba": "Mamba", "mamba2": "Mamba2"}[checkpoint.family]
    raw |= {"architectures": [f"{name}ForCausalLM"], "model_type": checkpoint.family, "hidden_size": config.d_model,
            "num_hidden_layers": config.n_layer, "state_size": config.d_state, "conv_kernel": config.d_conv, "expand": 2,
            "intermediate_size": config.d_inner, "layer_norm_epsilon": config.norm_eps}  # fmt: skip
    if checkpoint.family == "mamba2":
        raw |= {"head_dim": config.headdim, "n_groups": config.ngroups, "num_heads": config.d_inner // config.headdim}
    (out / "config.json").write_text(json.dumps(raw))
    words = (
        (model / "tokenizer.json").read_text().replace(END_OF_TEXT, END).replace('"special": true', '"special": false')
    )
    (out / "tokenizer.json").write_text(words)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": False}
    (out / "tokenizer_config.json").write_text(json.dumps(settings))
    if not (out / "model.safetensors").exists():
        os.symlink((model / "model.safetensors").resolve(), out / "model.safetensors")
    return out


def plain(text: Path, folder: Path) -> Path:
    """A copy of the first 2 MB with END for the end-of-text token."""
    out = folder / f"{text.stem}-plain.txt"
    out.write_text(text.read_text()[:2_000_000].replace(END_OF_TEXT, END))
    return out


def run(*words: object, log: Path) -> None:
    with log.open("w") as file:
        if subprocess.run([str(w) for w in words], stdout=file, stderr=subprocess.STDOUT).returncode:
            raise SystemExit(f"{words[0]} failed; {log} ends:\n{log.read_text()[-2000:]}")
