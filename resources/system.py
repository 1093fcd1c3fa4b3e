"""An outside system as a Dagster resource."""

from typing import Any

from dagster import ConfigurableResource

from resources.errors import Misconfigured
from resources.texts import nearest


class System(ConfigurableResource, hide_input_in_errors=True):
    """Refuses an option that it does not have, with Misconfigured: Dagster passes over it, and its default holds instead.

    No error shows what was given to an option: it may be a secret.
    """

    def __init__(self, **options: Any):
        known = type(self).model_fields
        for option in options:
            if option not in known:
                raise Misconfigured(f"{type(self).__name__} has no option {option!r}; {nearest(option, known)}")
        super().__init__(**options)
