"""What `plan` predicts, as text: one model on one machine, or a table of all published ones."""

from __future__ import annotations

from quamba_edge.apps.plan import Plan


def text(p: Plan) -> str:
    """One model on one machine."""
    lines = [
        f"{p.target}, recipe {p.recipe}, {p.parameters / 1e6:.0f} M parameters, a file of {p.file_bytes / 1e6:.1f} MB, on {p.device}",
        "",
        f"{'memory':18s} {'MB':>9s}",
    ]
    lines += [f"{part.name:18s} {part.bytes / 1e6:9.1f}  {part.origin}" for part in p.memory]
    verdict = (
        f"fits, {p.spare_bytes / 1e6:.0f} to spare" if p.fits else f"does not fit: {-p.spare_bytes / 1e6:.0f} too much"
    )
    lines += [f"{'together':18s} {p.need_bytes / 1e6:9.1f}  of {p.room_bytes / 1e6:.1f}: {verdict}", "", *_speeds(p)]
    if p.recipes:
        lines += ["", f"{'recipe':18s} {'MB':>9s} {'decode t/s':>11s}"]
        for c in p.recipes:
            told = "fits" if c.spare_bytes >= 0 else f"{-c.spare_bytes / 1e6:.0f} MB too much"
            lines.append(f"{c.recipe:18s} {c.need_bytes / 1e6:9.1f} {c.decode_tps:11.1f}  {told}")
        best = f"the most precise that fits: {p.best}" if p.best else "no shipped recipe fits: take a smaller model"
        lines.append(best)
    return "\n".join([*lines, "", *p.notes])


def _speeds(p: Plan) -> list[str]:
    lines = [f"{'mode':12s} {'GB/s':>6s} {'prefill t/s':>12s} {'decode t/s':>11s} {'J/token':>9s}"]
    for s in p.speeds:
        joules = f"<= {s.decode_j_at_most:.3f}" if s.decode_j_at_most else "-"
        lines.append(f"{s.mode:12s} {s.bandwidth_gbps:6.1f} {s.prefill_tps:12.1f} {s.decode_tps:11.1f} {joules:>9s}")
    return lines


def table(plans: list[Plan]) -> str:
    """All published models on one machine, a row for each mode."""
    lines = [
        f"{plans[0].device}, recipe {plans[0].recipe}, {plans[0].sessions} session(s), state {plans[0].state_dtype}"
    ]
    lines.append(
        f"{'model':14s} {'MB':>8s} {'spare MB':>9s} {'mode':12s} {'prefill t/s':>12s} {'decode t/s':>11s} {'J/token':>9s}"
    )
    for p in plans:
        for i, s in enumerate(p.speeds):
            head = f"{p.target:14s} {p.need_bytes / 1e6:8.0f} {p.spare_bytes / 1e6:9.0f}" if i == 0 else " " * 33
            joules = f"<= {s.decode_j_at_most:.3f}" if s.decode_j_at_most else "-"
            lines.append(f"{head} {s.mode:12s} {s.prefill_tps:12.1f} {s.decode_tps:11.1f} {joules:>9s}")
    return "\n".join([*lines, *plans[0].notes])
