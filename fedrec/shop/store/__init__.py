"""What happens in the shop, kept: events, items, lists that were shown, keys; in SQLite or PostgreSQL."""
