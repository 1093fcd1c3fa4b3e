"""The body of an answer: its bytes as they arrive, and what its headers say of it."""

from __future__ import annotations

import io
import json
from email.message import Message
from typing import Any

from resources.errors import Poison, Transient

NO_CONTENT = 204
"""There is no body to read; of a page it says that it has no records."""


class Body(io.RawIOBase):
    """A response's bytes as they arrive; one that ends before its announced length, or its compression's end, is Transient."""

    def __init__(self, response: Any, session: Any, place: str, *, decoded: bool):
        self._response = response
        self._session = session
        self._place = place
        self._decoded = decoded

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        from urllib3.exceptions import DecodeError, HTTPError

        try:
            data = self._response.raw.read(len(buffer), decode_content=self._decoded)
        except DecodeError as error:
            raise Poison("the body is not compressed as its headers say", place=self._place) from error
        except (HTTPError, OSError) as error:
            said = f"the connection broke before the end of the file ({type(error).__name__}); try again later"
            raise Transient(said, place=self._place) from None  # the cause holds the whole address, query included
        if not data and self._decoded and is_cut(self._response):
            said = "the connection broke before the end of the file (the compressed body has no end); try again later"
            raise Transient(said, place=self._place)
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._response.close()
            self._session.close()
        super().close()


def charset_of(response: Any) -> str:
    """The declared charset, else what JSON may be in: UTF-8, -16 or -32, as its first bytes tell (RFC 8259, RFC 4627)."""
    told = Message()
    told["Content-Type"] = response.headers.get("Content-Type", "")
    charset = str(told.get_param("charset", "") or "")
    return charset if charset and charset.lower() not in ("utf-8", "utf8") else json.detect_encoding(response.content)


def version_of(response: Any) -> str:
    """ETag, else the date of the last change, else ''."""
    return response.headers.get("ETag") or response.headers.get("Last-Modified") or ""


def is_cut(response: Any) -> bool:
    """Whether a body, read to its end, lacks that of its compression: urllib3 unpacks what there is, and only its decoder knows."""
    decoder = response.raw._decoder
    return (
        response.status_code != NO_CONTENT
        and decoder is not None
        and not all(_has_ended(part) for part in getattr(decoder, "_decoders", [decoder]))
    )


def _has_ended(decoder: Any) -> bool:
    """Also where something else than a further member follows a gzip member: no unpacker minds such padding."""
    from urllib3.response import GzipDecoderState

    return decoder._obj.eof or getattr(decoder, "_state", None) == GzipDecoderState.SWALLOW_DATA


def is_encoded(response: Any) -> bool:
    return response.headers.get("Content-Encoding", "identity").lower() != "identity"
