"""The shop's side for `flwr run .`; Flower's check wants a plain assignment."""

from fedrec.flower import client_app

app = client_app.app
