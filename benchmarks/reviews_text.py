"""IMDB's reviews as one text, a third longer than enwik8, in which what was said long ago can help.

    python -m benchmarks.reviews_text aclImdb runs/reviews.txt

All 100,000 reviews of the Large Movie Review Dataset (Maas et al. 2011), a line each, those of a film one after
another: the names of its actors return for some 10,000 characters. The films come in the order of their numbers'
SHA-256, so the splits that are cut from the text are alike, and have at most one film in common. A text that is there
more than once is taken once.
"""

import argparse
import hashlib
import re
from collections import defaultdict
from pathlib import Path

FOLDERS = ("train/unsup", "train/pos", "train/neg", "test/pos", "test/neg")


def reviews_by_film(folder: Path) -> dict[str, list[bytes]]:
    """The different texts of each film."""
    found, seen = defaultdict(list), set()
    for part in FOLDERS:
        split, label = part.split("/")
        films = re.findall(r"title/(tt\d+)", (folder / split / f"urls_{label}.txt").read_text())
        files = sorted((folder / part).glob("*.txt"), key=_number)
        for file in files:
            text = file.read_bytes().strip()
            if text not in seen:
                seen.add(text)
                found[films[_number(file)]].append(text)
    return found


def _number(file: Path) -> int:
    return int(file.name.partition("_")[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="aclImdb, as aclImdb_v1.tar.gz unpacks to")
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    films = reviews_by_film(options.folder)
    order = sorted(films, key=lambda film: hashlib.sha256(film.encode()).digest())
    text = b"".join(review + b"\n" for film in order for review in films[film])
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_bytes(text)
    reviews = sum(map(len, films.values()))
    print(f"{len(text):,} bytes, {reviews:,} reviews of {len(films):,} films: {hashlib.sha256(text).hexdigest()[:16]}")


if __name__ == "__main__":
    main()
