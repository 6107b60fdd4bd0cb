"""A plan in words: what the numbers of `Plan.as_dict()` are, and what to do about them."""

from collections.abc import Mapping
from typing import Any


def printed(plan: Mapping[str, Any]) -> str:
    """A table of the balance, a line on the traffic, a line of advice."""
    often = f"staggered over {plan['interval']} steps" if plan["staggered"] else f"every {plan['interval']} steps"
    root = max(plan["largest_root"], 1) ** 3
    rows = [[f"work in roots of n = {plan['largest_root']}", "busiest rank", "mean rank", "ratio", "ratio at best"]]
    for name, key in (("at a step" if plan["staggered"] else "at a refresh", "at_a_step"), ("in an interval", "over_interval")):
        balance = plan[key]
        work = (f"{balance[of] / root:.2f}" for of in ("busiest", "mean"))
        rows.append([name, *work, f"{balance['ratio']:.3f}", f"{balance['best_ratio']:.3f}"])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    head = f"{plan['ranks']} ranks, {plan['units']} units of root work, {often}"
    return "\n".join([head, *table, _traffic(plan), *_advice(plan), f"digest {plan['digest'][:16]}"])


def _traffic(plan: Mapping[str, Any]) -> str:
    share = plan["bytes_per_step"] / plan["update_bytes"] if plan["update_bytes"] else 0.0
    return (
        f"{_bytes(plan['root_bytes'])} of roots an interval; {_bytes(plan['bytes_per_step'])} a step arrive at each rank, "
        f"{100 * share:.2f} % of gathering every update"
    )


def _advice(plan: Mapping[str, Any]) -> list[str]:
    found = []
    worst, shorter = plan["at_a_step"]["busiest"], plan["recommended_interval"]
    if not plan["staggered"] and worst > 1.05 * plan["staggered_at_best"]:
        found.append(
            f"staggered=True would bring the worst step down to {plan['staggered_at_best'] / worst:.3f} of this at best"
        )
    if shorter < plan["interval"]:
        found.append(
            f"an interval of {shorter} is free in work, no step has more of it than now; "
            f"{_bytes(plan['recommended_bytes_per_step'])} a step would arrive"
        )
    if worst and worst <= plan["largest_root"] ** 3:
        found.append("no step takes longer than one root: only a smaller max_preconditioner_dim shortens the worst one")
    if plan["uneven_refreshes"]:
        found.append(
            f"at most {plan['units_at_a_step']} units are due at a step, too few for equal segments: up to "
            f"{_bytes(plan['bytes_sent_at_a_step'])} leave a rank, less in process groups of fewer ranks"
        )
    return found


def _bytes(size: float) -> str:
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.4g} {unit}"
        size /= 1000
    return f"{size:.4g} GB"
