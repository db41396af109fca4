"""The coordinator's side of secure aggregation: it relays, adds up, and opens the sum alone.

    invite -> add_advert ... -> adverts -> add_deal ... -> close_setup                   set-up, for a batch of rounds
    delivery -> add_opened ... -> leave_out (then once more from the invite)
    open_round -> add_upload ... -> survivors -> add_signature ... -> signatures -> add_shares ... -> total

A shop may fall out at every step. Memory is one vector, whatever the number of shops: uploads are added as they come,
in any order, since sums in a ring are exact. What comes twice is ignored, what comes late is refused. Secrets that come
back are checked against what the shops published at the set-up: the sum of the survivors, or an error, never another
sum. For what the coordinator cannot learn see `shop_session`; nothing here is trusted for it.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable

import numpy as np

from fedrec.errors import BadMessage, BadSignature, ProtocolError, TooFewShops
from fedrec.secure_aggregation import masks
from fedrec.secure_aggregation.coordinator_state import Round, Setup, Step, restored, stored
from fedrec.secure_aggregation.encoding import Batch
from fedrec.secure_aggregation.graph import Ring
from fedrec.secure_aggregation.messages import (
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
from fedrec.secure_aggregation.opening import Opening
from fedrec.secure_aggregation.parameters import Parameters
from fedrec.secure_aggregation.rules import (
    check_adverts,
    holders,
    ring_of,
    round_context,
    run_digest,
    setup_digest,
)


class CoordinatorSession:
    """The coordinator in one run. No clock, no input or output."""

    def __init__(self, parameters: Parameters, run_id: str) -> None:
        """Args:
        parameters: as the shops agreed to them.
        run_id: of the run.
        """
        self.parameters = parameters
        self._run = run_digest(parameters, run_id)
        self._setup: Setup | None = None
        self._ring: Ring | None = None
        self._round: Round | None = None
        self._left_out: set[int] = set()
        self._complaints: dict[int, set[int]] = {}

    @property
    def invited(self) -> tuple[str, ...]:
        """Who is asked for keys: all shops but those left out, in roster order."""
        return self._names(set(range(len(self.parameters.names))) - self._left_out)

    @property
    def left_out(self) -> tuple[str, ...]:
        """Shops that are left out of set-ups for what they dealt or said, in roster order."""
        return self._names(self._left_out)

    @property
    def setup_digest(self) -> bytes:
        """Of the set-up that is in use; empty without one."""
        return self._setup.digest if self._setup is not None else b""

    @property
    def advertised(self) -> tuple[str, ...]:
        """Shops that sent keys for the set-up under way, in roster order."""
        return self._names(self._open_setup().adverts)

    @property
    def participants(self) -> tuple[str, ...]:
        """Shops that dealt, in roster order: who can take part in the batch's rounds."""
        return self._names(self._closed_setup().deals)

    def covers(self, index: int) -> bool:
        """Whether the set-up in use has keys for a round that were not used."""
        if self._setup is None or not self._setup.digest or index not in self._setup.batch.rounds:
            return False
        return self._round is None or self._round.index < index

    def invite(self, first_round: int, num_rounds: int) -> bytes:
        """Begin a set-up for these rounds; the one before is over. One message for all shops."""
        number = secrets.randbits(62)  # a coordinator that forgot the last one must not meet its number again
        count = min(num_rounds, self.parameters.rounds_per_setup)
        self._setup, self._ring, self._round = Setup(Batch(number, first_round, count)), None, None
        return Invite(self._run, self._setup.batch).to_bytes()

    def add_advert(self, shop: str, data: bytes) -> bool:
        """Take a shop's keys; False when it has sent some before.

        Raises:
            BadMessage: not this shop's keys for this batch, keys that others have, or too late.
        """
        setup, place = self._open_setup(), self._place(shop)
        if place in setup.adverts:
            return False
        if place in self._left_out:
            raise BadMessage(f"keys of shop {shop!r}, which was left out")
        if setup.sent is not None:
            raise BadMessage(f"keys of shop {shop!r} after the others' were sent around")
        advert = Advert.from_bytes(data, self._run, self.parameters)
        if advert.place != place or advert.batch != setup.batch:
            raise BadMessage(f"keys of shop {shop!r} for another shop or batch")
        try:
            self.parameters.key_at(place).verify(advert.signed_bytes(), advert.signature)
        except BadSignature as error:
            raise BadMessage(f"keys that shop {shop!r} of the roster did not sign") from error
        keys = [advert.share_key, *advert.mask_keys]
        for key in keys:
            masks.check_public_key(key)
        others = {key for other in setup.adverts.values() for key in (other.share_key, *other.mask_keys)}
        if len(set(keys)) < len(keys) or others & set(keys):
            raise BadMessage(f"a key of shop {shop!r} that occurs twice")
        setup.adverts[place] = advert
        return True

    def adverts(self) -> bytes:
        """Everybody's keys, one message for all who sent theirs.

        Raises:
            TooFewShops: fewer than n_min.
            BadMessage: two shops sent the same key.
        """
        setup = self._open_setup()
        if setup.sent is None:
            sent = Adverts(self._run, setup.batch, tuple(setup.adverts[place] for place in sorted(setup.adverts)))
            check_adverts(sent, setup.batch, self.parameters)
            setup.sent, self._ring = sent, ring_of(sent, self.parameters)
        return setup.sent.to_bytes()

    def add_deal(self, shop: str, data: bytes) -> bool:
        """Take a shop's encrypted shares; False when it has sent some before.

        Raises:
            BadMessage: not this shop's, not for these keys, not for its neighbours, or too late.
        """
        setup, place = self._open_setup(), self._place(shop)
        if place in setup.deals:
            return False
        if setup.sent is None or setup.digest:
            raise BadMessage(f"shares of shop {shop!r} that are early or late")
        deal = Deal.from_bytes(data, self._run, self.parameters)
        if deal.place != place or place not in setup.adverts or deal.batch != setup.batch:
            raise BadMessage(f"shares of shop {shop!r} for another shop or batch, or without keys")
        if deal.adverts != setup.sent.digest or sorted(deal.boxes) != list(self._holders(place)):
            raise BadMessage(f"shares of shop {shop!r} for other keys or neighbours")
        try:
            self.parameters.key_at(place).verify(deal.signed_bytes(), deal.signature)
        except BadSignature as error:
            raise BadMessage(f"shares that shop {shop!r} of the roster did not sign") from error
        setup.deals[place] = deal
        return True

    def close_setup(self) -> bytes:
        """Who dealt takes part; returns the digest that the batch's plans must name.

        Raises:
            TooFewShops: fewer than n_min, or honest ones would not be connected.
        """
        setup = self._open_setup()
        if setup.sent is None:
            raise ProtocolError("a set-up is closed after keys and shares")
        if not setup.digest:
            self._check_set(setup.deals)
            digests = {place: deal.digest for place, deal in setup.deals.items()}
            setup.digest = setup_digest(self._run, setup.sent, digests)
        return setup.digest

    def delivery(self, shop: str) -> bytes:
        """What was dealt to one participant, and who dealt.

        Raises:
            BadMessage: the shop takes no part.
        """
        setup, place = self._closed_setup(), self._place(shop)
        if place not in setup.deals:
            raise BadMessage(f"shop {shop!r} did not deal: there is nothing for it")
        boxes = {dealer: setup.deals[dealer].boxes[place] for dealer in self._holders(place) if dealer in setup.deals}
        digests = {dealer: deal.digest for dealer, deal in setup.deals.items()}
        return Delivery(self._run, setup.batch, digests, boxes).to_bytes()

    def add_opened(self, shop: str, data: bytes) -> bool:
        """Take a participant's word on what was dealt to it; False when it has given it before.

        Raises:
            BadMessage: not this shop's, for another set-up, or about shops that dealt it nothing.
        """
        setup, place = self._closed_setup(), self._place(shop)
        if place in setup.complaints:
            return False
        given = Opened.from_bytes(data, self._run, self.parameters)
        if given.place != place or given.batch != setup.batch or place not in setup.deals:
            raise BadMessage(f"a word of shop {shop!r} on another shop's shares or batch, or of no participant")
        if not set(given.complaints) <= set(self._holders(place)) & setup.deals.keys():
            raise BadMessage(f"complaints of shop {shop!r} about shops that dealt it nothing")
        setup.complaints[place] = given.complaints
        return True

    def leave_out(self) -> dict[str, str]:
        """Whom the next set-up leaves out for what was dealt, and why; empty: this one will do.

        At most t shops are dishonest, in all set-ups together: a dealer of whom more than t complain has dealt wrong,
        one that complains of more than t has lied. Where fewer complain, it or they are at fault, and nobody can tell;
        those who complain then stay out of the rounds, by themselves. Only where too few would be left is the dealer
        left out instead, until somebody is found out: then it is asked again. Which shops take part is the
        coordinator's to say, and each checks the set: nothing here is trusted for secrecy.
        """
        setup, before = self._closed_setup(), self._left_out
        for place, dealers in setup.complaints.items():
            self._complaints.setdefault(place, set()).update(dealers)
        liars = {place for place, dealers in self._complaints.items() if len(dealers) > self.parameters.colluders}
        complain: dict[int, list[int]] = {}
        for place in self._complaints.keys() - liars:
            for dealer in self._complaints[place]:
                complain.setdefault(dealer, []).append(place)
        found = liars | {dealer for dealer, by in complain.items() if len(by) > self.parameters.colluders}
        unhappy = {place for place, dealers in setup.complaints.items() if dealers}
        if not found <= before:
            self._left_out = found
        elif not self._is_enough(setup.deals.keys() - unhappy):
            accused = {dealer for place in unhappy for dealer in setup.complaints[place]}
            self._left_out = before | (accused - unhappy or accused)
        reasons: dict[str, str] = {}
        for place in sorted(self._left_out - before):
            who = ", ".join(self._names(complain.get(place, ())))
            reasons[self.parameters.names[place]] = (
                "complains of more shops than can have dealt wrong"
                if place in liars
                else f"dealt shares of its keys that do not open at {who}{'' if place in found else ', or so they say'}"
            )
        return reasons

    def open_round(self, index: int, context: bytes, size: int, dtype: np.dtype) -> None:
        """Begin a round.

        Args:
            index: covered by the set-up.
            context: digest of its whole plan.
            size: number of values.
            dtype: <u4 or <u8.
        """
        if self._round is not None and self._round.index >= index:
            raise ProtocolError(f"round {index} was opened before: its masks are used once, set up again")
        if not self.covers(index):
            raise ProtocolError(f"round {index} without keys: its set-up is missing")
        bound = round_context(self._closed_setup().digest, context)
        self._round = Round(index, bound, np.zeros(size, dtype))

    def add_upload(self, shop: str, context: bytes, values: np.ndarray) -> bool:
        """Add a shop's masked vector; False when it has sent one before.

        Args:
            shop: its name.
            context: digest of the plan that it is for: a vector alone does not say so.
            values: as `open_round` has it.
        Raises:
            BadMessage: for another plan, of a shop outside the set-up, of another size or ring, or after the
                survivors were named.
        """
        current, place = self._open_round(), self._place(shop)
        if place in current.uploaded:
            return False
        if round_context(self._closed_setup().digest, context) != current.context:
            raise BadMessage(f"an upload of shop {shop!r} for another plan")
        if current.step != Step.UPLOADS or place not in self._closed_setup().deals:
            raise BadMessage(f"an upload of shop {shop!r}, which is late or not in this set-up")
        if values.dtype != current.total.dtype or values.shape != current.total.shape:
            raise BadMessage(f"an upload of shop {shop!r} of another size or ring")
        np.add(current.total, values, out=current.total)
        current.uploaded.add(place)
        return True

    def survivors(self) -> bytes:
        """Name the survivors, one message for all of them; no upload is taken afterwards.

        Raises:
            TooFewShops: fewer than n_min, or the honest ones of them would not be connected.
        """
        current = self._open_round()
        if current.survivors is None:
            current.step = Step.SIGNATURES
            self._check_set(current.uploaded)
            places = tuple(sorted(current.uploaded))
            current.survivors = Survivors(self._run, current.index, current.context, places)
        return current.survivors.to_bytes()

    @property
    def survivor_names(self) -> tuple[str, ...]:
        """Shops whose uploads are in the sum, in roster order."""
        return self._names(self._open_round().uploaded)

    def add_signature(self, shop: str, data: bytes) -> bool:
        """Take a survivor's signature; False when it has sent one before.

        Raises:
            BadMessage: over another set, by somebody else, or too late.
        """
        current, place = self._open_round(), self._place(shop)
        if place in current.signatures:
            return False
        if current.survivors is None or current.step != Step.SIGNATURES:
            raise BadMessage(f"a signature of shop {shop!r} that is early or late")
        given = Signature.from_bytes(data, self._run, self.parameters)
        if given.place != place or place not in current.uploaded or given.index != current.index:
            raise BadMessage(f"a signature of shop {shop!r} for another shop or round")
        if given.survivors != current.survivors.digest:
            raise BadMessage(f"a signature of shop {shop!r} over another set of survivors")
        try:
            self.parameters.key_at(place).verify(current.survivors.signed_bytes(), given.signature)
        except BadSignature as error:
            raise BadMessage(f"a signature that shop {shop!r} of the roster did not make") from error
        current.signatures[place] = given.signature
        return True

    def signatures(self) -> bytes:
        """The signatures, one message for all survivors.

        Raises:
            TooFewShops: fewer than T.
        """
        current = self._open_round()
        if current.survivors is None or current.step == Step.OVER:
            raise ProtocolError("no set of survivors was named, or the round is over")
        if len(current.signatures) < self.parameters.threshold:
            raise TooFewShops(
                f"round {current.index}: {len(current.signatures)} shops signed the set of survivors, "
                f"{self.parameters.threshold} are needed"
            )
        current.step = Step.SHARES
        return Signatures(self._run, current.index, current.survivors.digest, current.signatures).to_bytes()

    def add_shares(self, shop: str, data: bytes) -> bool:
        """Take a survivor's shares; False when it has sent some before.

        Raises:
            BadMessage: for another set, or of other secrets than the shop holds shares of.
        """
        current, place = self._open_round(), self._place(shop)
        if place in current.shares:
            return False
        if current.survivors is None or current.step != Step.SHARES or place not in current.uploaded:
            raise BadMessage(f"shares of shop {shop!r} that are early or late, or of no survivor")
        given = Shares.from_bytes(data, self._run, self.parameters)
        if given.place != place or given.index != current.index or given.survivors != current.survivors.digest:
            raise BadMessage(f"shares of shop {shop!r} for another shop, round or set of survivors")
        held = [dealer for dealer in self._holders(place) if dealer in self._closed_setup().deals]
        alive = [dealer for dealer in held if dealer in current.uploaded]
        if sorted(given.seeds) != alive or sorted(given.keys) != [one for one in held if one not in current.uploaded]:
            raise BadMessage(f"shares of shop {shop!r} of other secrets than it holds")
        current.shares[place] = given
        return True

    def total(self) -> np.ndarray:
        """The sum of the survivors' vectors, ring elements; the round is over.

        Raises:
            TooFewShops: too few shares of a secret came back; more may come, and it may be asked for again.
            ProtocolError: a secret is not the one that its shop published: somebody gave a wrong share.
        """
        setup, current = self._closed_setup(), self._open_round()
        if current.step != Step.SHARES:
            raise ProtocolError("the survivors have not signed, or the sum was taken")
        assert self._ring is not None
        opening = Opening(
            self.parameters,
            self._run,
            self._ring,
            adverts=setup.adverts,
            deals=setup.deals,
            offset=current.index - setup.batch.first_round,
            index=current.index,
            context=current.context,
            survivors=current.uploaded,
            shares=current.shares,
        )
        opening.take_masks_off(current.total)
        total, current.total, current.step = current.total, np.zeros(0, current.total.dtype), Step.OVER
        return total

    def to_bytes(self) -> bytes:
        """The set-up in use, for a coordinator that comes back between two rounds; holds nothing secret."""
        return stored(self._run, self._setup)

    def restore(self, data: bytes) -> None:
        """Go on from a stored set-up.

        Raises:
            StoreError: not a state of this run, or of another version.
        """
        self._setup, self._ring, self._round = restored(self._run, data, self.parameters), None, None
        if self._setup is not None and self._setup.sent is not None:
            self._ring = ring_of(self._setup.sent, self.parameters)

    def _holders(self, place: int) -> tuple[int, ...]:
        assert self._ring is not None
        return holders(self._ring, place, self.parameters)

    def _is_enough(self, places: Iterable[int]) -> bool:
        try:
            self._check_set(places)
        except TooFewShops:
            return False
        return True

    def _check_set(self, places: Iterable[int]) -> None:
        names = self._names(places)
        if len(names) < self.parameters.min_shops:
            raise TooFewShops(
                f"{len(names)} of {len(self.parameters.names)} shops answered, at least {self.parameters.min_shops} "
                "are needed"
            )
        assert self._ring is not None
        if not self._ring.keeps_connected(names, self.parameters.colluders):
            raise TooFewShops("too many neighbours dropped out: shops would refuse, since the sum could come apart")

    def _names(self, places: Iterable[int]) -> tuple[str, ...]:
        return tuple(self.parameters.names[place] for place in sorted(places))

    def _place(self, shop: str) -> int:
        place = self.parameters.place_of.get(shop)
        if place is None:
            raise BadMessage(f"shop {shop!r} is not on the roster of {len(self.parameters.names)} shops")
        return place

    def _open_setup(self) -> Setup:
        if self._setup is None:
            raise BadMessage("no set-up has begun: the message is late or early")
        return self._setup

    def _closed_setup(self) -> Setup:
        if self._setup is None or not self._setup.digest:
            raise ProtocolError("the set-up is not finished")
        return self._setup

    def _open_round(self) -> Round:
        if self._round is None:
            raise BadMessage("no round is open: the message is late or early")
        return self._round
