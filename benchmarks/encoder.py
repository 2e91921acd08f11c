"""The base-size encoder on two CPU threads, float32, B = 1: this project beside transformers, call by call.

    python benchmarks/encoder.py peers --torch-python=PATH    4096 tokens; takes some 20 GB of memory and half an hour
    python benchmarks/encoder.py short --torch-python=PATH    512 tokens, beside full attention
    python benchmarks/encoder.py costs                        what 16 and 256 global tokens cost

PATH is the Python of an environment with torch and transformers; without it those peers are named and skipped. How it
is measured: side_by_side.py. "both" is forward and backward. Prints a table and writes results/encoder_PART_cpu.json.
"""

from side_by_side import Measured, Part, Summaries, beside_peers, ratio, run

COSTS = {"ours_global16": "16 global tokens", "ours_global256": "256 global tokens", "ours_remat": "remat"}
BOTH = ("forward", "both")

PARTS = {
    "peers": Part(
        sides={"ours": (4096, 4096), "ours_remat": (0, 4096), "huggingface": (4096, 4096)},
        works=BOTH, lengths=(4096,), rounds=3, peak_only=("ours_remat",), settings_apart=True,
    ),
    "short": Part(
        sides={"ours": (512, 512), "ours_full": (512, 512), "huggingface_roberta": (512, 512)},
        works=BOTH, lengths=(512,), rounds=9,
    ),
    "costs": Part(
        sides={"ours": (4096, 4096), "ours_global16": (4096, 0), "ours_global256": (4096, 0), "ours_remat": (0, 4096)},
        works=BOTH, lengths=(4096,), rounds=3, settings_apart=True,
    ),
}  # fmt: skip


def costs(times: Measured, peaks: Measured) -> list[dict]:
    """Rows of {what, default, best}: what is added, with / without."""
    return [
        {"what": f"{what}, {case[0]} at {case[1]}: with {COSTS[name]} / without"}
        | ratio(measured, (case, name), (case, "ours"))
        for what, measured in (("time", times), ("peak memory", peaks))
        for case, name in sorted({(case, name) for case, name, _ in measured if name in COSTS})
    ]


def peers(times: Measured, peaks: Measured) -> list[dict]:
    """Beside the peer, and its memory beside this project's with remat."""
    rows = beside_peers(times, peaks)
    for case in sorted({case for case, name, _ in peaks if name == "ours_remat"}):
        if (case, "huggingface", "default") in peaks:
            found = ratio(peaks, (case, "huggingface"), (case, "ours_remat"))
            rows.append({"what": f"peak memory, {case[0]} at {case[1]}: huggingface / ours_remat"} | found)
    return rows


SUMMARIES: Summaries = {"peers": peers, "short": beside_peers, "costs": costs}


if __name__ == "__main__":
    run(
        PARTS,
        SUMMARIES,
        description=str(__doc__),
        script="encoder",
        torch_peers=("huggingface", "huggingface_roberta"),
        subject="base size (12 layers, 768 wide, 12 heads), window 512, B=1, float32, dropout off",
        output_name="encoder_{}_cpu.json",
        quick=(256,),
    )
