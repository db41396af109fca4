"""Item texts by an encoder that the tests make themselves: over HTTP, across restarts, and what is refused."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from fedrec.cli import main
from fedrec.cli.shop_serve import open_live_shop
from fedrec.client import Client, Event, Item
from fedrec.errors import ConfigError
from fedrec.models.text_encoder import SentenceEncoder
from fedrec.role_config import SHOP_FILE, open_store, read_shop
from fedrec.shop.api.app import make_app
from fedrec.shop.api.encoding import VECTORS_FILE, Encoding
from fedrec.shop.lists.shelf import Shelf
from fedrec.shop.store.rows import Item as StoredItem
from fedrec.shop.store.rows import KeyScope

from ..lists import shelves
from .conftest import serving

sentence_transformers = pytest.importorskip("sentence_transformers", reason="pip install 'fedrec[text]'")

MEANINGS = {"kettle": [1.0, 0.1, 0.0], "teapot": [1.0, 0.0, 0.1], "bicycle": [0.0, 1.0, 0.0], "lamp": [0.0, 0.0, 1.0]}


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of four words."""
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    words = {"[UNK]": 0, **{word: place for place, word in enumerate(MEANINGS, 1)}}
    tokenizer = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    weights = np.array([[0.0, 0.0, 0.0], *MEANINGS.values()], np.float32)
    folder = tmp_path_factory.mktemp("models") / "tiny"
    static = StaticEmbedding(tokenizer, embedding_weights=weights)
    sentence_transformers.SentenceTransformer(modules=[static], device="cpu").save(str(folder), create_model_card=False)
    return folder


class Gate:
    """The encoder, whose thread waits until it is let through."""

    def __init__(self, encoder: SentenceEncoder) -> None:
        self.fingerprint, self.opened, self.texts = encoder.fingerprint, threading.Event(), list[str]()
        self._encoder = encoder

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        if texts != ["a"]:  # what its dimension is asked with
            assert self.opened.wait(30)
            self.texts += texts
        return self._encoder.encode(texts)


def items_of(*titles: str) -> list[shelves.Item]:
    return [shelves.Item(title, title) for title in titles]


def settled(encoding: Encoding, shelf: Shelf) -> Shelf:
    """After all that waits was encoded."""
    deadline = time.monotonic() + 30
    while encoding.num_waiting(shelf):
        assert time.monotonic() < deadline
        assert encoding.trouble is None
        shelf = encoding.advance(shelf)
        time.sleep(0.005)
    return shelf


@contextmanager
def opened(model: Path, folder: Path) -> Iterator[tuple[Encoding, Gate]]:
    gate = Gate(SentenceEncoder(model))
    encoding = Encoding(gate, folder)
    try:
        yield encoding, gate
    finally:
        gate.opened.set()
        encoding.close()


def shop_of(folder: Path, encoder: Path | None) -> str:
    """A shop that sells a kettle and a bicycle; an admin's key."""
    assert main(["shop", "init", str(folder), "--name", "north"]) == 0
    if encoder is not None:
        file = folder / SHOP_FILE
        file.write_text(file.read_text().replace("[serving]", f"[serving]\ntext_encoder = {json.dumps(str(encoder))}"))
    with open_store(folder, read_shop(folder)) as store:
        store.put_items([StoredItem("old-1", "red kettle"), StoredItem("old-2", "blue bicycle")])
        return store.new_key("north", "tests", KeyScope.ADMIN)[1]


@pytest.mark.parametrize("is_encoded", [True, False])
def test_a_new_item_that_means_the_same_is_above_one_that_does_not(
    model: Path, tmp_path: Path, is_encoded: bool
) -> None:
    key = shop_of(tmp_path / "shop", model if is_encoded else None)
    live = open_live_shop(tmp_path / "shop")
    with serving(make_app({"north": live})) as url, Client(url, key) as shop:
        shop.send([Event("e1", "ann", "old-1", "purchase")])
        shop.put_items([Item("far", "yellow lamp"), Item("near", "green teapot")])

        def listed() -> list[str]:
            return [line.item for line in shop.home("ann", n=10).items if line.item in {"near", "far"}]

        deadline = time.monotonic() + 60
        while is_encoded and listed() != ["near", "far"]:
            assert time.monotonic() < deadline, live.troubles
            time.sleep(0.05)
        assert listed() == (["near", "far"] if is_encoded else ["far", "near"])  # words tell nothing
        assert ("fedrec_texts_waiting 0.0" in live.metrics_text().decode()) == is_encoded


def test_lists_go_on_by_words_while_texts_are_encoded(model: Path, tmp_path: Path) -> None:
    with opened(model, tmp_path) as (encoding, gate):
        shelf = encoding.shelf().with_items(items_of("red kettle", "red lamp", "teapot"))
        begun = encoding.advance(shelf)
        assert encoding.advance(begun) is begun is shelf  # the gate is shut: nothing waits for it
        one, others = np.array([0]), np.array([1, 2])
        assert (shelf.words.between(one, others) > 0.1).tolist() == [[True, False]]
        gate.opened.set()
        shelf = settled(encoding, shelf)
        assert (shelf.words.between(one, others) > 0.1).tolist() == [[False, True]]


def test_a_text_that_changes_while_it_is_encoded_is_encoded_again(model: Path, tmp_path: Path) -> None:
    with opened(model, tmp_path) as (encoding, gate):
        shelf = encoding.advance(encoding.shelf().with_items(items_of("kettle", "lamp")))
        shelf = shelf.with_items([shelves.Item("lamp", "teapot")])
        gate.opened.set()
        shelf = settled(encoding, shelf)
        assert shelf.words.between(np.array([0]), np.array([1])) == pytest.approx(0.99, abs=0.01)
        assert sorted(gate.texts) == ["kettle", "lamp", "teapot"]


def test_a_restart_encodes_nothing_again_and_loads_no_model(model: Path, tmp_path: Path) -> None:
    def shelf_of(encoding: Encoding, *titles: str) -> Shelf:
        return encoding.recall(encoding.shelf().with_items(items_of(*titles)))

    with opened(model, tmp_path) as (encoding, gate):
        gate.opened.set()
        first = settled(encoding, shelf_of(encoding, "kettle", "teapot", "lamp"))
    with opened(model, tmp_path) as (encoding, gate):
        again = shelf_of(encoding, "teapot", "kettle")
        assert encoding.num_waiting(again) == 0
        assert gate._encoder._model is None
        places = np.array([0, 1])
        assert np.array_equal(again.words.between(places, places), first.words.between(places[::-1], places[::-1]))
    with sqlite3.connect(tmp_path / VECTORS_FILE) as file:
        assert file.execute("SELECT count(*) FROM vectors").fetchone() == (2,)  # nobody sells the lamp any more


@pytest.mark.parametrize("is_damaged", [True, False])
def test_vectors_of_another_encoder_or_of_a_damaged_file_are_made_anew(
    model: Path, tmp_path: Path, is_damaged: bool
) -> None:
    with opened(model, tmp_path) as (encoding, gate):
        gate.opened.set()
        settled(encoding, encoding.shelf().with_items(items_of("kettle")))
    if is_damaged:
        (tmp_path / VECTORS_FILE).write_bytes(b"no database" * 1_000)
    else:
        with sqlite3.connect(tmp_path / VECTORS_FILE) as file:
            file.execute("UPDATE about SET encoder = 'another'")
    with opened(model, tmp_path) as (encoding, gate):
        assert encoding.num_waiting(encoding.recall(encoding.shelf().with_items(items_of("kettle")))) == 1


def test_an_encoder_that_fails_is_said_and_lists_stay(model: Path, tmp_path: Path) -> None:
    class Broken(Gate):
        def encode(self, texts: Sequence[str]) -> np.ndarray:
            if texts != ["a"]:
                raise ConfigError("no such numbers")
            return super().encode(texts)

    encoding = Encoding(Broken(SentenceEncoder(model)), tmp_path)
    shelf = encoding.shelf().with_items(items_of("red kettle", "red lamp"))
    deadline = time.monotonic() + 30
    while encoding.trouble is None:
        assert time.monotonic() < deadline
        shelf = encoding.advance(shelf)
    encoding.close()
    assert "no such numbers" in encoding.trouble
    assert shelf.words.between(np.array([0]), np.array([1])) > 0.1


def refusal(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of a server that does not start."""
    capsys.readouterr()
    assert main(["shop", "serve", str(folder), "--port", "0"]) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert len(said) == 1, said
    return said[0]


def test_what_is_no_encoder_is_refused_in_one_line(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, encoder = tmp_path / "shop", tmp_path / "shop" / "encoder"
    shop_of(folder, Path("encoder"))
    assert f"{encoder} is no folder" in refusal(folder, capsys)
    encoder.mkdir()
    assert "no modules.json that can be read" in refusal(folder, capsys)
    for path in model.iterdir():
        (encoder / path.name).write_bytes(path.read_bytes())
    (encoder / "tokenizer.json").write_text("{}")
    assert f"{encoder} cannot be loaded" in refusal(folder, capsys)
    (encoder / "model.safetensors").rename(encoder / "pytorch_model.bin")
    assert "pytorch_model.bin is a pickle" in refusal(folder, capsys)
    (encoder / "modules.json").write_text('[{"idx": 0, "name": "0", "path": "", "type": "model.Own"}]')
    assert "asks for code of its own, model.Own" in refusal(folder, capsys)
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    assert 'pip install "fedrec[text]"' in refusal(folder, capsys)


def test_a_shop_without_an_encoder_does_without_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    shop_of(tmp_path / "shop", None)
    asyncio.run(open_live_shop(tmp_path / "shop").close())
