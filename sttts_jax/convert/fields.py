"""Reading fields of a config.json: defaults for what is absent, one sentence for what our model cannot be."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


class BadConfig(ValueError):
    """A config.json that describes a model we do not build."""


@dataclass(frozen=True)
class Fields:
    """The fields `values` of one part of a config.json; `where` names the part in messages."""

    where: str
    values: Mapping[str, Any]

    def checked(self) -> "Fields":
        """Itself, if it is a table at all."""
        if not isinstance(self.values, Mapping):
            raise BadConfig(f"{self.where} is no table of fields")
        return self

    def part(self, name: str) -> "Fields":
        """A part by its name; absent or null means all of its defaults."""
        values = self.values.get(name)
        return Fields(f"{self.where}: {name}", {} if values is None else values).checked()

    def get(self, defaults: Mapping[str, Any], name: str, *others: str) -> Any:
        """The field `name`, or one of its other spellings, or the default of `name`; of the default's kind."""
        default = defaults[name]
        spelt = next((x for x in (name, *others) if self.values.get(x) is not None), None)
        if spelt is None:
            return default
        value = self.values[spelt]
        if isinstance(default, float) and type(value) is int:
            value = float(value)
        kinds = (int, list, tuple) if isinstance(default, list) else type(default)
        if not isinstance(value, kinds) or isinstance(value, bool) or _odd(value):
            raise BadConfig(f"{self.where}.{spelt} is {value!r}; it must be like {default!r}")
        return value

    def only(self, name: str, wanted: Any, absent: Any = None) -> None:
        """Raises BadConfig unless the field is `wanted`; when there is none, `absent` counts, None is fine."""
        value = self.values.get(name)
        value = absent if value is None else value
        if value is not None and value != wanted:
            raise BadConfig(f"{self.where}.{name} is {value!r}; only {wanted!r} is built here")

    def zero(self, *names: str) -> None:
        """Raises BadConfig for rates that are not 0."""
        for name in names:
            if self.values.get(name):
                raise BadConfig(f"{self.where}.{name} is {self.values[name]!r}; only 0 is built here")


def _odd(value: Any) -> bool:
    """Whether a list holds anything but whole numbers."""
    return isinstance(value, list | tuple) and not all(type(x) is int for x in value)
