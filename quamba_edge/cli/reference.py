"""docs/cli.md, written from the table of verbs."""

from __future__ import annotations

import textwrap

from quamba_edge.cli.command import EXIT_CODES, VERBS


def reference_markdown() -> str:
    """docs/cli.md: the table in words, the same from every Python (argparse's own help changes between versions)."""
    out = [
        "# Command line",
        "",
        "Written from the parser by `make docs`; a test compares.",
        "",
        "Every command takes `--json`, with which the last line of stdout is one JSON object (on failure",
        '`{"error": ..., "exit_code": ...}`), and `-v`, with which an error shows where it happened. Errors are one line on stderr.',
        "",
        "| exit code | meaning |",
        "| --- | --- |",
        *(f"| {code} | {meaning} |" for code, meaning in EXIT_CODES),
    ]
    for verb in VERBS:
        usage = " ".join([f"quamba-edge {verb.name}", *(f.usage() for f in verb.flags)])
        wrapped = textwrap.wrap(usage, 100, subsequent_indent="    ", break_on_hyphens=False, break_long_words=False)
        out += ["", f"## {verb.name}", "", verb.summary, "", "```", *wrapped, "```"]
        if verb.flags:
            out += ["", "| argument | meaning |", "| --- | --- |"]
        for item in verb.flags:
            names = ", ".join(
                f"`{n} {item.value}`" if item.value and not item.positional else f"`{n}`" for n in item.names
            )
            out.append(f"| {names} | {item.help} |")
    return "\n".join(out) + "\n"
