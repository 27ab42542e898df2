r"""The same model shapes in llama.cpp and here, on this machine, in turns; run by hand, needs a llama-bench and GGUF files.

    python tests/bench/vs_llama_cpp.py --llama-bench PATH --race NAME BUNDLE GGUF[,GGUF...] [--race ...] [--rounds 5]

Prints tokens a second of both, the ratio round by round as median and range, file sizes and peak memory.  Of several
GGUF files and settings the best counts, for each column by itself.  The last line is JSON; without arguments it says what it needs.

How to make everything (P: a folder outside the project; NAME: mamba2-130m, mamba2-370m or mamba-130m):

1. llama.cpp's source is in the sdist of llama-cpp-python 0.3.36, folder vendor/llama.cpp:
       pip download --no-deps --no-binary :all: llama-cpp-python==0.3.36 && tar xzf llama_cpp_python-0.3.36.tar.gz
2. Build it for the instructions that the kernel really allows.  A native build may assume AMX and stop with SIGILL where
   that is not there, so the flags are named (this set is for AVX-512 with VNNI; leave away what the CPU lacks):
       cmake -S vendor/llama.cpp -B P/build -G Ninja -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF -DLLAMA_CURL=OFF \
         -DGGML_NATIVE=OFF -DGGML_SSE42=ON -DGGML_AVX=ON -DGGML_AVX2=ON -DGGML_BMI2=ON -DGGML_FMA=ON -DGGML_F16C=ON \
         -DGGML_AVX512=ON -DGGML_AVX512_VBMI=ON -DGGML_AVX512_VNNI=ON -DGGML_AVX512_BF16=ON \
         -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER=OFF
       cmake --build P/build --target llama-bench llama-quantize
3. A checkpoint of that shape: the published one, or random weights in the state-spaces layout with the Hugging Face keys in
   config.json (speed does not depend on the values).  Without a tokenizer.json the converter takes its own GPT-NeoX one:
       PYTHONPATH=vendor/llama.cpp/gguf-py python vendor/llama.cpp/convert_hf_to_gguf.py CHECKPOINT \
         --outtype f16 --outfile P/NAME-f16.gguf
       P/build/bin/llama-quantize P/NAME-f16.gguf P/NAME-Q4_0.gguf Q4_0        and so for Q4_K_S, Q4_K_M, Q8_0
4. The same checkpoint as a bundle (rtn: as fast to run as gptq, and quicker to make):
       quamba-edge pack CHECKPOINT -o P/NAME-w4a8.qedge --recipe w4a8 --method rtn --tokenizer TOKENIZER.json
5. The races that say most: w4a8 against Q4_0, Q4_K_S and Q4_K_M, w8a8 against Q8_0.

llama.cpp's best settings, measured for mamba2-130m on two shared Zen 5 cores with AVX-512 (prefill of 512 / decode,
tokens/s; these are the few runs in which others took at most 5 % of the cores, and equal settings differed by up to 30
%, so small differences mean nothing):

    Q4_0    -ub 512  1216 1251 1286 1391 / 202 216 190 246
            -ub 256  1418 / 244     -ub 128  1400 1246 / 237 211     -ub 32  1188 / 197
    Q4_K_S  -ub 512  1113 1083 / 223 202     -ub 128  1184 / 229     -ub 64  940 / 236
    Q8_0    -ub 512  927 / 162

Q4_0 leads in prefill, Q4_0 and Q4_K_S are level in decode; at mamba2-370m Q4_0 leads in both (387 / 84 against 289 /
72, one run each). Chunks of 128 or 256 are as good as 512 and hold 15 MB less, smaller ones lose: hence the two
SETTINGS. Q4_K_M is no other file than Q4_K_S here, but for the type in its header: none of these models has a tensor
that it treats differently. --repack 0 costs Q4_0 a third of prefill (778 / 172), because the interleaved copy that it
makes at load is what its AVX-512 products read; one thread gives 683 / 157. Nothing gained, within that noise: -fa on
and -ctk q8_0 (no attention here), -lm none (as fast, 50 MB less resident), --poll 0 or 100, an 8-bit embedding, IQ4_NL
(1049 / 182). --pure Q4_0 (4-bit head too, 75 MB instead of 85) decodes at 244.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

# The standard library alone: Linux counts what this process holds into the peak memory of each program it starts.

ROOT = Path(__file__).resolve().parents[2]
NEEDS = "needs --llama-bench PATH and --race NAME BUNDLE GGUF[,GGUF...]; the top of this file says how to make them"
SETTINGS = ("-ub 512", "-ub 128")  # every file runs with each; which is best differs (see above)
COLUMNS = ("decode", "prefill")
QUIET_PCT = 3.0  # of the cores, taken by others: more makes a run rough
ATTEMPTS = 3  # of one run that other programs disturb


@dataclass(frozen=True)
class Ran:
    """What a program printed, the most memory it held, and what others took of the cores meanwhile, in percent."""

    out: str
    peak_rss_bytes: int
    others_pct: float


def main() -> None:
    args = parsed()
    if not args.llama_bench or not args.race:
        print(f"vs_llama_cpp.py {NEEDS}")
        print(json.dumps({"skipped": NEEDS}))
        return
    races = [Race(name, Path(bundle), [Path(g) for g in ggufs.split(",")], args) for name, bundle, ggufs in args.race]
    for number in range(args.rounds):
        for race in races:
            race.round(number)
            print(f"round {number + 1} of {args.rounds}: {race.last()}", flush=True)
    results = [race.result() for race in races]
    print(table(results))
    print(json.dumps({"races": results, "rounds": args.rounds, "threads": args.threads, "prompt_len": args.prompt_len,
                      "gen_len": args.gen_len, "llama_args": args.llama_args or SETTINGS}))  # fmt: skip


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--llama-bench", metavar="PATH", help="the program")
    add("--race", nargs=3, action="append", metavar=("NAME", "BUNDLE", "GGUF[,GGUF...]"), help="who runs against whom")
    add("--rounds", type=int, default=5, help="turns of each (5)")
    add("--repeats", type=int, default=3, help="measurements in a turn (3)")
    add("--threads", type=int, default=2, help="of both (2)")
    add("--prompt-len", type=int, default=512, help="tokens of the prompt (512)")
    add("--gen-len", type=int, default=128, help="tokens decoded (128)")
    add("--backend", default="auto", help="ours (auto)")
    add(
        "--llama-args",
        action="append",
        metavar="WORDS",
        help=f"settings of llama-bench, instead of {SETTINGS}; repeatable",
    )
    add(
        "--quiet-pct",
        type=float,
        default=QUIET_PCT,
        help=f"a run is repeated, up to {ATTEMPTS} times, when others took more ({QUIET_PCT:g})",
    )
    return parser.parse_args()


class Race:
    """One bundle against one or more GGUF files of the same shape."""

    def __init__(self, name: str, bundle: Path, ggufs: list[Path], args: argparse.Namespace):
        self.name, self.bundle, self.args = name, bundle, args
        self.ours: list[dict] = []
        self.rivals = {f"{g.name} {words}".strip(): (g, words) for g in ggufs for words in args.llama_args or SETTINGS}
        self.theirs: dict[str, list[dict]] = {rival: [] for rival in self.rivals}

    def round(self, number: int) -> None:
        """Everybody once; the order turns, so that a machine that grows faster or slower favours nobody."""
        turns = [lambda: self.ours.append(self._run_ours()), *(lambda r=r: self._run_rival(r) for r in self.rivals)]
        for turn in turns if number % 2 == 0 else turns[::-1]:
            turn()

    def last(self) -> str:
        told = [("ours", self.ours[-1]), *((n, runs[-1]) for n, runs in self.theirs.items())]
        each = (f"{n} {r['decode']:.1f} / {r['prefill']:.1f} (others {r['others_pct']:.0f} %)" for n, r in told)
        return f"{self.name}, decode / prefill tokens/s: {', '.join(each)}"

    def _run_ours(self) -> dict:
        a = self.args
        words = f"bench --json --prompt-len {a.prompt_len} --gen-len {a.gen_len} --repeats {a.repeats} --backend {a.backend}"
        threads = ["--threads", str(a.threads)] if a.backend != "reference" else []
        ran = quietly([sys.executable, "-m", "quamba_edge", *words.split(), str(self.bundle), *threads], a.quiet_pct)
        told = json.loads(ran.out.splitlines()[-1])
        # Not rusage: after the peak is noted, the command measures the read bandwidth in a block of its own.
        kept = ("peak_rss_bytes", "backend", "instruction_set", "roofline_pct", "gbps", "read_bandwidth", "digest")
        speeds = {"decode": told["decode_tps"], "prefill": told["prefill_tps"]}
        return {**speeds, **{k: told[k] for k in kept}, "others_pct": ran.others_pct}

    def _run_rival(self, rival: str) -> None:
        a, (gguf, more) = self.args, self.rivals[rival]
        words = f"-o json -t {a.threads} -p {a.prompt_len} -n {a.gen_len} -r {a.repeats}"
        ran = quietly([a.llama_bench, "-m", str(gguf), *words.split(), *shlex.split(more)], a.quiet_pct)
        told = {"decode" if t["n_gen"] else "prefill": t for t in json.loads(ran.out)}
        speeds = {column: median(told[column]["samples_ts"]) for column in COLUMNS}
        build = {"build": told["decode"]["build_commit"], "type": told["decode"]["model_type"]}
        memory = {"peak_rss_bytes": ran.peak_rss_bytes, "others_pct": ran.others_pct}
        self.theirs[rival].append({**speeds, **memory, **build})

    def result(self) -> dict:
        """Of every column: both speeds, against which file, and the ratio round by round."""
        out: dict = {"name": self.name, "bundle": self.bundle.name, "bytes": self.bundle.stat().st_size}
        out["peak_rss_bytes"] = max(r["peak_rss_bytes"] for r in self.ours)
        out |= {k: self.ours[-1][k] for k in ("backend", "instruction_set", "digest")}
        out["roofline_pct"] = spread([r["roofline_pct"] for r in self.ours]) if self.ours[0]["roofline_pct"] else None
        out["others_pct"] = max(r["others_pct"] for runs in (self.ours, *self.theirs.values()) for r in runs)
        for column in COLUMNS:
            # The rival whose median is best, not the best rival of each round: that would be a maximum over noise.
            best = max(self.theirs, key=lambda n: median(r[column] for r in self.theirs[n]))
            ours, theirs = [r[column] for r in self.ours], [r[column] for r in self.theirs[best]]
            ratio = [a / b for a, b in zip(ours, theirs, strict=True)]
            out[column] = {"ours": spread(ours), "llama": spread(theirs), "rival": best, "ratio": spread(ratio)}
        out["rivals"] = {
            rival: {
                "bytes": self.rivals[rival][0].stat().st_size,
                "peak_rss_bytes": max(r["peak_rss_bytes"] for r in runs),
                "build": runs[-1]["build"],
                **{column: spread([r[column] for r in runs]) for column in COLUMNS},
            }
            for rival, runs in self.theirs.items()
        }
        return out


def quietly(command: list[str], quiet_pct: float) -> Ran:
    """The run of a program, again while others take too much of the cores; of all attempts the least disturbed."""
    tried: list[Ran] = []
    while len(tried) < ATTEMPTS and (not tried or tried[-1].others_pct > quiet_pct):
        tried.append(ran(command))
    return min(tried, key=lambda r: r.others_pct)


def ran(command: list[str]) -> Ran:
    """Run a program to its end; its complaint and the end of this script when it fails."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    before, began = busy_seconds(), time.monotonic()
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment)
        assert process.stdout is not None
        out = process.stdout.read()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        wall, others = time.monotonic() - began, busy_seconds() - before - used.ru_utime - used.ru_stime
        if process.returncode:
            errors.seek(0)
            sys.exit(f"{shlex.join(command)} failed with {process.returncode}:\n{errors.read()[-2000:]}")
    peak = used.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return Ran(out, peak, max(0.0, 100 * others / (wall * (os.cpu_count() or 1))))


def busy_seconds() -> float:
    """Seconds that all cores have worked since the machine started, for anyone, other guests of the host included."""
    try:
        words = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    except OSError:
        return 0.0
    user, nice, system, _, _, irq, softirq, steal = map(int, words[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def spread(values: list[float]) -> dict[str, float]:
    return {"median": median(values), "min": min(values), "max": max(values)}


def table(results: list[dict]) -> str:
    """Tokens a second as medians over the rounds; the ratio of each round as median and range."""
    lines = [f"{'race':18s} {'column':8s} {'ours':>9s} {'llama.cpp':>9s}  {'ratio (range over rounds)':26s} against"]
    for r in results:
        for column in COLUMNS:
            c, ratio = r[column], r[column]["ratio"]
            across = f"{ratio['median']:.2f} ({ratio['min']:.2f} .. {ratio['max']:.2f})"
            against, ours = c["llama"]["median"], c["ours"]["median"]
            lines.append(f"{r['name']:18s} {column:8s} {ours:9.1f} {against:9.1f}  {across:26s} {c['rival']}")
    lines.append(f"{'race':18s} {'file':40s} {'MB':>7s} {'peak resident MB':>17s}")
    for r in results:
        rows = [(r["bundle"], r["bytes"], r["peak_rss_bytes"])]
        rows += [(name, g["bytes"], g["peak_rss_bytes"]) for name, g in r["rivals"].items()]
        lines += [f"{r['name']:18s} {name:40s} {size / 1e6:7.1f} {peak / 1e6:17.1f}" for name, size, peak in rows]
    noisy = [f"{r['name']} {r['others_pct']:.0f} %" for r in results if r["others_pct"] > QUIET_PCT]
    if noisy:
        lines.append(f"other programs took part of the cores, so these are rough: {', '.join(noisy)}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
