"""The JSON file of one device: written after every figure, so that a run that was cut short goes on where it stood."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

Record = dict[str, Any]
OK, SKIPPED = "ok", "skipped"  # outcomes of a task that is done; all others are failures


class Results:
    """Records of several parts, each record known by the fields that say what was measured, its key."""

    def __init__(self, path: Path, *, afresh: bool = False) -> None:
        self.path = path
        self.values: dict[str, Any] = {} if afresh or not path.is_file() else json.loads(path.read_text())

    def __getitem__(self, part: str) -> list[Record]:
        return self.values.setdefault(part, [])

    def find(self, part: str, **key: Any) -> Record | None:
        return next((record for record in self[part] if key.items() <= record.items()), None)

    def has(self, part: str, **key: Any) -> bool:
        return self.find(part, **key) is not None

    def add(self, part: str, record: Record, **key: Any) -> None:
        """Puts the record in, in place of an older one with this key."""
        self.values[part] = [old for old in self[part] if not key.items() <= old.items()] + [key | record]
        self.write()

    def forget(self, is_outdated: Callable[[str, Record], bool]) -> int:
        """Drops records by their part and content; returns how many."""
        count = 0
        for part, records in self.values.items():
            if isinstance(records, list):
                self.values[part] = [record for record in records if not is_outdated(part, record)]
                count += len(records) - len(self.values[part])
        return count

    def forget_failures(self) -> None:
        """Drops what neither succeeded nor was left out, and what was not installed, so that it is tried again."""
        done = OK, SKIPPED
        self.forget(
            lambda _, record: (
                record.get("outcome", OK) not in done or record.get("reason", "").startswith("not installed")
            )
        )

    def write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(self.values, indent=1) + "\n")
        partial.replace(self.path)


def default_path(folder: Path, device: str) -> Path:
    """results/gpu_DEVICE.json."""
    return folder / f"gpu_{re.sub(r'\W+', '_', device.lower())}.json"
