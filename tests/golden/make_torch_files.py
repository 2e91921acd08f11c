"""Makes tests/golden/torch_files: what torch.save writes, and the numbers in it.

  python tests/golden/make_torch_files.py        (an environment with torch and safetensors; written with torch 2.13.0)

zip.bin and legacy.bin hold the same state dict in torch.save's two formats, protocol_4.bin in a newer pickle, and
expected.safetensors what it says.
"""

import collections
import pathlib

import torch
from safetensors.torch import save_file

ROOT = pathlib.Path(__file__).parent / "torch_files"


def state_dict() -> collections.OrderedDict:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(6, 5, generator=generator)
    tied = torch.randn(4, 3, generator=generator)
    tensors = collections.OrderedDict(
        contiguous=base.clone(),
        transposed=base.clone().T,
        first_rows=base[:2],
        column=base[:, 3],
        every_other=base[1::2, ::2],
        expanded=base[:1, :3].expand(4, 3),
        one_number=torch.tensor(0.5).expand(2, 6),
        tied=tied,
        tied_again=tied,
        parameter=torch.nn.Parameter(torch.randn(3, generator=generator)),
        float64=base.double(),
        float16=base.half(),
        bfloat16=base.bfloat16(),
        int64=torch.arange(-3, 4).expand(1, -1),
        uint8=torch.arange(5, dtype=torch.uint8),
        bool=base[0] > 0,
        scalar=torch.tensor(2.5),
        empty=torch.zeros(0, 3),
        not_finite=torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0]),
    )
    tensors._metadata = collections.OrderedDict({"": {"version": 1}})  # as a module's state_dict() has
    return tensors


def main() -> None:
    ROOT.mkdir(exist_ok=True)
    tensors = state_dict()
    torch.save(tensors, ROOT / "zip.bin")
    torch.save(tensors, ROOT / "legacy.bin", _use_new_zipfile_serialization=False)
    torch.save(tensors, ROOT / "protocol_4.bin", pickle_protocol=4)
    save_file({k: v.detach().clone().contiguous() for k, v in tensors.items()}, ROOT / "expected.safetensors")


if __name__ == "__main__":
    main()
