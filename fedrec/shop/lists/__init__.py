"""The lists a shop shows, made from a served model, its catalogue and its trends; pure, nothing is read but models."""
