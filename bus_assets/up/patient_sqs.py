"""kombu's SQS transport, which outlives a bad answer of SQS.

kombu 5.7 takes a 5xx or a lost connection for an empty *list* of messages and then asks that for its ``Messages`` like a mapping: the
worker ends with ``'list' object has no attribute 'get'``, whatever it drives.
"""

from typing import Any

from kombu.transport import SQS


class Channel(SQS.Channel):
    def _on_messages_ready(self, queue: Any, qname: Any, messages: Any) -> int:
        return super()._on_messages_ready(queue, qname, messages or {})


class Transport(SQS.Transport):
    Channel = Channel
