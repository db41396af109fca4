"""The shop's recommend API: the only room of a shop that knows HTTP."""
