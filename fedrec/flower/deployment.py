"""A coordinator as a process of its own: it waits for shops, offers the run, runs it, and hands the model out.

Everything that it must not forget is in its folder: keys and certificates, the enrolments, and one run directory a run
with offer, checkpoint and inbox. Started again it goes on where it stopped: same run, same round, same plan.
"""

from __future__ import annotations

import datetime
import json
import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from flwr.app import Message

from fedrec.errors import (
    BadMessage,
    BadSignature,
    ConfigError,
    FedrecError,
    LedgerBehind,
    ProtocolError,
    StoreError,
    TooFewShops,
)
from fedrec.federation.anchors import AnchorBook, Receipt, SignedHead, peer_of
from fedrec.federation.checkpoint import Checkpoints
from fedrec.federation.coordinator_side import Coordinator
from fedrec.federation.enrolment import Enrolment, Invitation, Offer, roster_fingerprint
from fedrec.federation.inbox import Inbox
from fedrec.federation.run_record import RoundRecord, write_atomically
from fedrec.federation.terms import Terms
from fedrec.flower.certificates import TlsFiles, create_authority, days_left, issue
from fedrec.flower.exchange import (
    ANCHOR_MESSAGE,
    MODEL_MESSAGE,
    OFFER_MESSAGE,
    Reply,
    bytes_from_record,
    bytes_to_record,
    exchange,
    model_to_record,
)
from fedrec.flower.fleet import Fleet, fleet_app, serve
from fedrec.flower.limits import MOST_LINES
from fedrec.flower.offering import make_offer
from fedrec.flower.server_app import ServerRun, run_rounds, write_rounds, write_shared
from fedrec.models.recommender import PublicInputs, Recommender, State
from fedrec.role_config import COORDINATOR_FILE, RoundsSection, coordinator_toml, read_coordinator
from fedrec.secure_aggregation.keys import IdentityKey, PublicKey

IDENTITY_FILE = "coordinator.key"
SHOPS_FOLDER = "shops"
RUNS_FOLDER = "runs"
CURRENT_FILE = "current-run"
OFFER_FILE = "offer.json"
HEADS_FILE = "ledger-heads.json"
STATUS_FILE = "status.json"
INVITATION_DAYS = 14
BACK_S = 20.0
"""By then every agent that is alive has connected again; see `fedrec.flower.agent`."""

_SHORT_S = 60.0
_ANSWER_BYTES = 4096
_AWAY_S = 1.0
_log = logging.getLogger("fedrec.coordinator")


def create_coordinator(folder: Path, name: str, *, public_host: str, items: str) -> None:
    """Make a coordinator's folder: settings, identity, certificates.

    Raises:
        StoreError: there is one already.
    """
    folder = Path(folder)
    if (folder / COORDINATOR_FILE).exists():
        raise StoreError(f"{folder}: holds a coordinator already; choose another folder")
    try:
        for part in (folder, folder / SHOPS_FOLDER, folder / RUNS_FOLDER):
            part.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise StoreError(f"{folder}: cannot be written ({error.strerror})") from error
    IdentityKey.generate().save(folder / IDENTITY_FILE)
    files = TlsFiles.in_folder(folder)
    create_authority(files, name)
    issue(files, public_host)
    write_atomically(folder / COORDINATOR_FILE, coordinator_toml(name, public_host=public_host, items=items).encode())


def invite(folder: Path, *, days: int = INVITATION_DAYS) -> tuple[bytes, str]:
    """An invitation file for shops, and the fingerprint to compare by telephone."""
    settings, key = read_coordinator(folder), IdentityKey.load(folder / IDENTITY_FILE)
    expires = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days)
    invitation = Invitation(
        federation=settings.name,
        address=f"{settings.address.public_host}:{settings.address.port}",
        authority=TlsFiles.in_folder(folder).authority.read_text(),
        coordinator=key.public.raw.hex(),
        expires=expires.isoformat(timespec="seconds"),
    )
    return invitation.sign(key), key.public.fingerprint()


def admit(folder: Path, data: bytes) -> Enrolment:
    """Take a shop's enrolment in.

    Raises:
        BadMessage: it answers another coordinator's invitation, or another shop has this name or key.
    """
    enrolment = Enrolment.read(data)
    if enrolment.federation != IdentityKey.load(folder / IDENTITY_FILE).public.raw.hex():
        raise BadMessage(f"the enrolment of {enrolment.shop!r} answers another coordinator's invitation")
    for known in read_enrolments(folder).values():
        if known == enrolment:
            return known
        if known.shop == enrolment.shop or known.identity == enrolment.identity or known.node_key == enrolment.node_key:
            raise BadMessage(f"shop {known.shop!r} is enrolled with that name or key: remove it first")
    write_atomically(folder / SHOPS_FOLDER / f"{enrolment.shop}.json", data)
    return enrolment


def remove(folder: Path, shop: str) -> None:
    """Take a shop off the roster of later runs.

    Raises:
        ConfigError: it is not enrolled.
    """
    read_coordinator(folder)
    if shop not in (known := read_enrolments(folder)):
        raise ConfigError(f"shop {shop!r} is not enrolled: {', '.join(known) or 'nobody is'}")
    (folder / SHOPS_FOLDER / f"{shop}.json").unlink()


def read_enrolments(folder: Path) -> dict[str, Enrolment]:
    """All enrolled shops, by name in order."""
    found = {}
    for path in sorted((folder / SHOPS_FOLDER).glob("*.json")):
        enrolment = Enrolment.read(path.read_bytes())
        found[enrolment.shop] = enrolment
    return dict(sorted(found.items()))


@dataclass
class Status:
    """What a coordinator shows of itself; nothing of it comes from a shopper.

    Attributes:
        run_id, phase: of the current run: "waiting for shops", "rounds", "handing out the model", "finished", "failed".
        guarantee: in words.
        online: connected shops.
        roster: all shops.
        fingerprint: of the roster.
        round: finished ones.
        rounds_planned: 0 = not known before.
        last_error: in one line.
        seconds, bytes_up, bytes_down, survivors: of the last round.
    """

    run_id: str = ""
    phase: str = "starting"
    guarantee: str = ""
    online: list[str] = field(default_factory=list)
    roster: list[str] = field(default_factory=list)
    fingerprint: str = ""
    round: int = 0
    rounds_planned: int = 0
    last_error: str = ""
    seconds: float = 0.0
    bytes_up: int = 0
    bytes_down: int = 0
    survivors: int = 0
    certificate_days: float = 0.0

    def figures(self) -> dict[str, float]:
        """For metrics."""
        named = ("round", "rounds_planned", "seconds", "bytes_up", "bytes_down", "survivors", "certificate_days")
        found = {name: float(getattr(self, name)) for name in named}
        return {**found, "shops_connected": float(len(self.online)), "shops": float(len(self.roster))}


OnStatus = Callable[[Status], None]


class Deployment:
    """One coordinator process."""

    def __init__(self, folder: Path, *, on_status: OnStatus | None = None) -> None:
        """Args:
            folder: made by `create_coordinator`.
            on_status: called after every change.
        Raises:
            ConfigError, StoreError: the folder is not complete, or its certificate has ended.
        """
        self.folder = Path(folder)
        self.settings = read_coordinator(self.folder)
        self.status = Status()
        self.stop = threading.Event()
        self._on_status = on_status or (lambda _: None)
        self._key = IdentityKey.load(self.folder / IDENTITY_FILE)
        self._tls = TlsFiles.in_folder(self.folder)
        self.status.certificate_days = days_left(self._tls.certificate)
        if self.status.certificate_days <= 0:
            raise StoreError(
                f"{self._tls.certificate}: ended {-self.status.certificate_days:.0f} days ago; renew it with "
                "fedrec coordinator renew"
            )

    def run(self) -> Path:
        """Run the run that is not finished, or a new one; its directory.

        Raises:
            TooFewShops, ProtocolError: too few shops took part, or `stop` was set; started again it goes on.
        """
        run_dir, offer = self._open_run()
        terms, model, public = offer.read_terms(), offer.read_model(), offer.public_inputs()
        enrolments = read_enrolments(self.folder)
        self._show(
            run_id=terms.run_id,
            guarantee=terms.guarantee,
            roster=list(terms.roster),
            fingerprint=roster_fingerprint(offer.keys()),
            rounds_planned=len(terms.schedule),
        )
        if missing := [shop for shop in terms.roster if shop not in enrolments]:
            raise ConfigError(
                f"the unfinished run's shop {missing[0]!r} is no longer enrolled: delete "
                f"{self.folder / CURRENT_FILE} to begin a new run without it"
            )
        fleet = Fleet({shop: enrolments[shop].node_key.encode() for shop in terms.roster})
        address, tls = self.settings.address, self._tls
        most_lines = max(MOST_LINES, 4 * len(terms.roster))  # they may all be behind one proxy
        listening: dict[str, Any] = {"host": address.host, "port": address.port, "most_lines": most_lines}
        with serve(fleet_app(fleet), **listening, certificate=tls.certificate, key=tls.key):
            try:
                state = self._rounds(fleet, run_dir, offer, model, public, terms)
                self._show(phase="handing out the model")
                hand_out(fleet, terms.run_id, state, self.settings.rounds, self.stop)
            except FedrecError as error:
                self._show(phase="failed", last_error=" ".join(str(error).split()))
                raise
            (self.folder / CURRENT_FILE).unlink(missing_ok=True)
            self._show(phase="finished")
        return run_dir

    def _open_run(self) -> tuple[Path, Offer]:
        """The run that was begun and not finished, else a new one."""
        current = self.folder / CURRENT_FILE
        if current.exists():
            run_dir = self.folder / RUNS_FOLDER / current.read_text().strip()
            try:
                data = (run_dir / OFFER_FILE).read_bytes()
            except OSError as error:
                raise StoreError(f"{run_dir}: the run named in {current} cannot be read ({error.strerror})") from error
            return run_dir, Offer.read(data, self._key.public)
        now = datetime.datetime.now(datetime.UTC)
        run_id = f"{self.settings.name}-{now.strftime('%Y%m%dT%H%M%SZ')}-{secrets.token_hex(3)}"
        offer = make_offer(self.settings, read_enrolments(self.folder), run_id)
        run_dir = self.folder / RUNS_FOLDER / run_id
        run_dir.mkdir(parents=True)
        write_atomically(run_dir / OFFER_FILE, offer.sign(self._key))
        write_atomically(current, run_id.encode())
        return run_dir, offer

    def _rounds(
        self,
        fleet: Fleet,
        run_dir: Path,
        offer: Offer,
        model: Recommender,
        public: PublicInputs,
        terms: Terms,
    ) -> State:
        coordinator = Coordinator(model, public, terms)
        checkpoints = Checkpoints(run_dir / "checkpoint.safetensors")
        inbox = Inbox(run_dir / "inbox")
        is_resumed = checkpoints.resume(coordinator) or inbox.setup() is not None
        book, deadline_s = AnchorBook(self.folder / HEADS_FILE, self._key), self.settings.rounds.deadline_s
        anchors = _Anchors(fleet, terms, offer, book, run_dir, self.stop, min(_SHORT_S, deadline_s))
        run = ServerRun(
            coordinator,
            checkpoints,
            deadline_s=deadline_s,
            stop=self.stop,
            inbox=inbox,
            patience_s=self.settings.rounds.patience_s,
            greet=_Greeter((run_dir / OFFER_FILE).read_bytes(), anchors),
        )

        def on_round(record: RoundRecord, _: State) -> None:
            write_rounds(run_dir, run)
            anchors.exchange(anchors.greeted)
            self._show(
                round=record.index + 1,
                seconds=record.seconds,
                bytes_up=record.bytes_up,
                bytes_down=record.bytes_down,
                survivors=record.shops,
                online=list(fleet.online()),
            )

        run.on_round = on_round
        self._show(phase="waiting for shops", round=coordinator.index)
        self._wait(fleet, terms, min(self.settings.rounds.start_s, BACK_S) if is_resumed else None)
        self._show(phase="rounds", online=list(fleet.online()))
        run_rounds(run, fleet.grid(), fleet.nodes)
        write_shared(run_dir, coordinator.state)
        anchors.exchange(anchors.greeted)
        return coordinator.state

    def _wait(self, fleet: Fleet, terms: Terms, back_s: float | None) -> None:
        """All shops, or enough of them: after ``back_s`` in a run that was begun, else at the end of ``start_s``."""
        start_s = self.settings.rounds.start_s
        try:
            fleet.wait_for(len(terms.roster), deadline_s=start_s if back_s is None else back_s, stop=self.stop)
        except ProtocolError as error:
            if back_s is not None and not self.stop.is_set():
                fleet.wait_for(terms.min_shops, deadline_s=start_s, stop=self.stop)
            if self.stop.is_set() or len(fleet.online()) < terms.min_shops:
                raise TooFewShops(str(error)) from error
            _log.warning("beginning without all shops: %s", error)

    def _show(self, **changes: Any) -> None:
        for name, value in changes.items():
            setattr(self.status, name, value)
        write_atomically(self.folder / STATUS_FILE, json.dumps(asdict(self.status)).encode())
        self._on_status(self.status)


def hand_out(fleet: Fleet, run_id: str, state: State, rounds: RoundsSection, stop: threading.Event) -> set[str]:
    """Give every shop the model; one that is away gets it when it comes back.

    Args:
        state: the final shared arrays.
        rounds: ``deadline_s`` for one answer, ``patience_s`` for shops that are away.
    Returns:
        Shops that did not come back.
    Raises:
        ProtocolError: ``stop`` was set while one was answering.
    """
    content, give_up_at, waiting = (
        model_to_record(run_id, state),
        time.monotonic() + rounds.patience_s,
        set(fleet.nodes),
    )
    while True:
        here = sorted(waiting.intersection(fleet.online()))
        messages = {shop: Message(content, fleet.nodes[shop], MODEL_MESSAGE) for shop in here}
        for reply in exchange(fleet.grid(), messages, deadline_s=rounds.deadline_s, stop=stop, read=bytes_from_record):
            if reply.refusal:
                _log.warning("shop %s did not take the model: %s", reply.shop, reply.refusal)
            if reply.refusal or reply.data is not None:
                waiting.discard(reply.shop)
        if not waiting or time.monotonic() > give_up_at or stop.wait(_AWAY_S):
            break
    for shop in sorted(waiting):
        _log.warning("shop %s did not take the model: not connected", shop)
    return waiting


@dataclass(repr=False)
class _Anchors:
    """The exchange of ledger heads: each shop's with the coordinator and with its peer, through the coordinator."""

    fleet: Fleet
    terms: Terms
    offer: Offer
    book: AnchorBook
    run_dir: Path
    stop: threading.Event
    deadline_s: float
    greeted: set[str] = field(default_factory=set)
    refused: set[str] = field(default_factory=set)

    def exchange(self, shops: set[str]) -> set[str]:
        """Give shops what is kept of their ledgers, take their heads; who answered well. ``refused``: who said no."""
        self.refused = set()
        if self.terms.privacy is None:
            return set(shops)
        keys, roster = self.offer.keys(), sorted(self.terms.roster)
        messages, given = {}, dict[str, list[SignedHead]]()
        for shop in sorted(shops):
            peer = peer_of(shop, roster)
            kept = (*self.book.receipts(shop), *(self._of_peer(shop, keys[peer]) if peer else ()))
            receipts = [one.to_bytes().hex() for one in kept if _is_signed(one.signed, keys[shop])]
            ward = next((name for name in roster if peer_of(name, roster) == shop), None)
            given[shop] = [one for one in self.book.signed_heads(ward) if _is_signed(one, keys[ward])] if ward else []
            asked = json.dumps({"receipts": receipts, "heads": [one.to_json() for one in given[shop]]}).encode()
            messages[shop] = Message(bytes_to_record(asked), self.fleet.nodes[shop], ANCHOR_MESSAGE)
        answered = set()
        for reply in self.ask(messages, _most_answer(max(given.values(), key=len, default=[]))):
            if reply.data is None:
                _log.warning("shop %s gave no ledger head: %s", reply.shop, reply.refusal or "not connected")
                self.refused |= {reply.shop} if reply.refusal else set()
                continue
            try:
                if len(reply.data) > _most_answer(given[reply.shop]):
                    raise BadMessage(f"{len(reply.data)} bytes in answer to {len(given[reply.shop])} heads")
                answer = json.loads(reply.data)
                if answer["head"] is None and self.book.signed_heads(reply.shop):
                    raise LedgerBehind("it begins anew, and was further: bring the old ledger.sqlite along")
                if answer["head"] is not None:
                    signed = SignedHead.from_json(answer["head"])
                    if signed.head.shop != reply.shop:
                        raise BadMessage(f"a ledger head of {signed.head.shop!r} from shop {reply.shop!r}")
                    self.book.countersign(signed, keys[reply.shop])
                self._keep_peer(answer["receipts"], given[reply.shop], keys, reply.shop)
                answered.add(reply.shop)
            except StoreError:  # this machine's own disk: no fault of the shop
                raise
            except (FedrecError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
                _log.warning("shop %s: its ledger head is refused: %s", reply.shop, error)
                self.refused.add(reply.shop)
        return answered

    def ask(self, messages: Mapping[str, Message], most_bytes: int = 0) -> Iterator[Reply]:
        """One exchange before or between rounds."""
        limits: dict[str, Any] = {"deadline_s": self.deadline_s, "most_bytes": most_bytes}
        return exchange(self.fleet.grid(), messages, **limits, stop=self.stop, read=bytes_from_record)

    def _of_peer(self, shop: str, peer: PublicKey | None = None) -> list[Receipt]:
        """Receipts of neighbours for the shop's heads; of the one on this roster alone, if it is named."""
        path = self._peer_file(shop)
        if not path.exists():
            return []
        receipts = [Receipt.from_bytes(bytes.fromhex(one)) for one in json.loads(path.read_bytes())]
        return [one for one in receipts if peer is None or one.anchor == peer.fingerprint()]

    def _keep_peer(
        self, answer: list[str], given: list[SignedHead], keys: Mapping[str, PublicKey], signer: str
    ) -> None:
        """Keep a neighbour's receipts: one each, for the very heads that it was given."""
        if len(answer) > len(given):
            raise BadMessage(f"{len(answer)} receipts for {len(given)} ledger heads")
        receipts = [Receipt.from_bytes(bytes.fromhex(one)) for one in answer]
        for receipt in receipts:
            if receipt.signed not in given:
                raise BadMessage(f"a receipt of {signer!r} for a ledger head that it was not given")
            receipt.verify(keys[receipt.signed.head.shop], keys[signer])
        if receipts:
            shop = receipts[0].signed.head.shop
            kept = {(one.anchor, one.signed.head.place): one for one in (*receipts, *self._of_peer(shop))}
            found = sorted(one.to_bytes().hex() for one in kept.values())  # signatures may be made at will
            write_atomically(self._peer_file(shop), json.dumps(found).encode())

    def _peer_file(self, shop: str) -> Path:
        return self.run_dir.parent.parent / f"peer-heads-{shop}.json"


def _most_answer(heads: list[SignedHead]) -> int:
    """Bytes of an answer to so many heads: one head and a receipt each, in hexadecimal digits."""
    return _ANSWER_BYTES * (1 + len(heads))


def _is_signed(signed: SignedHead, key: PublicKey) -> bool:
    """Whether the shop's present key signed it: heads from before it got new keys count here alone, not with others."""
    try:
        signed.verify(key)
    except BadSignature:
        return False
    return True


@dataclass(repr=False)
class _Greeter:
    """Before a shop's first message of the run, and after it came back: the offer, then its ledger's heads."""

    offer: bytes
    anchors: _Anchors
    refused: set[str] = field(default_factory=set)

    def __call__(self, shops: set[str]) -> set[str]:
        """Which of them may be asked: they agreed to the run, and their ledgers are not behind."""
        fleet = self.anchors.fleet
        started = fleet.take_started()
        self.anchors.greeted -= started
        self.refused -= started  # what a person has changed there takes a new start
        if new := shops - self.anchors.greeted - self.refused:
            content = bytes_to_record(self.offer)
            messages = {shop: Message(content, fleet.nodes[shop], OFFER_MESSAGE) for shop in sorted(new)}
            agreed = set()
            for reply in self.anchors.ask(messages):
                if reply.refusal:
                    _log.warning("shop %s did not agree to the run: %s", reply.shop, reply.refusal)
                    self.refused.add(reply.shop)
                elif reply.data is not None:
                    agreed.add(reply.shop)
            self.anchors.greeted |= self.anchors.exchange(agreed) if agreed else set()
            self.refused |= self.anchors.refused & agreed
        return shops & self.anchors.greeted
