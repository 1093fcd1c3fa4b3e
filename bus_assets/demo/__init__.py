"""The world in which the demo route drives: legacy files, a feed, a web service and a database, made from real data."""
