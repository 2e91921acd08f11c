"""The JSON file of one device: written after every figure, so that a run that was cut short goes on where it stood."""

import importlib.metadata
import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "torch", "transformers", "triton", "tokamax", "flash-attn")
Record = dict[str, Any]


class Results:
    """Records of several parts, each record known by the fields that say what was measured."""

    def __init__(self, path: Path, *, afresh: bool = False) -> None:
        self.path = path
        self.values: dict[str, Any] = {} if afresh or not path.is_file() else json.loads(path.read_text())
        device = jax.devices()[0]
        self.values |= {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "device": device.device_kind,
            "platform": device.platform,
            "versions": {name: version for name in PACKAGES if (version := _version(name))},
        }

    def __getitem__(self, part: str) -> list[Record]:
        return self.values.setdefault(part, [])

    def has(self, part: str, **key: Any) -> bool:
        return any(key.items() <= record.items() for record in self[part])

    def add(self, part: str, record: Record, **key: Any) -> None:
        """Puts the record in, in place of an older one with this key."""
        self.values[part] = [old for old in self[part] if not key.items() <= old.items()] + [key | record]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(self.values, indent=1) + "\n")
        partial.replace(self.path)


def default_path(folder: Path) -> Path:
    """results/gpu_DEVICE.json."""
    return folder / f"gpu_{re.sub(r'\W+', '_', jax.devices()[0].device_kind.lower())}.json"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
