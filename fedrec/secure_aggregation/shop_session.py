"""A shop's side of secure aggregation: bytes in, bytes out, and masks on its vector.

    invite -> advertise -> adverts -> deal -> delivery -> check        set-up, for a batch of rounds
    delivery -> accept -> mask -> upload -> survivors -> sign -> signatures -> reveal -> (round over)      each round

Every step answers a repeated request with the same bytes, and refuses another one: one advert and one deal a set-up,
one masked vector, one set of survivors and one answer a round of it. **The state must be stored before an answer
leaves** (`to_bytes`), so that a shop that crashes and comes back cannot be made to answer twice.

What the coordinator learns is the sum over the survivors of one round, at least n_min of them, all with the same plan:

- A vector carries a mask of each neighbour in common and one of its own. The seeds of both are bound to the digest of
  the whole plan and of the set-up: masks of shops with other plans, rosters or keys do not cancel.
- Keys are signed by identities that the shop pinned, so that the coordinator can neither insert shops nor sit between.
- For each shop its neighbours give either shares of its own seed (it survived) or of its mask key (it dropped out),
  never both, and only for a set that T shops have signed (see `Parameters` for why there is one such set at most), that
  has n_min members, and that keeps the honest ones connected whoever colludes (see `graph`).
- Keys and seeds are made for one round each: what is opened in a round tells nothing about another's vectors. They and
  the shares of them are erased when the round is over, the key to the encrypted shares once these are opened.

What masks cannot hide is a difference: a round repeated under new keys (at most `MOST_REPEATS` times a run), or two
rounds of equal data, with different survivors differ by the vectors of those that fell out. Noise is there for that.

Source: Bonawitz et al. 2017 (figure 4, the version for active adversaries) and Bell et al. 2020 (section 3).
Deviations: mask keys and seeds are dealt for several rounds at once, fresh for each; the seeds of masks are bound to
the round's plan; seeds and mask keys are checked when they come back (commitments, public keys), so that a wrong share
ends a round rather than give a wrong sum; on the ring the connection of the survivors is checked rather than likely.
Python cannot promise that erased secrets leave the memory; they are dropped, and the stored state no longer has them.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from fedrec.errors import BadMessage, BadSignature, ConfigError, ProtocolError, TooFewShops
from fedrec.secure_aggregation import masks, secret_sharing
from fedrec.secure_aggregation.graph import Ring
from fedrec.secure_aggregation.keys import IdentityKey
from fedrec.secure_aggregation.messages import (
    DIGEST_BYTES,
    NONCE_BYTES,
    Advert,
    Adverts,
    Deal,
    Delivery,
    Invite,
    Opened,
    Shares,
    Signature,
    Signatures,
    Survivors,
)
from fedrec.secure_aggregation.parameters import Parameters
from fedrec.secure_aggregation.rules import (
    box_context,
    check_adverts,
    commitment,
    holders,
    pair_sign,
    ring_of,
    round_context,
    run_digest,
    seed_of_pair,
    self_seed,
    setup_digest,
    share_threshold,
)
from fedrec.secure_aggregation.shop_state import Past, ShopRound, ShopSetup, restored, stored

Randomness = Callable[[int], bytes]

MOST_REPEATS = 2
"""So many rounds, in all of a run, a shop masks again under new keys: a coordinator that crashed needs it, and two sums
of one round over different survivors differ by single shops' vectors. Where there is a ledger, each is charged too."""


class ShopSession:
    """One shop in one run. No clock, no input or output; see the module for the states and the guarantee."""

    def __init__(
        self,
        parameters: Parameters,
        name: str,
        identity: IdentityKey,
        run_id: str,
        *,
        randomness: Randomness = os.urandom,
    ) -> None:
        """Args:
        parameters: agreed and pinned by the shop.
        name: of the shop on the roster.
        identity: its Ed25519 key; the roster's.
        run_id: of the run.
        randomness: other than the operating system's for known-answer vectors only.
        """
        if parameters.place_of.get(name) is None:
            raise ConfigError(f"shop {name!r} is not on the roster of {len(parameters.names)} shops")
        self.place = parameters.place_of[name]
        if parameters.key_at(self.place) != identity.public:
            raise ConfigError(
                f"the roster gives shop {name!r} another key than its own {identity.public.fingerprint()}"
            )
        self.parameters = parameters
        self.name = name
        self._identity = identity
        self._run = run_digest(parameters, run_id)
        self._random = randomness
        self._setup: ShopSetup | None = None
        self._round: ShopRound | None = None
        self._past = Past()

    def __repr__(self) -> str:
        return f"ShopSession({self.name!r})"

    @property
    def setup_digest(self) -> bytes:
        """Of the set-up that was accepted last; empty before. A plan must name it."""
        return self._setup.digest if self._setup is not None else b""

    def advertise(self, invite: bytes) -> bytes:
        """Keys for a batch of rounds; secrets of the batch before are erased.

        Raises:
            BadMessage: not an invite of this run, or this batch's number with other rounds.
        """
        batch = Invite.from_bytes(invite, self._run, self.parameters).batch
        if self._setup is not None and batch == self._setup.batch:
            return self._setup.advert
        if self._setup is not None and batch.number == self._setup.batch.number:
            raise BadMessage(f"set-up {batch.number} for other rounds than before")
        share_key = self._random(masks.SEED_BYTES)
        mask_keys = {index: self._random(masks.SEED_BYTES) for index in batch.rounds}
        seeds = {index: self._random(masks.SEED_BYTES) for index in batch.rounds}
        public = tuple(masks.public_key(key) for key in mask_keys.values())
        advert = Advert(self._run, batch, self.place, masks.public_key(share_key), public)
        signed = advert.signed_bytes() + self._identity.sign(advert.signed_bytes())
        self._setup = ShopSetup(batch, share_key, mask_keys, seeds, advert=signed)
        self._round = None
        return signed

    def deal(self, adverts: bytes) -> bytes:
        """Shares of this shop's secrets for its neighbours.

        Raises:
            BadMessage: adverts of another batch, unsigned or changed, fewer than n_min, without this shop's own, with
                keys of low order, or other ones than before.
        """
        setup = self._open_setup()
        if setup.deal and adverts == setup.adverts:
            return setup.deal
        if setup.deal:
            raise BadMessage("other adverts of a set-up that was dealt")
        known = Adverts.from_bytes(adverts, self._run, self.parameters)
        check_adverts(known, setup.batch, self.parameters)
        if setup.advert not in [advert.to_bytes() for advert in known.adverts]:
            raise BadMessage("adverts without this shop's own")
        ring = ring_of(known, self.parameters)
        receivers = holders(ring, self.place, self.parameters)
        boxes = self._boxes(setup, known, receivers, share_threshold(ring, self.parameters))
        commitments = tuple(commitment(self._run, index, seed) for index, seed in setup.seeds.items())
        deal = Deal(self._run, setup.batch, self.place, known.digest, commitments, boxes)
        setup.adverts = adverts
        setup.deal = deal.signed_bytes() + self._identity.sign(deal.signed_bytes())
        return setup.deal

    def check(self, delivery: bytes) -> bytes:
        """Open what the neighbours dealt, and say so, or whose shares do not open: then nothing was accepted.

        Which shares open follows from keys and bytes that the coordinator has handed on; it says nothing else.

        Raises:
            BadMessage, TooFewShops: as `accept`, but for shares that do not open.
        """
        setup = self._open_setup()
        complaints = self._accept(setup, delivery)
        return Opened(self._run, setup.batch, self.place, complaints).to_bytes()

    def accept(self, delivery: bytes) -> bytes:
        """Open what the neighbours dealt.

        Returns:
            The digest of the set-up, which every plan of the batch must name.
        Raises:
            BadMessage: not a delivery for what this shop has dealt, or a neighbour's shares do not open.
            TooFewShops: fewer than n_min dealt, or the honest ones of them would not be connected.
        """
        setup = self._open_setup()
        if complaints := self._accept(setup, delivery):
            names = ", ".join(repr(self.parameters.names[place]) for place in complaints)
            raise BadMessage(f"shares of shop {names} that were not made for this one")
        return setup.digest

    def _accept(self, setup: ShopSetup, delivery: bytes) -> tuple[int, ...]:
        """Take a delivery; the dealers whose shares do not open, and then the state is as it was."""
        if not setup.deal:
            raise BadMessage("a delivery before this shop has dealt")
        given = Delivery.from_bytes(delivery, self._run, self.parameters)
        known = Adverts.from_bytes(setup.adverts, self._run, self.parameters)
        digest = setup_digest(self._run, known, given.deals)
        if setup.digest == digest:
            return ()
        if setup.digest:
            raise BadMessage("another delivery of a set-up that was accepted")
        own = hashlib.sha256(setup.deal).digest()
        advertised = {advert.place for advert in known.adverts}
        if given.batch != setup.batch or not given.deals.keys() <= advertised or given.deals.get(self.place) != own:
            raise BadMessage("a delivery of another batch, by shops without adverts, or without this shop's own deal")
        ring = ring_of(known, self.parameters)
        self._check_set(ring, tuple(given.deals))
        dealers = [place for place in holders(ring, self.place, self.parameters) if place in given.deals]
        if sorted(given.boxes) != sorted(dealers):
            raise BadMessage("a delivery without the shares of all neighbours who dealt, or with others")
        keys = {advert.place: advert.share_key for advert in known.adverts}
        opened = {dealer: self._open_box(setup, known, dealer, keys[dealer], given.boxes[dealer]) for dealer in dealers}
        if complaints := tuple(dealer for dealer in sorted(opened) if not opened[dealer]):
            return complaints
        setup.shares = {
            index: {dealer: shares[offset] for dealer, shares in opened.items()}
            for offset, index in enumerate(setup.batch.rounds)
        }
        setup.digest, setup.participants = digest, tuple(sorted(given.deals))
        # With this key whoever took the machine later could open recorded boxes, and so rounds that are over.
        setup.share_key = b""
        return ()

    def mask(self, index: int, context: bytes, values: np.ndarray) -> None:
        """Add this shop's masks of a round, in place. Secrets of rounds before are erased.

        Args:
            index: of the round.
            context: digest of its whole plan, (32,) bytes; the plan names `setup_digest`.
            values: <u4 or <u8, (num_values,), contiguous: the shop's noisy sum in the ring.
        Raises:
            ProtocolError: the round's masks were used on another vector or under another plan, or are erased; or after
                new set-ups the shop has masked rounds anew `MOST_REPEATS` times.
        Guarantee: see the module; a mask is used once.
        """
        setup = self._accepted()
        if len(context) != DIGEST_BYTES:
            raise BadMessage(f"a context of {len(context)} bytes: the digest of a plan has {DIGEST_BYTES}")
        if index not in setup.mask_keys:
            raise ProtocolError(f"round {index} has no keys in this set-up, or they are erased: it is over")
        context = round_context(setup.digest, context)
        if self._round is not None and self._round.index == index and self._round.context != context:
            raise ProtocolError(f"round {index} was masked under another plan: its masks are used once")
        known = Adverts.from_bytes(setup.adverts, self._run, self.parameters)
        names, ring = self.parameters.names, ring_of(known, self.parameters)
        others = {self.parameters.place_of[name] for name in ring.neighbours(names[self.place])}
        offset = index - setup.batch.first_round
        for advert in known.adverts:
            if advert.place in others and advert.place in setup.participants:
                seed = seed_of_pair(setup.mask_keys[index], advert.mask_keys[offset], context, self.place, advert.place)
                masks.add_mask(values, seed, sign=pair_sign(self.place, advert.place))
        masks.add_mask(values, self_seed(setup.seeds[index], context, self.place), sign=1)
        upload = hashlib.sha256(values.data).digest()
        if self._round is not None and self._round.index == index:
            if self._round.upload != upload:
                values.fill(0)
                raise ProtocolError(f"another vector for round {index}: its masks are used once")
            return
        if index <= self._past.highest and self._past.repeats >= MOST_REPEATS:
            values.fill(0)
            raise ProtocolError(f"round {index} again: this shop has masked {MOST_REPEATS} rounds anew, which is all")
        self._past.repeats += index <= self._past.highest
        self._past.highest = max(self._past.highest, index)
        self.forget_before(index)
        self._round = ShopRound(index, context, upload)

    def sign(self, survivors: bytes) -> bytes:
        """Agree to a set of survivors; the one set of this round.

        Raises:
            BadMessage: of another round, plan or set-up, without this shop, or with shops that did not deal.
            TooFewShops: fewer than n_min, or the honest ones of them would not be connected.
            ProtocolError: this shop has signed another set.
        """
        setup, current = self._accepted(), self._open_round()
        given = Survivors.from_bytes(survivors, self._run, self.parameters)
        if (given.index, given.context) != (current.index, current.context):
            raise BadMessage(f"survivors of another round, plan or set-up than round {current.index}, which is open")
        if current.survivors and current.survivors != survivors:
            raise ProtocolError(f"another set of survivors of round {current.index}: a shop signs one")
        if self.place not in given.places or not set(given.places) <= set(setup.participants):
            raise BadMessage("survivors without this shop, or with shops that are not in the round")
        known = Adverts.from_bytes(setup.adverts, self._run, self.parameters)
        self._check_set(ring_of(known, self.parameters), given.places)
        current.survivors = survivors
        signature = self._identity.sign(given.signed_bytes())
        return Signature(self._run, given.index, self.place, given.digest, signature).to_bytes()

    def reveal(self, signatures: bytes) -> bytes:
        """This shop's shares of the round, once T survivors have signed the set that it signed; the round is over.

        Raises:
            BadMessage: signatures over another set, by shops that are not in it, or that do not hold.
            TooFewShops: fewer than T.
            ProtocolError: this shop has signed no set.
        """
        setup, current = self._accepted(), self._open_round()
        if not current.survivors:
            raise ProtocolError(f"signatures of round {current.index}, whose survivors this shop has not signed")
        chosen = Survivors.from_bytes(current.survivors, self._run, self.parameters)
        given = Signatures.from_bytes(signatures, self._run, self.parameters)
        if given.index != chosen.index or given.survivors != chosen.digest:
            raise BadMessage("signatures over another set of survivors than this shop has signed")
        if not given.signatures.keys() <= set(chosen.places):
            raise BadMessage("signatures by shops that are not among the survivors")
        for place, signature in given.signatures.items():
            try:
                self.parameters.key_at(place).verify(chosen.signed_bytes(), signature)
            except BadSignature as error:
                raise BadMessage(f"a signature that shop {self.parameters.names[place]!r} did not make") from error
        if len(given.signatures) < self.parameters.threshold:
            raise TooFewShops(f"{len(given.signatures)} signatures of the {self.parameters.threshold} that are needed")
        if not current.answer:
            alive = set(chosen.places)
            held = setup.shares[current.index]
            seeds = {place: seed for place, (_, seed) in held.items() if place in alive}
            keys = {place: key for place, (key, _) in held.items() if place not in alive}
            current.answer = Shares(self._run, current.index, self.place, given.survivors, seeds, keys).to_bytes()
            self.forget_before(current.index + 1)
        return current.answer

    def forget_before(self, index: int) -> None:
        """Erase keys, seeds and shares of all rounds before this one."""
        if self._setup is None:
            return
        for secrets in (self._setup.mask_keys, self._setup.seeds, self._setup.shares):
            for past in [one for one in secrets if one < index]:
                del secrets[past]

    def to_bytes(self) -> bytes:
        """The state for the shop's own store; holds secrets of the rounds that are not over."""
        return stored(self._run, self._setup, self._round, self._past)

    def restore(self, data: bytes, *, is_latest: bool = True) -> None:
        """Go on from a stored state; where it is not the latest, without its keys, which may have been used since.

        Raises:
            StoreError: not a state of this run, or of another version.
        """
        self._setup, self._round, self._past = restored(self._run, data)
        if not is_latest:
            self._setup = self._round = None
            self._past.repeats += 1  # a round that it no longer knows may be masked again

    def _boxes(self, setup: ShopSetup, known: Adverts, receivers: tuple[int, ...], threshold: int) -> dict[int, bytes]:
        """Shares of every round's mask key and seed, encrypted to each receiver (this shop included)."""
        points = [place + 1 for place in receivers]
        opened: dict[int, list[bytes]] = {place: [] for place in receivers}
        for index in setup.batch.rounds:
            for secret in (setup.mask_keys[index], setup.seeds[index]):
                shares = secret_sharing.split(secret, threshold, points, random_element=self._element)
                for place, share in zip(receivers, shares, strict=True):
                    opened[place].append(share)
        keys = {advert.place: advert.share_key for advert in known.adverts}
        boxes = {}
        for place in receivers:
            context = box_context(self._run, known.digest, dealer=self.place, receiver=place)
            key = masks.pair_seed(setup.share_key, keys[place], "fedrec shares", context)
            nonce = self._random(NONCE_BYTES)
            boxes[place] = nonce + ChaCha20Poly1305(key).encrypt(nonce, b"".join(opened[place]), context)
        return boxes

    def _open_box(
        self, setup: ShopSetup, known: Adverts, dealer: int, public: bytes, box: bytes
    ) -> list[tuple[bytes, bytes]]:
        """For each round the shares of the dealer's mask key and of its seed; none where they are no such shares."""
        context = box_context(self._run, known.digest, dealer=dealer, receiver=self.place)
        key = masks.pair_seed(setup.share_key, public, "fedrec shares", context)
        try:
            opened = ChaCha20Poly1305(key).decrypt(box[:NONCE_BYTES], box[NONCE_BYTES:], context)
        except InvalidTag:
            return []
        size = secret_sharing.SHARE_BYTES
        shares = [opened[at : at + size] for at in range(0, len(opened), size)]
        if any(int.from_bytes(share, "little") >= secret_sharing.PRIME for share in shares):
            return []
        return list(zip(shares[::2], shares[1::2], strict=True))

    def _element(self) -> int:
        """A uniform element of the sharing's field, by rejection."""
        while True:
            value = int.from_bytes(self._random(secret_sharing.SHARE_BYTES), "little") & (2**257 - 1)
            if value < secret_sharing.PRIME:
                return value

    def _check_set(self, ring: Ring, places: tuple[int, ...]) -> None:
        if len(places) < self.parameters.min_shops:
            raise TooFewShops(f"{len(places)} shops in a sum that needs {self.parameters.min_shops}")
        names = {self.parameters.names[place] for place in places}
        if not ring.keeps_connected(names, self.parameters.colluders):
            raise TooFewShops("too many neighbours dropped out: the sum could come apart into sums of fewer shops")

    def _open_setup(self) -> ShopSetup:
        if self._setup is None:
            raise BadMessage("no set-up has begun")
        return self._setup

    def _accepted(self) -> ShopSetup:
        if self._setup is None or not self._setup.digest:
            raise ProtocolError("no set-up was accepted: there are no keys to mask with")
        return self._setup

    def _open_round(self) -> ShopRound:
        if self._round is None:
            raise ProtocolError("no round is open: this shop has masked nothing")
        return self._round
