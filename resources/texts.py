"""Texts for people."""


def shortened(text: str, characters: int) -> str:
    """``text`` if it has at most so many ``characters``, else its beginning and '…'."""
    return text if len(text) <= characters else f"{text[: characters - 1]}…"
