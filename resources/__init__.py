"""The outside systems a bus halts at: one module each, a small documented seam, called with plain arguments.

Nothing in here knows what a route is. Import from the module that you need (``from resources.files import LocalFiles``):
this file imports nothing, so that start-up pays only for what is used.
"""
