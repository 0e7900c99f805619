"""What the records of commands beside `verify` have in common: nothing unknown, nothing changed, infinity as text."""

from pydantic import BaseModel, ConfigDict


class Model(BaseModel):
    """A part of such a record."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")
