"""The coordinator's side for `flwr run .`; Flower's check wants a plain assignment."""

from fedrec.flower import server_app

app = server_app.app
