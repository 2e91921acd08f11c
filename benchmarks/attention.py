"""One layer of sliding-window attention on two CPU threads: this project beside its peers, call by call.

    python benchmarks/attention.py peers --torch-python=PATH      beside its peers; takes some 20 GB of memory
    python benchmarks/attention.py costs                          what length, dilation and global keys cost
    python benchmarks/attention.py figure --torch-python=PATH     the forward at more lengths, for benchmarks/plot.py

PATH is the Python of an environment with torch, transformers and local-attention; without it those peers are named and
skipped. How it is measured: side_by_side.py. Prints a table and writes results/PART_cpu.json.
"""

from side_by_side import Measured, Part, Summaries, beside_peers, ratio, run

TORCH_PEERS = ("huggingface", "flex", "local", "sdpa")
COSTS = {"ours_dilated": "dilation 4 on 2 of 12 heads", "ours_global": "16 global keys"}

PARTS = {
    "peers": Part(
        sides={
            "ours": (32768, 32768), "jax": (4096, 4096), "huggingface": (32768, 4096), "flex": (32768, 0),
            "local": (4096, 4096), "sdpa": (4096, 4096),
        },
        works=("forward", "both"), lengths=(4096, 32768), rounds=11,
    ),
    "costs": Part(
        sides=dict.fromkeys(("ours", *COSTS), (32768, 32768)),
        works=("forward", "both"), lengths=(4096, 32768), rounds=15, together=True,
    ),
    "figure": Part(
        sides={
            "ours": (32768, 0), "huggingface": (32768, 0), "flex": (32768, 0), "local": (16384, 0), "sdpa": (16384, 0)
        },
        works=("forward",), lengths=(1024, 2048, 4096, 8192, 16384, 32768), rounds=5,
    ),
}  # fmt: skip


def costs(times: Measured, peaks: Measured) -> list[dict]:
    """Rows of {what, default, best}: what a token costs in a longer sequence, and what is added costs."""
    rows = []
    cases = sorted({case for case, _, _ in times})
    for work in ("forward", "both"):
        (_, short), (_, long) = [case for case in cases if case[0] == work]
        for what, measured in (("time", times), ("peak memory", peaks)):
            found = ratio(measured, ((work, long), "ours"), ((work, short), "ours"))
            per_token = {setting: value * short / long for setting, value in found.items()}
            rows.append({"what": f"{what} per token, {work}: at {long} / at {short}"} | per_token)
    for name, what in COSTS.items():
        for case in cases:
            found = ratio(times, (case, name), (case, "ours"))
            rows.append({"what": f"time, {case[0]} at {case[1]}: with {what} / without"} | found)
    return rows


SUMMARIES: Summaries = {"peers": beside_peers, "costs": costs, "figure": lambda times, peaks: []}


if __name__ == "__main__":
    run(
        PARTS,
        SUMMARIES,
        description=str(__doc__),
        script="attention",
        torch_peers=TORCH_PEERS,
        subject="B=1, H=12, D=64, 256 keys a side, float32",
        output_name="{}_cpu.json",
        quick=(512, 1024),
    )
