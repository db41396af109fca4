"""The only rooms that know Flower."""

import os

# Flower reads both when it is first imported; fedrec never phones home.
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"
