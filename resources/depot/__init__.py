"""The depot: the bus's own durable record. Trips, attempts, verdicts, publications, quarantine.

``resources.depot.store.Depot`` is the seam; ``entries`` are the values it takes and returns; ``resource`` wraps it for Dagster.
This file imports nothing: sqlalchemy costs 0.3 s, and who only names an entry should not pay for it.

    trip      driving ──→ delivered                             final
                 │ ──→ rehearsed
                 │ ──→ failed ──claim──→ driving                driven again, by a new attempt
                 └──→ stuck ──→ delivered                       published in a database but not in all: only rolls forward
                                                                (only trips of messages are also formed, departed and over: see mail)
    attempt   live (ended_at is null) ──→ published | failed | revoked | rehearsed
    row       held ⇄ released,  held ──→ discarded
"""
