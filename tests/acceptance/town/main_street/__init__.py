"""A code location for tests of ``bus up``: a job that ends at once, and one that goes on until it is told."""
