"""Item texts through a sentence encoder, in a thread of its own: nobody's answer waits for it.

**Guarantee:** nothing but titles and categories goes into the encoder and its file; both are public, shoppers are not.
"""

from __future__ import annotations

import logging
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np

from fedrec.errors import ConfigError, FedrecError
from fedrec.models.encoded_texts import WAITING, EncodedTexts, Vectors, digest_of, halved, text_of
from fedrec.models.text_encoder import TextEncoder
from fedrec.shop.lists.kept_vectors import KeptVectors
from fedrec.shop.lists.shelf import Shelf

VECTORS_FILE = "text-vectors.sqlite"

_log = logging.getLogger("fedrec.shop.api")
_BATCH = 64
_MOST = 2_000
_TURN_S = 1.0
_AGAIN_S = 60.0


class Encoding:
    """The encoder of one shop, and the vectors of its items' texts."""

    def __init__(self, encoder: TextEncoder, folder: Path) -> None:
        """Open what is kept in the shop's folder; the encoder is loaded only where nothing of it is.

        Raises:
            ConfigError: the encoder cannot be loaded.
            StoreError: the file of its vectors cannot be used.
        """
        self._encoder, self._kept = encoder, KeptVectors(folder / VECTORS_FILE, encoder.fingerprint)
        dimension = self._kept.dimension()
        if dimension is None:
            dimension = encoder.encode(["a"]).shape[1]
            self._kept.begin(dimension)
        self._vectors = Vectors(dimension)
        self._thread = ThreadPoolExecutor(1, "encoding")
        self._turn: Future[np.ndarray] | None = None
        self._not_before = 0.0
        self.trouble: str | None = None
        """Why what waits is not encoded; None = it is."""

    def shelf(self) -> Shelf:
        """An empty one, whose items are as alike as their vectors."""
        return Shelf(words=EncodedTexts(self._vectors))

    def recall(self, shelf: Shelf) -> Shelf:
        """A whole catalogue with the vectors that were kept; those of other texts are erased.

        Raises:
            StoreError: the file cannot be read.
        """
        places = _words(shelf).waiting()
        wanted = {digest_of(text_of(*text)) for text in shelf.texts(places)}
        self._vectors.add(*self._kept.recall(wanted, self._vectors.dimension))
        return _looked_up(shelf, places)

    def advance(self, shelf: Shelf) -> Shelf:
        """The shelf with what was encoded since, itself if nothing was; begins with what waits. On the event loop."""
        if self._turn is not None:
            if not self._turn.done():
                return shelf
            turn, self._turn = self._turn, None
            if (error := turn.exception()) is not None:
                why = str(error) if isinstance(error, FedrecError) else f"unexpected {type(error).__name__}"
                self.trouble, self._not_before = f"item texts are not encoded: {why}", time.monotonic() + _AGAIN_S
                _log.error(self.trouble)
                return shelf
            self.trouble = None
            shelf = _looked_up(shelf, turn.result())
        waiting = _words(shelf).waiting(_MOST)
        if len(waiting) and time.monotonic() >= self._not_before:
            self._turn = self._thread.submit(self._encode, shelf, waiting)
        return shelf

    def num_waiting(self, shelf: Shelf) -> int:
        """Items of a shelf that are not encoded yet."""
        return _words(shelf).num_waiting

    def close(self) -> None:
        """Stop; what was not encoded is at the next start."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _encode(self, shelf: Shelf, places: np.ndarray) -> np.ndarray:
        """Encode these items' texts, for a second; the positions that were done."""
        end = time.monotonic() + _TURN_S
        for done in range(0, len(places), _BATCH):
            if done and time.monotonic() > end:
                return places[:done]
            texts = {digest_of(text): text for text in (text_of(*one) for one in shelf.texts(places[done:][:_BATCH]))}
            new = {digest: text for digest, text in texts.items() if self._vectors.row(digest) == WAITING}
            if new:
                halves = halved(self._encoder.encode(list(new.values())))
                self._kept.add(list(new), halves)
                self._vectors.add(list(new), halves)
        return places


def _words(shelf: Shelf) -> EncodedTexts:
    if not isinstance(shelf.words, EncodedTexts):
        raise ConfigError("this shelf began without an encoder")
    return shelf.words


def _looked_up(shelf: Shelf, places: np.ndarray) -> Shelf:
    return replace(shelf, words=_words(shelf).looked_up(places, shelf.texts(places)))
