"""What can go wrong, sorted by what to do next.

    BusError
    ├── Transient       the same call may succeed later           → retried with back-off, same trip
    │   └── Locked          somebody else holds a lock of a database
    ├── Poison          this data will never pass                 → quarantined or the trip fails, never retried blindly
    │   ├── Gone            what a message names is there no more → as Poison; only the sender can help
    │   └── ChecksFailed    a gate said no                        → the trip fails visibly, nothing is published
    ├── Misconfigured   a person must change something            → the trip fails visibly, not retried
    │   └── Missing         what is asked for by name is not there    → as Misconfigured; where messages name it, each says its own
    └── Refused         publishing would break a promise          → nothing was written; says which and what to do

Every foreign exception (botocore, psycopg, lxml, requests, …) is wrapped in one of these at the seam where it arises.
Messages say what was found, what was expected and what to do next, and never carry a secret or a ``sensitive`` value.
"""

from __future__ import annotations


class BusError(Exception):
    """Root of all errors. ``place`` is where in the source it happened: ``orders.csv, line 17``.

    ``route`` and ``stop`` are filled in by the platform on the way up; a resource knows only the place. ``culprit`` is the depot's
    number of the message whose fault it is, where one is known.
    """

    culprit: int | None = None

    def __init__(self, message: str, *, place: str | None = None, route: str | None = None, stop: str | None = None):
        super().__init__(message)
        self.message = message
        self.place = place
        self.route = route
        self.stop = stop

    def at(self, *, route: str | None = None, stop: str | None = None, place: str | None = None) -> BusError:
        """The same error, told where it happened; what is known already is kept."""
        self.route = self.route or route
        self.stop = self.stop or stop
        self.place = self.place or place
        return self

    def __str__(self) -> str:
        where = [
            f"route '{self.route}'" if self.route else "",
            f"stop '{self.stop}'" if self.stop else "",
            f"message {self.culprit}" if self.culprit else "",
            self.place or "",
        ]
        prefix = ", ".join(part for part in where if part)
        return f"{prefix}: {self.message}" if prefix else self.message


class Transient(BusError):
    """The same call may succeed later: a lock, a lost connection, a 503."""


class Locked(Transient):
    """Somebody else holds a lock of a database for longer than is waited for it."""


class Poison(BusError):
    """This data will never pass, however often it is tried: a cut gzip, broken XML, a wrong encoding."""


class Gone(Poison):
    """The object that a message names, or the version of it, is not there any more: deleted or expired."""


class ChecksFailed(Poison):
    """A gate said no: more rows were rejected than the contract allows, or a check that blocks found something."""


class Misconfigured(BusError, ValueError):
    """A person must change something: a declaration, a credential, a missing file or column."""


class Missing(Misconfigured):
    """What is asked for by its name is not there: the name is wrong, or the place in which it is looked for.

    ``asked`` tells two of them apart that read alike; it is never shown.
    """

    asked: str | None = None


class Refused(BusError):
    """Publishing would break a promise (verdict missing, bytes altered, attempt revoked); nothing was written."""
