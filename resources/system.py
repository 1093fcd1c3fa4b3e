"""An outside system as a Dagster resource."""

from typing import Any

from dagster import ConfigurableResource
from pydantic import ValidationError

from resources.errors import Misconfigured
from resources.texts import nearest


class System(ConfigurableResource, extra="forbid", hide_input_in_errors=True):
    """Refuses an option that it does not have, with Misconfigured: Dagster passes over it, and its default holds instead.

    No error shows what was given to an option: it may be a secret.
    """

    def __init__(self, **options: Any):
        try:
            super().__init__(**options)
        except ValidationError as error:
            unknown = [str(one["loc"][0]) for one in error.errors(include_input=False) if one["type"] == "extra_forbidden"]
            if not unknown:
                raise
            said = f"{type(self).__name__} has no option {unknown[0]!r}; {nearest(unknown[0], type(self).model_fields)}"
            raise Misconfigured(said) from None
