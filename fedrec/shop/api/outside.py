"""What all that ever left a shop tells of one shopper by now, for lists to say."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from fedrec.errors import FedrecError
from fedrec.shop.adoption import CURRENT_FILE
from fedrec.shop.api.arms import stamp
from fedrec.shop.lists.serving_model import ServingModel
from fedrec.shop.member import LEDGER_FILE, MODELS_FOLDER, NO_PROMISE_FILE

_log = logging.getLogger("fedrec.shop.api")
_FILES = (LEDGER_FILE, f"{LEDGER_FILE}-wal", NO_PROMISE_FILE, f"{MODELS_FOLDER}/{CURRENT_FILE}")


class Outside:
    """Asked again when something may have left.

    Args:
        name, folder: of the shop.
        find: asks, None = no bound; without it lists say what was true when their model was made ready.
    """

    def __init__(self, name: str, folder: Path, find: Callable[[], float | None] | None) -> None:
        self._name, self._folder, self._find = name, folder, find
        self._left = self._stamps()
        self._epsilon = self._ask()

    def may_differ(self) -> bool:
        """Whether something may have left the shop since it was asked."""
        return self._stamps() != self._left

    def ask(self) -> bool:
        """Ask again; whether the answer is another one. In a thread."""
        left, before = self._stamps(), self._epsilon
        self._epsilon, self._left = self._ask(), left
        return self._epsilon != before

    def told(self, model: ServingModel) -> ServingModel:
        """A model that says what has left the shop by now; it was made ready some time ago."""
        if self._find is None:
            return model
        served = replace(model.served, epsilon_outside=self._epsilon)
        return replace(model, served=served)  # type: ignore[type-var]

    def _ask(self) -> float | None:
        """None, no bound, too where nobody can say."""
        try:
            return None if self._find is None else self._find()
        except FedrecError as error:
            _log.warning("shop %s: what has left it cannot be said: %s", self._name, error)
            return None

    def _stamps(self) -> list[object]:
        return [stamp(self._folder / file) for file in _FILES]
