"""Every error that fedrec raises on purpose: one tree, so that a caller can catch one class.

A message says what, the value, what is allowed and what to do. The command line prints it as one line and exits with 2.
"""


class FedrecError(Exception):
    """Root of all errors raised on purpose."""


class ConfigError(FedrecError):
    """A setting is unknown, missing or out of range."""


class DataError(FedrecError):
    """Events, items or a split cannot be used as given."""


class PrivacyError(FedrecError):
    """Something would leave a shop that must not."""


class BudgetExhausted(PrivacyError):
    """The privacy budget does not cover the release."""


class NotFinite(PrivacyError):
    """A contribution holds NaN or infinity, so no bound can be promised."""


class ProtocolError(FedrecError):
    """A round cannot go on as agreed."""


class TooFewShops(ProtocolError):
    """Fewer shops answered than the plan demands."""


class BadMessage(ProtocolError):
    """Bytes that are not a message of this version, round and layout."""


class StoreError(FedrecError):
    """A file or database of fedrec's own cannot be read or written."""
