"""Figures from measured results: the paper's Figure 1, time and memory of one attention layer against the sequence's
length; accuracy against the distance of two facts; bits per character against compute, and against context.

    python -m benchmarks.plot benchmarks/results/figure_cpu.json docs/figure_cpu.png
    python -m benchmarks.plot benchmarks/results/gpu_nvidia_h200.json docs/figure_h200.png --work=both
    python -m benchmarks.plot benchmarks/results/two_facts_cpu.json docs/two_facts.png
    python -m benchmarks.plot benchmarks/results/compute_cpu.json docs/compute_cpu.png
    python -m benchmarks.plot benchmarks/results/context_cpu.json docs/context_cpu.png

Reads what `benchmarks/attention.py figure` and `python -m benchmarks.gpu`, `two_facts`, `compute` and `context` write.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

# The names of sides in the results, as the figure calls them, in the order of the legend.
LABELS = {
    "sdpa": "full attention (PyTorch SDPA)",
    "full_cudnn": "full attention (cuDNN)",
    "huggingface": "chunks (Hugging Face)",
    "local": "chunks (local-attention)",
    "cudnn_window": "sliding window (cuDNN)",
    "flash_attention": "sliding window (FlashAttention)",
    "jla": "sliding window (jax-linear-attention)",
    "tokamax": "sliding window (tokamax)",
    "flex": "sliding window (FlexAttention)",
    "xla": "ours, XLA",
    "ours": "ours, XLA",
    "pallas_triton": "ours, Triton kernels",
    "pallas_mosaic_gpu": "ours, Hopper kernels",
    "pallas_mosaic_mma": "ours, Mosaic kernels",
}


def series(results: dict[str, Any], work: str) -> dict[str, list[tuple[int, float, float]]]:
    """side -> (length, milliseconds, bytes) by length: both sides, no dilation, each at its best setting."""
    best: dict[str, dict[int, tuple[float, float]]] = defaultdict(dict)
    for row in results.get("speed") or results["measured"]:
        plain = not row.get("causal") and row.get("dilation", 1) == 1 and row.get("dtype", "bfloat16") == "bfloat16"
        plain &= row.get("head_dim", 64) == 64 and not row.get("value_dim") and not row.get("shared_dim")
        if row["work"] != work or not plain or "milliseconds" not in row or row["side"] not in LABELS:
            continue
        found = row["milliseconds"], row.get("bytes", row.get("peak_bytes"))
        lengths = best[row["side"]]
        lengths[row["length"]] = min(found, lengths.get(row["length"], found))
    return {side: [(n, *best[side][n]) for n in sorted(best[side])] for side in LABELS if side in best}


def draw_speed(plt: Any, results: dict[str, Any], work: str) -> Any:
    """The figure of time and memory."""
    found = series(results, work)
    if not found:
        raise ValueError(f"the results have no times for {work!r}")
    figure, (time, memory) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for side, points in found.items():
        lengths, milliseconds, peak = zip(*points, strict=True)
        style: dict[str, Any] = {"linewidth": 2.5 if LABELS[side].startswith("ours") else 1.2, "marker": "o"}
        style |= {"linestyle": "--" if LABELS[side].startswith("full") else "-", "markersize": 4, "label": LABELS[side]}
        time.plot(lengths, milliseconds, **style)
        memory.plot(lengths, [x / 2**20 for x in peak], **style)
    for axes, label in ((time, "milliseconds"), (memory, "MiB beside the inputs")):
        axes.set(xscale="log", yscale="log", xlabel="tokens", ylabel=label)
        axes.set_xscale("log", base=2)
        axes.grid(True, which="major", alpha=0.3)
    time.legend(fontsize=8)
    device = results.get("device") or f"{results['cpu']}, {results['threads']} threads"
    figure.suptitle(f"One layer, {'forward' if work == 'forward' else 'forward and backward'}: {device}", fontsize=11)
    return figure


def draw_accuracy(plt: Any, results: dict[str, Any]) -> Any:
    """The figure of accuracy against distance."""
    labels = {
        "longformer": "Longformer, <s> global",
        "windows": "windows alone",
        "cut": f"Longformer, cut at {results['cut']} tokens",
    }
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for row, style in zip(results["measured"], ("-", "--", "-."), strict=False):
        distances = sorted(map(int, row["accuracy"]))
        accuracy = [100 * row["accuracy"][str(distance)] for distance in distances]
        axes.plot(distances, accuracy, style, marker="o", markersize=4, label=labels[row["model"]])
    for reach in (results["reach"], results["cut"]):
        axes.axvline(reach, color="grey", linewidth=0.8, linestyle=":")
    axes.set_xscale("log", base=2)
    distances = sorted({int(distance) for row in results["measured"] for distance in row["accuracy"]})
    axes.set_xticks(distances, [f"{distance:,}" for distance in distances])
    axes.set(xlabel="tokens between the two facts", ylabel="accuracy, %", ylim=(40, 103))
    axes.grid(True, which="major", alpha=0.3)
    axes.legend(fontsize=8, loc="lower left")
    return figure


def draw_compute(plt: Any, results: dict[str, Any]) -> Any:
    """The figure of bits per character against the FLOPs of training, measured and extrapolated."""
    figure, axes = plt.subplots(figsize=(7.5, 4.2), layout="constrained")
    for width in sorted({row["width"] for row in results["measured"]}):
        rows = sorted((row for row in results["measured"] if row["width"] == width), key=lambda row: row["flops"])
        label = f"{rows[0]['parameters'] / 1e6:.1f}M parameters, measured"
        axes.plot([row["flops"] for row in rows], [row["bpc"] for row in rows], "o-", markersize=4, label=label)
    for row, marker in zip(results["extrapolated"], "sD^", strict=False):
        bounds = [[row["bpc"] - row["least"]], [row["most"] - row["bpc"]]]
        style: dict[str, Any] = {"fmt": marker, "mfc": "none", "capsize": 3, "markersize": 6}
        axes.errorbar(row["flops"], row["bpc"], yerr=bounds, label=f"{row['name']}, expected", **style)
    axes.set(xscale="log", xlabel="FLOPs of training", ylabel="bits per character")
    axes.grid(True, which="major", alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def draw_context(plt: Any, results: dict[str, Any]) -> Any:
    """The figure of bits per character against the length of the sequence that they are at the end of."""
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    lengths = [row["length"] for row in results["context"]]
    axes.plot(lengths, [row["bpc"] for row in results["context"]], "o-", markersize=4)
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
    axes.set(xlabel="characters of the sequence, of which the last 512 are scored", ylabel="bits per character")
    axes.grid(True, which="major", alpha=0.3)
    return figure


def draw(results: dict[str, Any], work: str, path: Path) -> None:
    """Writes the figure that the results are for."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    drawn = {"cut": draw_accuracy, "extrapolated": draw_compute, "context": draw_context}
    kind = next((kind for kind in drawn if kind in results), None)
    figure = draw_speed(plt, results, work) if kind is None else drawn[kind](plt, results)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="JSON of a benchmark")
    parser.add_argument("picture", type=Path, help="PNG or SVG to write")
    parser.add_argument("--work", choices=("forward", "both"), default="forward")
    options = parser.parse_args()
    if not options.results.is_file():
        parser.error(f"{options.results} is not a file")
    draw(json.loads(options.results.read_text()), options.work, options.picture)


if __name__ == "__main__":
    main()
