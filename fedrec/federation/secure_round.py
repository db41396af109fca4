"""The exchanges of secure aggregation around a round, whatever carries the messages.

A round with secure aggregation is the round's upload and, around it, exchanges of small messages: three before the
first round of a batch (`set_up`), two after each upload (`unmask`). Each is an `Ask`: one message to each of some
shops, one answer from each that is there. Shops that do not answer have dropped out.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from fedrec.errors import BadMessage, TooFewShops
from fedrec.secure_aggregation.coordinator_session import CoordinatorSession
from fedrec.secure_aggregation.shop_session import ShopSession

_log = logging.getLogger("fedrec.coordinator")


class Step(StrEnum):
    """What a shop is asked for besides its upload."""

    KEYS = "keys"
    DEAL = "deal"
    CHECK = "check"
    SIGN = "sign"
    UNMASK = "unmask"


@dataclass(frozen=True, repr=False)
class Ask:
    """One exchange on the coordinator's side.

    Attributes:
        step: what is asked for.
        messages: bytes by shop.
        take: gives a shop's answer to the session; raises `BadMessage` for one that does not count.
    """

    step: Step
    messages: Mapping[str, bytes]
    take: Callable[[str, bytes], bool]


def set_up(session: CoordinatorSession, first_round: int, num_rounds: int) -> Iterator[Ask]:
    """Keys and shares for the next rounds; once more without a shop that is seen to have dealt wrong ones.

    That shares open is checked before the first upload, so that one whose do not costs nobody's budget. Shares that
    open and are of another secret are seen where the secret is needed: at the end of a round (`opening`).

    Raises:
        TooFewShops: fewer than n_min took part, or are left; the shops that were left out are named.
    """
    try:
        while True:
            invite = session.invite(first_round, num_rounds)
            yield Ask(Step.KEYS, dict.fromkeys(session.invited, invite), session.add_advert)
            adverts = session.adverts()
            yield Ask(Step.DEAL, dict.fromkeys(session.advertised, adverts), session.add_deal)
            session.close_setup()
            deliveries = {shop: session.delivery(shop) for shop in session.participants}
            yield Ask(Step.CHECK, deliveries, session.add_opened)
            if not (bad := session.leave_out()):
                return
            for shop, why in bad.items():
                _log.warning("shop %s %s: the set-up is repeated without it", shop, why)
    except TooFewShops as error:
        if not session.left_out:
            raise
        raise TooFewShops(f"{error}; left out for bad shares or complaints: {', '.join(session.left_out)}") from error


def unmask(session: CoordinatorSession) -> Iterator[Ask]:
    """Signatures over the set of survivors, then their shares; afterwards `CoordinatorSession.total` opens the sum.

    Raises:
        TooFewShops: fewer than n_min survived, or fewer than T signed.
    """
    survivors = session.survivors()
    names = session.survivor_names
    yield Ask(Step.SIGN, dict.fromkeys(names, survivors), session.add_signature)
    signatures = session.signatures()
    yield Ask(Step.UNMASK, dict.fromkeys(names, signatures), session.add_shares)


def shop_step(session: ShopSession, step: Step, data: bytes) -> bytes:
    """A shop's answer to one exchange."""
    answers = {
        Step.KEYS: session.advertise,
        Step.DEAL: session.deal,
        Step.CHECK: session.check,
        Step.SIGN: session.sign,
        Step.UNMASK: session.reveal,
    }
    return answers[step](data)


def ask_all(asks: Iterable[Ask], answer: Callable[[str, Step, bytes], bytes | None]) -> None:
    """Carry exchanges out where all shops are at hand; ``answer`` gives None for a shop that is not there."""
    for ask in asks:
        for shop, message in ask.messages.items():
            reply = answer(shop, ask.step, message)
            if reply is not None:
                try:
                    ask.take(shop, reply)
                except BadMessage:
                    continue  # as if it had not come: the shop has dropped out
