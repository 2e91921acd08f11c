"""enwik8 and text8 as TensorFlow Datasets, stored as ArrayRecord: nothing here needs TensorFlow."""

import concurrent.futures
import hashlib
import http.client
import io
import logging
import os
import sys
import threading
import urllib.error
import urllib.request
import uuid
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from tqdm import tqdm

from longformer_jax.errors import InputError
from longformer_jax.files import user_path

_RECORD_BYTES = 100_000
_PATIENCE = 15  # seconds, for a connection and for what comes next on it


class LargeText(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A text of bytes in records of 100,000 (`{"bytes": uint8 [n]}`), in their order, split contiguously.

    Prepared from `NAME` or `NAME.zip` in TFDS's manual directory where that is, else from a download.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "The text as published."}

    MANUAL_DOWNLOAD_INSTRUCTIONS = "Put NAME or NAME.zip from http://mattmahoney.net/dc into the directory."

    DESCRIPTION: ClassVar[str]
    URL: ClassVar[str]
    MD5: ClassVar[str]  # of the unpacked text
    SPLIT_SIZES: ClassVar[dict[str, int]] = {"train": 90_000_000, "validation": 5_000_000, "test": 5_000_000}

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.DESCRIPTION,
            homepage="http://mattmahoney.net/dc/textdata.html",
            features=tfds.features.FeaturesDict(
                {"bytes": tfds.features.Tensor(shape=(None,), dtype=np.uint8, encoding="bytes")}
            ),
            disable_shuffling=True,  # the records are one text
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator[Any]]:
        try:
            file = manual_file(self.name, Path(dl_manager.manual_dir))
        except AssertionError:  # how TFDS says that there is no manual directory
            file = None
        if file is None:
            text = self._download()
        else:
            with file.open("rb") as opened:
                text = self._read(opened, packed=file.suffix == ".zip", origin=str(file))
        starts = np.cumsum(list(self.SPLIT_SIZES.values()))[:-1]
        splits = np.split(np.frombuffer(text, dtype=np.uint8), starts)
        return {name: self._generate_examples(data) for name, data in zip(self.SPLIT_SIZES, splits, strict=True)}

    def _generate_examples(self, data: np.ndarray) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        for start in range(0, len(data), _RECORD_BYTES):
            yield start // _RECORD_BYTES, {"bytes": data[start : start + _RECORD_BYTES]}

    def _download(self) -> bytes:
        try:
            return self._read(io.BytesIO(_fetch(self.URL)), packed=True, origin=self.URL)
        except (OSError, http.client.HTTPException) as error:
            raise InputError(
                f"{self.name} could not be downloaded from {self.URL} ({error}); expected the network, or a path that "
                f"holds {self.name}.zip (--config.data.path of train.py, --data_path of eval.py)"
            ) from error

    def _read(self, file: BinaryIO, packed: bool, origin: str) -> bytes:
        """The text in `file`, plain or zipped, checked against its size and MD5; `origin` names the file in errors."""
        if packed:
            try:
                with zipfile.ZipFile(file) as archive:
                    text = archive.read(self.name)
            except (zipfile.BadZipFile, zlib.error, EOFError, KeyError) as error:
                raise InputError(f"{origin} is damaged ({error}); expected an archive of {self.name}") from error
        else:
            text = file.read()
        size = sum(self.SPLIT_SIZES.values())
        if len(text) != size:
            raise InputError(f"{origin} holds {len(text):,} bytes; expected the {size:,} of {self.name}")
        if _md5(text) != self.MD5:
            raise InputError(f"{origin} holds a text with MD5 {_md5(text)}; expected {self.MD5}, that of {self.name}")
        return text

    def memory_map(self) -> np.ndarray:
        """The whole prepared text, uint8 `[N]`, mapped from the file NAME.bin beside the records.

        The records are compressed, and a reader of windows at random positions needs the plain bytes, so the file is
        written at the first call, and again where its size or MD5 is not the text's. Raises InputError if the records
        themselves are damaged.
        """
        file = Path(self.data_dir) / f"{self.name}.bin"
        if not self._is_whole(file):
            if file.exists():
                logging.getLogger(__name__).warning("%s is damaged; writing it again", file)
            damaged = f"the records in {self.data_dir} are damaged; delete that directory to prepare {self.name} again"
            try:
                self._write(file)
            except RuntimeError as error:  # what ArrayRecord raises
                raise InputError(damaged) from error
            if not self._is_whole(file):
                raise InputError(damaged)
        return np.memmap(file, dtype=np.uint8, mode="r")

    def _is_whole(self, file: Path) -> bool:
        if not file.is_file() or file.stat().st_size != sum(self.SPLIT_SIZES.values()):
            return False
        return _md5(np.memmap(file, dtype=np.uint8, mode="r")) == self.MD5

    def _write(self, file: Path) -> None:
        """Writes under another name, then renames, so that no reader meets half a file."""
        partial = file.with_name(f"{file.name}.{uuid.uuid4().hex}")
        try:
            with partial.open("wb") as out:
                for split in self.SPLIT_SIZES:
                    for record in self.as_data_source(split):
                        out.write(record["bytes"])
            partial.replace(file)
        finally:
            partial.unlink(missing_ok=True)


class Enwik8(LargeText):
    """The first 10^8 bytes of the English Wikipedia's dump of 3 March 2006, XML mark-up included."""

    DESCRIPTION = __doc__
    URL = "http://mattmahoney.net/dc/enwik8.zip"
    MD5 = "a1fa5ffddb56f4953e226637dabbb36a"


class Text8(LargeText):
    """The first 10^8 bytes of enwik9's cleaned text: the letters a to z, numbers spelled out, and single spaces."""

    DESCRIPTION = __doc__
    URL = "http://mattmahoney.net/dc/text8.zip"
    MD5 = "3bea1919949baf155f99411df5fada7e"


def manual_file(name: str, directory: Path) -> Path | None:
    """`name` or `name`.zip in `directory`, whichever is there, the plain file first."""
    return next((file for file in (directory / name, directory / f"{name}.zip") if file.is_file()), None)


def prepare(
    name: str, *, path: str | os.PathLike[str] | None, data_dir: str | os.PathLike[str] | None, download: bool
) -> LargeText:
    """The builder of `name` ("enwik8" or "text8"), prepared in `data_dir`; see `load_corpus` for the arguments."""
    data_dir = None if data_dir is None else user_path("data_dir", data_dir)
    make_builder = {"enwik8": Enwik8, "text8": Text8}[name]
    builder = make_builder(data_dir=data_dir, file_format="array_record")
    if builder.data_path.exists():
        return builder

    manual_dir = Path(builder.data_dir_root) / "downloads" / "manual" if path is None else user_path("path", path)
    if manual_file(name, manual_dir) is None:
        if path is not None:
            raise InputError(f"path is {str(path)!r}; expected a directory that holds {name} or {name}.zip")
        if not download:
            raise InputError(
                f"download is False, and {name} is not prepared in {builder.data_dir}; expected {name} or {name}.zip "
                f"in {manual_dir}"
            )
    try:
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=manual_dir))
    except OSError:
        if not builder.data_path.exists():
            raise
        # Another process was first with the final rename; its records are as good.
    return make_builder(data_dir=data_dir, file_format="array_record")


def _fetch(url: str) -> bytes:
    """What is found at a URL, with a line and a progress bar on standard error.

    Raises:
      OSError, http.client.HTTPException: it is not to be had, or the server says nothing for `_PATIENCE` seconds.
    """
    print(f"downloading {url}", file=sys.stderr, flush=True)
    opened: concurrent.futures.Future[http.client.HTTPResponse] = concurrent.futures.Future()

    def open_url() -> None:
        try:
            opened.set_result(urllib.request.urlopen(url, timeout=_PATIENCE))
        except Exception as error:
            if isinstance(error, urllib.error.HTTPError):
                error.close()  # it holds the connection
            opened.set_exception(error)

    # Looking up a name knows no time limit, hence the thread, and a little more time than the connection has.
    threading.Thread(target=open_url, daemon=True).start()
    content = io.BytesIO()
    with opened.result(1.2 * _PATIENCE) as response:
        size = int(response.headers.get("Content-Length") or 0) or None
        with tqdm(total=size, unit="B", unit_scale=True, disable=None) as bar:
            while chunk := response.read(1 << 16):
                bar.update(content.write(chunk))
    return content.getvalue()


def _md5(text: bytes | np.ndarray) -> str:
    return hashlib.md5(text, usedforsecurity=False).hexdigest()
