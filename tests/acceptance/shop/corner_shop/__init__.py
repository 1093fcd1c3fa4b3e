"""A repository of somebody else's, which only depends on bus-assets: its own routes, systems and data."""
