"""A code location whose trips are started by messages."""
