"""What the results say, on one screen."""

import math
from collections import Counter
from collections.abc import Sequence

from benchmarks.gpu import speed
from benchmarks.gpu.results import OK, SKIPPED, Record, Results

WIDTH = 118
FAILURES = 6  # that are told one by one
OUTCOMES = (OK, "wrong", "error", "died", "hung", SKIPPED)


def summary(results: Results) -> str:
    """Correctness, times at the headline's length and at others, training, the first failures."""
    parts = (_device(results), _correctness(results), _speed(results), _lengths(results), _training(results))
    lines = [line for part in (*parts, _failures(results)) for line in part]
    return "\n".join(line[:WIDTH].rstrip() for line in lines)


def _device(results: Results) -> list[str]:
    facts, (rates, *_) = results.values, results["rates"] or [{}]
    line = f"{facts.get('device', 'no device')}, jax {facts.get('versions', {}).get('jax')}"
    if rates.get("driver, clock, power", "unknown") != "unknown":
        line += f", driver, clock, power: {rates['driver, clock, power']}"
    if "flops_per_second" in rates:
        line += (
            f"; matmul {rates['flops_per_second'] / 1e12:.3g} TFLOP/s, copy {rates['bytes_per_second'] / 1e12:.3g} TB/s"
        )
    return [line]


def _correctness(results: Results) -> list[str]:
    counts: dict[str, Counter] = {}
    skipped: dict[str, str] = {}
    for record in [*results["correctness"], *results["same_bits"]]:
        counts.setdefault(record["implementation"], Counter())[record["outcome"]] += 1
        if record["outcome"] == SKIPPED:
            skipped.setdefault(record["implementation"], record["reason"])
    rows = [["correctness", *OUTCOMES]]
    for name, found in counts.items():
        rows.append([name, *(str(found[outcome] or "") for outcome in OUTCOMES), skipped.get(name, "")])
    return _table(rows) if counts else []


def _speed(results: Results) -> list[str]:
    """Milliseconds, and of the forward and backward the share of a large product's rate."""
    found = _of_head_dim_64(results)
    lengths = {r["length"] for r in found}
    length = speed.HEADLINE if speed.HEADLINE in lengths else max(lengths, default=0)
    found = [r for r in found if r["dilation"] == 1 and r["length"] == length]
    columns = [(causal, work) for causal in (False, True) for work in speed.WORKS]
    rates, *_ = results["rates"] or [{}]
    rows = [[f"ms, T={length}", "forward", "fwd+bwd", "matmul", "causal fwd", "fwd+bwd", "matmul"]]
    for side in dict.fromkeys(r["side"] for r in found):
        cells = []
        for causal, work in columns:
            record = next((r for r in found if (r["side"], r["causal"], r["work"]) == (side, causal, work)), {})
            cells.append(_milliseconds(record))
            if work == "both":
                share = record.get("flops_per_second", 0) / rates.get("flops_per_second", math.inf)
                cells.append(f"{share:.0%}" if share else "")
        reasons = [r["reason"] for r in found if r["side"] == side and "reason" in r]
        rows.append([side, *cells, *reasons[:1]])
    return _table(rows) if len(rows) > 1 else []


def _of_head_dim_64(results: Results) -> list[Record]:
    usual = ("bfloat16", 64, None, 0)
    return [r for r in results["speed"] if (r["dtype"], r["head_dim"], r["value_dim"], r.get("shared_dim", 0)) == usual]


def _lengths(results: Results) -> list[str]:
    """Forward and backward, both sides."""
    found = [r for r in _of_head_dim_64(results) if not r["causal"] and r["dilation"] == 1 and r["work"] == "both"]
    lengths = sorted({r["length"] for r in found})
    if len(lengths) < 2:
        return []
    sides = list(dict.fromkeys(r["side"] for r in found if r["outcome"] == OK))
    at = {(r["side"], r["length"]): r for r in found}
    rows = [["fwd+bwd, T=", *(f"{n // 1024}k" for n in lengths)]]
    return _table(rows + [[side, *(_milliseconds(at.get((side, n), {})) for n in lengths)] for side in sides])


def _training(results: Results) -> list[str]:
    rows = [["training", "phase", "ms a step", "chars/s", "MFU", "GB", "attention"]]
    for r in results["training"]:
        key = {name: r[name] for name in ("config", "implementation", "variant", "phase", "every")}
        attention = (results.find("attention", **key) or {}).get("milliseconds")
        told = [r["implementation"], r["variant"], "" if r["remat"] else "no remat"]
        told += [f"1/{r['every']} of layers"] if r["every"] > 1 else []
        name = [" ".join(filter(None, told)), str(r["phase"])]
        if r["outcome"] == OK:
            figures = [f"{r['milliseconds']:.0f}", f"{r['characters_per_second']:.0f}", _share(r["mfu"])]
            rows.append(
                [*name, *figures, f"{r['bytes'] / 1e9:.1f}", _share(attention and attention / r["milliseconds"])]
            )
        else:
            rows.append([*name, r["outcome"], r.get("reason", "")])
    return _table(rows) if len(rows) > 1 else []


def _failures(results: Results) -> list[str]:
    parts = "correctness", "same_bits", "speed", "training", "attention", "profile", "memcheck", "sweep"
    failed = [(part, r) for part in parts for r in results[part] if r.get("outcome", OK) not in (OK, SKIPPED)]
    lines = [f"FAILED {_name(part, r)}: {r['outcome']}, {r.get('reason', '')}" for part, r in failed[:FAILURES]]
    return lines + [f"... and {len(failed) - FAILURES} more"] * (len(failed) > FAILURES)


def _name(part: str, record: Record) -> str:
    key = ("implementation", "side", "case", "dtype", "work", "length", "causal", "variant", "phase")
    return " ".join([part, *(str(record[name]) for name in key if name in record)])


def _milliseconds(record: Record) -> str:
    outcome = record.get("outcome", "")
    return f"{record['milliseconds']:.3f}" if outcome == OK else "-" if outcome == SKIPPED else outcome


def _share(x: float | None) -> str:
    return "" if x is None else f"{x:.0%}"


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """The first column to the left, the others to the right, what is beyond the head as it is."""
    head = len(rows[0])
    widths = [max(len(row[i]) for row in rows if i < len(row)) for i in range(head)]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(x.rjust(w) for x, w in zip(row[1:head], widths[1:], strict=False))]
        lines.append("  ".join([*cells, *row[head:]]))
    return ["", *lines]
