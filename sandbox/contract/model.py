"""The base of every model that crosses a boundary: frozen, strict about keys, no NaN; not the models themselves."""

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """An immutable value; unknown keys are errors and floats are finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, ser_json_inf_nan="strings")
