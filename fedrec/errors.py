"""Every error that fedrec raises on purpose: one tree, so that a caller can catch one class.

A message says what, the value, what is allowed and what to do. The command line prints it as one line and exits with 2.
"""


class FedrecError(Exception):
    """Root of all errors raised on purpose."""


class ConfigError(FedrecError):
    """A setting is unknown, missing or out of range."""


class NotPositiveDefinite(ConfigError):
    """Statistics that no linear model can be solved from with this regularisation."""


class DataError(FedrecError):
    """Events, items or a split cannot be used as given."""


class PrivacyError(FedrecError):
    """Something would leave a shop that must not."""


class BudgetExhausted(PrivacyError):
    """The privacy budget does not cover the release."""


class NotFinite(PrivacyError):
    """A contribution holds NaN or infinity, so no bound can be promised."""


class BadEpsilon(PrivacyError):
    """An epsilon that is no number above 0."""


class BadDelta(PrivacyError):
    """A delta outside (0, 1 / (10 x public shoppers)]."""


class BadAssumption(PrivacyError):
    """A public number that the guarantee rests on is out of range."""


class TooFewHonestShops(PrivacyError):
    """No honest shop's noise would be left: the fewest shops of a sum minus the colluders is below 1."""


class NoColluders(PrivacyError):
    """Noise shares that protect from nobody: fewer than one colluder assumed."""


class RoundRefused(PrivacyError):
    """A round that the run's mode or agreed schedule does not allow."""


class NoPrivateVariant(PrivacyError):
    """A model that cannot be trained under a privacy budget."""


class UnknownAccountant(PrivacyError):
    """An accountant that does not exist or must not be used."""


class AccountantsDisagree(PrivacyError):
    """Two ways to compute the same epsilon differ by more than their tolerance."""


class TooManyAborts(PrivacyError):
    """More repeated rounds than the shop's policy lets a run charge."""


class LedgerTooNew(PrivacyError):
    """A ledger written by a newer version."""


class LedgerTampered(PrivacyError):
    """A ledger that was cut, edited, or does not belong to this shop."""


class LedgerBehind(PrivacyError):
    """A ledger that lacks entries which others have seen: a restored backup or a cloned machine."""


class ClockWentBack(PrivacyError):
    """The machine's clock is behind the ledger's last entry."""


class BadSignature(PrivacyError):
    """A signature that does not belong to the bytes or the key."""


class ProtocolError(FedrecError):
    """A round cannot go on as agreed."""


class TooFewShops(ProtocolError):
    """Fewer shops answered than the plan demands."""


class BadMessage(ProtocolError):
    """Bytes that are not a message of this version, round and layout."""


class MessageTooLarge(BadMessage):
    """A message larger than the agreed run can need, or than the shop's policy allows; it was not read."""


class StoreError(FedrecError):
    """A file or database of fedrec's own cannot be read or written."""


class BrokenModel(FedrecError):
    """A model whose scores cannot be listed."""


class RequestRefused(FedrecError):
    """A shop's API refused a request.

    Attributes:
        status: of HTTP.
        errors: what was wrong where, (place, message) each.
    """

    def __init__(self, message: str, *, status: int, errors: tuple[tuple[str, str], ...] = ()) -> None:
        super().__init__(message)
        self.status, self.errors = status, errors


class ShopUnreachable(FedrecError):
    """A shop's API did not answer."""


_TEXT_CHARS = 400


def one_line(text: str) -> str:
    """Printable, on one line, and not too long for it: others' words may hold anything."""
    text = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return text if len(text) <= _TEXT_CHARS else f"{text[:_TEXT_CHARS]}..."
