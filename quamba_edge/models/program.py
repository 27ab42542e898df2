"""What the programs of all families share: binding names, the embedding at one end, norm and head at the other.

Buffers have fixed names and are reused by every layer, so the arena is one layer's activations.  An op that writes the residual
stream and one that reads the last token of each sequence see the same buffer, of shape (S, T * D): whole it is (M, D); its
last D columns are (S, D) with a row stride of T * D.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from quamba_edge import models
from quamba_edge.errors import BadBundle
from quamba_edge.ops.op import Arg, Scalar, all_ops
from quamba_edge.ops.program import Buffer, Program, Ref, StateSpec, Step

LOGITS = ("last", "all", "none")


class Builder:
    """Collects the steps of `sequences` S times `tokens` T; M = S * T.

    manifest needs `family`, `config`, `sites`, `rotate`, and the names in `tensors`.
    """

    def __init__(self, manifest: Any, sequences: int, tokens: int):
        self.manifest, self.S, self.T, self.M = manifest, sequences, tokens, sequences * tokens
        self.config = models.find(manifest.family, "config").Config.from_json(manifest.config)
        self.rotate = bool(manifest.rotate)
        self._ops = all_ops()
        self._buffers: dict[str, Buffer] = {}
        self._states: list[StateSpec] = []
        self._steps: list[Step] = []
        self.residual = self.buffer("residual", (sequences, tokens * self.config.d_model), "f32")

    def finish(self) -> Program:
        return Program(self.S, self.T, tuple(self._buffers.values()), tuple(self._states), tuple(self._steps))

    # Names

    def buffer(self, name: str, shape: tuple[int, ...], dtype: str) -> Ref:
        """A buffer of the arena; asking again for the same name gives the same one."""
        found = self._buffers.setdefault(name, Buffer(name, shape, dtype))
        assert (found.shape, found.dtype) == (shape, dtype), f"buffer {name} is {found}, not {shape} {dtype}"
        return Ref("buffer", name)

    def cols(self, ref: Ref, start: int, stop: int) -> Ref:
        """Columns [start, stop) of a buffer."""
        return Ref(ref.kind, ref.name, cols=(start, stop))

    def weight(self, name: str) -> Ref:
        return Ref("weight", name)

    def weights(self, prefix: str, **names: str) -> dict[str, Ref]:
        """{argument: weight `prefix`.name} of an op."""
        return {argument: self.weight(f"{prefix}.{name}") for argument, name in names.items()}

    def state(self, name: str, shape: tuple[int, ...], dtype: str) -> Ref:
        self._states.append(StateSpec(name, shape, dtype))
        return Ref("state", name)

    def has(self, name: str) -> bool:
        return name in self.manifest.tensors

    def site(self, name: str) -> Mapping[str, Any]:
        """The manifest's record of a linear site."""
        if name not in self.manifest.sites:
            raise BadBundle(
                f"the bundle's manifest has no site {name!r}, which every {self.manifest.family} model has: pack it again"
            )
        return self.manifest.sites[name]

    # Steps

    def step(self, op: str, site: str, args: Mapping[str, Ref], **numbers: float) -> None:
        """Append an op; `numbers` are its sizes and scalars by name."""
        found = self._ops[op]
        sizes = {k: int(v) for k, v in numbers.items() if not isinstance(v, float)}
        scalars = {k: v for k, v in numbers.items() if isinstance(v, float)}
        wanted = [
            {a.name for a in found.args if isinstance(a, Arg)},
            {a.name for a in found.args if isinstance(a, Scalar)},
        ]
        assert [set(args), set(scalars)] == wanted, f"{site}: {op} takes {wanted}, not {set(args)}, {set(scalars)}"
        assert len(found.args) == len(args) + len(numbers), f"{site}: {op} takes {found.args}, not {numbers}"
        self._steps.append(Step(found, dict(args), sizes, scalars, site))

    def inputs(
        self,
        function: str,
        linear: str,
        x: Ref,
        rows: int,
        columns: int,
        args: Mapping[str, Ref] | None = None,
        **numbers: float,
    ) -> Ref:
        """`function` (rmsnorm, tied_norm, hadamard, quantize) of x, in the form that the site `linear` reads."""
        act = self.site(linear)["act"]
        kind = "i8" if act == 8 else "f16"
        scale = {"x_scale": self.weight(f"{linear}.in_scale")} if act == 8 else {}
        y = self.buffer(f"{'head' if linear == 'head' else 'linear'}_in{columns}_{kind}", (rows, columns), kind)
        self.step(f"{function}_{kind}", linear, {"x": x, **(args or {}), **scale, "y": y}, M=rows, K=columns, **numbers)
        return y

    def linear(self, site: str, x: Ref, y: Ref, rows: int, *, add: int = 0, stored: str | None = None) -> None:
        """y (rows, N) = or += x W^T.  `stored` names the tensors where they are not the site's own (a tied head)."""
        record, tensors = self.site(site), stored or site
        bits, act = kernel_bits(record), record["act"]
        args = {"x": x, "y": y, **self._matrix(tensors, bits)}
        if act == 8:
            args["x_scale"] = self.weight(f"{site}.in_scale")
        self.step(f"linear_w{bits}a{act}", site, args, M=rows, **self._matrix_sizes(record), add=add)

    def _matrix(self, tensors: str, bits: int) -> dict[str, Ref]:
        return (
            self.weights(tensors, weight="weight")
            if bits == 16
            else self.weights(tensors, codes="codes", scales="scales")
        )

    def _matrix_sizes(self, record: Mapping[str, Any]) -> dict[str, int]:
        return {"N": record["N"], "K": record["K"], **({"G": record["group"]} if record["bits"] == 4 else {})}

    # The ends of the model

    def embed(self) -> None:
        """Tokens to the residual stream."""
        record = self.site("embedding")
        tokens = self.buffer("tokens", (self.M,), "i32")
        bits = kernel_bits(record)
        args = {"tokens": tokens, "y": self.residual, **self._matrix("embedding", bits)}
        self.step(f"embed_w{bits}", "embedding", args, M=self.M, **self._matrix_sizes(record))

    def head(self, logits: str) -> None:
        """The residual stream to logits of the last token of each sequence, of all tokens, or of none."""
        assert logits in LOGITS, f"logits {logits!r}: one of {LOGITS}"
        if logits == "none":
            return
        D, eps, tied = self.config.d_model, float(self.config.norm_eps), self.config.tie_embeddings
        rows = self.S if logits == "last" else self.M
        x = self.residual if logits == "all" else self.cols(self.residual, (self.T - 1) * D, self.T * D)
        y = self.buffer("logits", (rows, self.site("head")["N"]), "f32")
        if tied:
            norm = self.weights("norm_f", weight="weight")
            u = self.inputs("tied_norm", "head", x, rows, D, norm, rotate=int(self.rotate), eps=eps)
        else:
            u = self.inputs("rmsnorm", "head", x, rows, D, eps=eps)
        self.linear("head", u, y, rows, stored="embedding" if tied else None)

    def out_proj(self, site: str, y: Ref) -> None:
        """y (M, E) into the residual stream: rotated where the bundle is, rounded, multiplied, added."""
        u = self.inputs("hadamard" if self.rotate else "quantize", site, y, self.M, self.config.d_inner)
        self.linear(site, u, self.residual, self.M, add=1)


def kernel_bits(record: Mapping[str, Any]) -> int:
    """Bits of a site's codes as kernels read them: 6 are widened to 8 when a bundle is loaded (layouts.widen)."""
    return 8 if record["bits"] == 6 else int(record["bits"])


def whole(b: Builder, layer: Callable[[Builder, str], None], logits: str) -> Program:
    """The model around a family's `layer(b, "layers.3")`: embedding, every layer, head."""
    b.embed()
    for i in range(b.config.n_layer):
        layer(b, f"layers.{i}")
    b.head(logits)
    return b.finish()
