"""fedrec: shops that may not share their customers' data train one recommender together.

`simulate` runs a whole comparison on one machine; it is loaded when it is first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedrec.simulation import simulate

__version__ = "0.1.0"
__all__ = ["__version__", "simulate"]


def __getattr__(name: str) -> Any:
    if name == "simulate":
        from fedrec.simulation import simulate

        return simulate
    raise AttributeError(f"module 'fedrec' has no attribute {name!r}")
