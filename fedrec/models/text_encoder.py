"""A sentence encoder of a local folder: texts to vectors. Needs the extra ``text``; nothing is ever downloaded."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from fedrec.errors import ConfigError, one_line

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

_MODULES_FILE = "modules.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
_BATCH = 64


class TextEncoder(Protocol):
    """Texts to vectors."""

    @property
    def fingerprint(self) -> str:
        """The same for the same encoder alone."""
        ...

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """float32, (len(texts), dimension); one row each, of any norm."""
        ...


class SentenceEncoder:
    """A sentence-transformers model; loaded, and torch with it, at the first text.

    Only the library's own modules are run, and weights are read from safetensors alone, so that a folder is data.
    """

    def __init__(self, folder: Path) -> None:
        """Look at the folder.

        Raises:
            ConfigError: the extra is not installed, there is no such folder, or it is no such model.
        """
        if importlib.util.find_spec("sentence_transformers") is None:
            raise ConfigError('text_encoder needs the extra text: pip install "fedrec[text]", or take the line out')
        _check(folder)
        self._folder, self.fingerprint = folder, _fingerprint(folder)
        self._model: SentenceTransformer | None = None

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """As `TextEncoder`; on one core, so that others are left to who waits for an answer.

        Raises:
            ConfigError: the folder cannot be loaded, or gives numbers that are none.
        """
        import torch

        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            self._model = self._model or _load(self._folder)
            found = self._model.encode(list(texts), batch_size=_BATCH, show_progress_bar=False, convert_to_numpy=True)
        finally:
            torch.set_num_threads(before)
        values = np.asarray(found, np.float32)
        if values.ndim != 2 or len(values) != len(texts) or not np.isfinite(values).all():
            raise ConfigError(f"{self._folder}: this encoder does not give one row of finite numbers for each text")
        return values


def _check(folder: Path) -> None:
    """Refuse what is no sentence-transformers model, or would have to be trusted."""
    if not folder.is_dir():
        raise ConfigError(f"text_encoder: {folder} is no folder; save a sentence-transformers model there")
    try:
        modules = json.loads((folder / _MODULES_FILE).read_text(encoding="utf-8"))
        kinds = [str(module["type"]) for module in modules]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(
            f"text_encoder: {folder} is no sentence-transformers model: no {_MODULES_FILE} that can be read"
        ) from error
    if strange := [kind for kind in kinds if not kind.startswith("sentence_transformers.")]:
        raise ConfigError(f"text_encoder: {folder} asks for code of its own, {one_line(strange[0])}: take another one")
    for pattern in _PICKLES:
        for path in folder.rglob(pattern):
            if not any(path.parent.glob("*.safetensors")):
                raise ConfigError(f"text_encoder: {path} is a pickle: save the model anew, as safetensors")


def _fingerprint(folder: Path) -> str:
    """Of all files' names and bytes."""
    found = hashlib.sha256()
    try:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            found.update(repr((path.relative_to(folder).as_posix(), path.stat().st_size)).encode())
            with open(path, "rb") as file:
                found.update(hashlib.file_digest(file, "sha256").digest())
    except OSError as error:
        raise ConfigError(f"text_encoder: {error.filename} cannot be read ({error.strerror})") from error
    return found.hexdigest()


def _load(folder: Path) -> SentenceTransformer:
    os.environ["HF_HUB_OFFLINE"] = os.environ["TRANSFORMERS_OFFLINE"] = "1"  # read when the library is imported
    from sentence_transformers import SentenceTransformer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    try:
        return SentenceTransformer(
            str(folder),
            device="cpu",
            local_files_only=True,
            trust_remote_code=False,
            model_kwargs={"use_safetensors": True},
        )
    except Exception as error:  # whatever the libraries below it raise
        raise ConfigError(
            f"text_encoder: {folder} cannot be loaded ({type(error).__name__}: {one_line(str(error))})"
        ) from error
