"""The API's description as a file: ``python -m fedrec.shop.api.openapi_file > docs/openapi.json``."""

from __future__ import annotations

import json

from fedrec.shop.api.app import make_app


def openapi_text() -> str:
    """What ``/openapi.json`` answers, with a line for each change to be seen in."""
    return json.dumps(make_app({}).openapi(), indent=1, sort_keys=True, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    print(openapi_text(), end="")
