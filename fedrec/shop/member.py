"""A shop in a deployed federation: what it keeps in its folder, what it agrees to, and what it does with a new model.

The folder holds keys (0600), the coordinator's invitation, the ledger, the offer that was accepted last, the keys of
the run's masks, and every model that was taken over. Nothing in it but the public keys ever leaves; what is not on
disk is not needed to go on after a crash.

**Guarantee:** an offer is checked against the shop's policy before its model is even imported; a run's offer is
accepted once, and another one under its name is refused; nothing is released under a promise before the heads of the
ledger that others keep were compared with it; nothing is released from data that holds a shopper who was erased
before the round was asked for.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from scipy import sparse

from fedrec.data.shops import ShopData, final_rows
from fedrec.errors import BadMessage, ConfigError, LedgerBehind, RoundRefused, StoreError
from fedrec.federation.anchors import AnchorBook, Receipt, SignedHead, check_receipts, heads_of, peer_of
from fedrec.federation.enrolment import Invitation, Offer
from fedrec.federation.plan import agreement, items_digest, model_settings
from fedrec.federation.release import MakeNoise
from fedrec.federation.run_record import write_atomically
from fedrec.models.recommender import PublicInputs, Recommender, State
from fedrec.privacy.draws import shopper_digests
from fedrec.privacy.ledger import Ledger
from fedrec.privacy.noise import SecureNoise
from fedrec.secure_aggregation.keys import IdentityKey
from fedrec.secure_aggregation.messages import most_message_bytes
from fedrec.secure_aggregation.shop_session import ShopSession
from fedrec.shop.adoption import Adoption, judge_and_keep
from fedrec.shop.masking import Masking, forget
from fedrec.shop.node import ShopNode
from fedrec.shop.personalise import ShopPersonalisation, keeps_validation
from fedrec.shop.policy import Policy

LEDGER_FILE = "ledger.sqlite"
OFFER_FILE = "offer.json"
RUNS_FILE = "runs.json"
NO_PROMISE_FILE = "without-a-promise"
HEADS_FILE = "peer-heads.json"
LOST_FILE = "lost-heads.json"
IDENTITY_FILE = "identity.key"
NODE_KEY_FILE = "node.key"
INVITATION_FILE = "invitation.json"
MODELS_FOLDER = "models"
MASKS_FOLDER = "masks"
_log = logging.getLogger("fedrec.shop")


@dataclass(frozen=True)
class MemberSettings:
    """What the shop's file says, but the data.

    Attributes:
        name: on the roster.
        public_shoppers: declared number of shoppers.
        policy: what it is willing to take part in.
        personalisation: when it serves a new model.
        is_joint_dp: its lists may not depend on other shoppers' raw events; see `fedrec.shop.adoption.judge_and_keep`.
    """

    name: str
    public_shoppers: int
    policy: Policy
    personalisation: ShopPersonalisation = field(default_factory=ShopPersonalisation)
    is_joint_dp: bool = False


@dataclass(frozen=True, repr=False)
class _Run:
    """The run that was accepted last."""

    offer: Offer
    model: Recommender
    public: PublicInputs
    positions: np.ndarray
    node: ShopNode

    @property
    def run_id(self) -> str:
        return str(self.offer.terms["run_id"])


class DataSource(Protocol):
    """Events that change while the agent runs."""

    @property
    def is_stale(self) -> bool:
        """Whether a shopper was erased since the last `read`."""

    def read(self) -> tuple[ShopData, PublicInputs]:
        """The shop's events and its item space, as they are now."""


class Member:
    """One shop's side of a deployed federation; knows nothing of what carries the messages."""

    def __init__(
        self,
        folder: Path,
        settings: MemberSettings,
        data: ShopData,
        shop_public: PublicInputs,
        *,
        make_noise: MakeNoise = SecureNoise,
        source: DataSource | None = None,
        make_ready: Callable[[str], None] | None = None,
    ) -> None:
        """Args:
            folder: the shop's, made by ``fedrec shop enrol``.
            settings: from its file.
            data: its events; ``validation`` is what it judges new models on.
            shop_public: its own item space.
            make_noise: for tests.
            source: where the data is from, if it changes: read again at every new run, and whenever it is stale.
            make_ready: see `fedrec.shop.adoption.judge_and_keep`.
        Raises:
            StoreError: keys or invitation are missing, or can be read by others.
        """
        self.folder, self.settings, self.data = Path(folder), settings, data
        self._shop_public, self._make_noise, self._source = shop_public, make_noise, source
        self._make_ready = make_ready
        self.invitation = read_invitation(self.folder)
        self._key = IdentityKey.load(self.folder / IDENTITY_FILE)
        self._ledger: Ledger | None = None
        self._run: _Run | None = None
        self._is_anchored = False
        stored = self.folder / OFFER_FILE
        if stored.exists():
            self._run = self._open_run(Offer.read(stored.read_bytes(), self.invitation.key))
        for run_id in self._runs():
            if run_id != self.run_id:  # whose end a crash may have cut short
                self._end(run_id)

    @property
    def run_id(self) -> str:
        """Of the run that was accepted last; "" before any."""
        return "" if self._run is None else self._run.run_id

    @property
    def has_ledger(self) -> bool:
        """Whether the shop ever took part in a private run."""
        return (self.folder / LEDGER_FILE).exists()

    def accept(self, data: bytes) -> None:
        """Agree to a run, or refuse it.

        Raises:
            BadSignature: it is not the coordinator's.
            RoundRefused: the policy does not allow it, or it changes a run that was agreed to.
            ConfigError: the model is not installed here.
        """
        offer = Offer.read(data, self.invitation.key)
        self.settings.policy.check(offer, shop=self.settings.name, key=self._key.public)
        path, runs, run_id = self.folder / OFFER_FILE, self._runs(), str(offer.terms["run_id"])
        digest = hashlib.sha256(data).hexdigest()
        is_current = self.run_id == run_id
        if runs.get(run_id, digest) != digest or (is_current and path.read_bytes() != data):
            raise RoundRefused(f"run {run_id!r} is offered on other terms than this shop agreed to")
        if is_current:
            return
        if run_id in list(runs)[:-1]:  # the last is offered again where its acceptance was cut short
            raise RoundRefused(f"run {run_id!r} is offered again, after this shop left it for another")
        if self._source is not None:
            self.data, self._shop_public = self._source.read()
        run = self._open_run(offer)
        if run.node.ledger is None:  # in no ledger: this is all that remembers it when the run is long over
            write_atomically(self.folder / NO_PROMISE_FILE, f"{run.run_id}\n".encode())
        write_atomically(self.folder / RUNS_FILE, json.dumps({**runs, run_id: digest}).encode())
        write_atomically(path, data)
        if self._run is not None:
            self._end(self.run_id)
        self._run, self._is_anchored = run, False
        _log.info("agreed to run %s: %s", run.run_id, run.offer.read_terms().guarantee)

    @property
    def most_secure_bytes(self) -> int:
        """The largest message of secure aggregation, beside plans, in the accepted run; see `most_message_bytes`."""
        secure = None if self._run is None else self._run.offer.read_terms().secure
        return 2**16 if secure is None else most_message_bytes(secure)

    def node(self) -> ShopNode:
        """Answers the rounds of the accepted run.

        Raises:
            RoundRefused: none was accepted, or it is private and the ledger was not compared with its anchors yet.
        """
        if self._run is None:
            raise RoundRefused("no run was agreed to: the coordinator must make an offer first")
        if self._run.node.ledger is not None and not self._is_anchored:
            raise RoundRefused("the ledger was not compared with the heads that others keep: nothing is released")
        return self._fresh(self._run).node

    def anchor(self, data: bytes) -> bytes:
        """Compare the ledger with what others keep of it, keep the heads of a peer, and give this shop's own.

        Args:
            data: JSON: ``receipts`` of this shop's heads, and ``heads`` of the shop whose peer this one is.
        Returns:
            JSON: this shop's signed ``head`` (null without a ledger), and ``receipts`` for the peer's heads.
        Raises:
            LedgerBehind: others have seen releases that the ledger lacks.
            BadMessage: not such JSON, or heads of a shop whose peer this one is not.
            BadSignature: a receipt of somebody else.
        """
        run = self._run
        if run is None:
            raise RoundRefused("ledger heads before a run was agreed to")
        try:
            asked = json.loads(data)
            receipts = [Receipt.from_bytes(bytes.fromhex(one)) for one in asked["receipts"]]
            heads = [SignedHead.from_json(one) for one in asked["heads"]]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise BadMessage(f"not a message of ledger heads ({type(error).__name__})") from error
        places = [(one.anchor, one.signed.head.place) for one in receipts]
        if len(set(places)) < len(places) or len({one.head.place for one in heads}) < len(heads):
            raise BadMessage("a ledger head twice")  # each costs a signature to check or to make
        keys = run.offer.keys()
        head = None
        if run.node.ledger is not None:
            peer = peer_of(self.settings.name, sorted(keys))
            anchors = [self.invitation.key, *([keys[peer]] if peer else [])]
            self._is_anchored = False
            try:
                check_receipts(run.node.ledger, receipts, self._key.public, anchors)
            except LedgerBehind:
                write_atomically(self.folder / LOST_FILE, data)  # what `recover` charges
                raise
            self._is_anchored = True
            if (own := run.node.ledger.head()).sequence:
                head = SignedHead.sign(own, self._key).to_json()
        book, kept = AnchorBook(self.folder / HEADS_FILE, self._key), []
        for signed in heads:
            if signed.head.shop not in keys or peer_of(signed.head.shop, sorted(keys)) != self.settings.name:
                raise BadMessage(f"a ledger head of {signed.head.shop!r}, whose peer this shop is not")
            kept.append(book.countersign(signed, keys[signed.head.shop]).to_bytes().hex())
        return json.dumps({"head": head, "receipts": kept}).encode()

    def recover(self) -> int:
        """Charge in full what others have seen and the ledger lacks; the ledger's sequence afterwards.

        Raises:
            ConfigError: nobody said that anything is missing.
        """
        path = self.folder / LOST_FILE
        if self._run is None or not path.exists():
            raise ConfigError("nobody has shown this shop a release that its ledger lacks: there is nothing to recover")
        receipts = [Receipt.from_bytes(bytes.fromhex(one)) for one in json.loads(path.read_bytes())["receipts"]]
        keys = self._run.offer.keys()
        heads = heads_of(receipts, self._key.public, [self.invitation.key, *keys.values()])
        sequence = self.ledger().recover(heads).sequence
        path.unlink()
        return sequence

    def adopt(self, run_id: str, state: State) -> Adoption:
        """Judge a finished run's model on this shop's own validation, and serve it if it is better.

        Raises:
            RoundRefused: of a run that this shop did not agree to.
            BadMessage: arrays that are not the model's.
        Guarantee: the outcome stays in the shop; it depends on raw validation events.
        """
        run = self._run
        if run is None or run.run_id != run_id:
            raise RoundRefused(f"a model of run {run_id!r}, which this shop did not agree to")
        run = self._fresh(run)
        adoption = judge_and_keep(
            self.folder / MODELS_FOLDER,
            run_id,
            run.model,
            state,
            run.public,
            data=self.data,
            positions=run.positions,
            shop_public=self._shop_public,
            settings=self.settings.personalisation,
            mode=run.offer.read_terms().protection.value,
            is_joint_dp=self.settings.is_joint_dp,
            make_ready=self._make_ready,
        )
        if run.node.ledger is not None and run.node.ledger.is_reserved(run_id):
            run.node.ledger.finish(run_id)
        _log.info("model of run %s: %s", run_id, adoption.reason)
        return adoption

    def leave(self) -> None:
        """Free what an unfinished run reserved, and forget it and the keys of its masks."""
        if self._run is not None:
            self._end(self.run_id)
            (self.folder / OFFER_FILE).unlink(missing_ok=True)
            self._run = None

    def _end(self, run_id: str) -> None:
        """Free what the run reserved and never charged, and forget its masks: it cannot go on."""
        if self.has_ledger and self.ledger().is_reserved(run_id):
            self.ledger().finish(run_id)
        forget(self._masks_of(run_id))

    def _runs(self) -> dict[str, str]:
        """All runs that were ever agreed to, in order: their offers' digests."""
        path = self.folder / RUNS_FILE
        try:
            return dict(json.loads(path.read_bytes())) if path.exists() else {}
        except (OSError, ValueError, TypeError) as error:
            raise StoreError(f"{path}: cannot be read ({type(error).__name__}); restore it from a backup") from error

    def ledger(self) -> Ledger:
        """The shop's ledger; begun with the policy's budget where there is none."""
        if self._ledger is None:
            path = self.folder / LEDGER_FILE
            self._ledger = Ledger.open(path, self.settings.name, budget=self.settings.policy.budget())
            path.chmod(0o600)
        return self._ledger

    def close(self) -> None:
        """Close the ledger."""
        if self._ledger is not None:
            self._ledger.close()

    def _fresh(self, run: _Run) -> _Run:
        """The run on data without whoever was erased since it was read; goes on as after a restart."""
        if self._source is not None and self._source.is_stale:
            self.data, self._shop_public = self._source.read()
            run = self._run = self._open_run(run.offer)
            _log.info("a shopper was erased: the data was read again")
        return run

    def _open_run(self, offer: Offer) -> _Run:
        terms, model, public = offer.read_terms(), offer.read_model(), offer.public_inputs()
        place = {key: position for position, key in enumerate(public.items.tolist())}
        positions = np.array([place.get(str(key), -1) for key in self.data.items.tolist()], np.int64)
        contributed = self._contributed(is_private=terms.privacy is not None)
        rows = replace(self.data, positions=positions).shared(contributed, public.num_items)
        masking = None
        if terms.secure is not None:
            path = self._masks_of(terms.run_id)
            path.parent.mkdir(mode=0o700, exist_ok=True)
            session = ShopSession(terms.secure, self.settings.name, self._key, terms.run_id)
            masking = Masking(session, path)
        node = ShopNode(
            self.settings.name,
            model,
            rows,
            agreement(model.name, model_settings(model), items_digest(public), terms),
            None if terms.privacy is None else self.ledger(),
            self._make_noise,
            masking=masking,
            digests=shopper_digests(self.data.shoppers),
            most_bytes=self.settings.policy.max_message_bytes,
        )
        return _Run(offer, model, public, positions, node)

    def _contributed(self, *, is_private: bool) -> sparse.csr_matrix:
        """What the shop trains on: a private release leaves validation out where the shop is large enough to test."""
        if is_private and keeps_validation(self.settings.public_shoppers):
            return self.data.train
        return final_rows(self.data.train, self.data.validation, self.data.fold_in)

    def _masks_of(self, run_id: str) -> Path:
        return self.folder / MASKS_FOLDER / f"{run_id}.masking"


def read_invitation(folder: Path) -> Invitation:
    """The invitation that the shop answered; its expiry no longer matters.

    Raises:
        StoreError: the folder has none.
    """
    try:
        data = (Path(folder) / INVITATION_FILE).read_bytes()
    except OSError as error:
        raise StoreError(f"{folder}: no shop here; make one with fedrec shop enrol") from error
    return Invitation.read(data, now=datetime.datetime.min.replace(tzinfo=datetime.UTC))


def check_secrets(folder: Path) -> None:
    """Refuse a folder whose secrets others can read.

    Raises:
        StoreError: the first such file, and what to do.
    """
    for path in sorted(Path(folder).rglob("*")):
        is_secret = path.suffix in (".key", ".masking", ".sqlite", ".tombstones")
        if is_secret and os.name == "posix" and path.stat().st_mode & 0o077:
            raise StoreError(f"{path}: can be read by others; chmod 600 {path}, and consider it known")
