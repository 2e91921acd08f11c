"""Frozen dataclasses from and to plain mappings and ConfigDicts, with errors that name the field by its path."""

import dataclasses
import numbers
import types
import typing
from collections.abc import Mapping
from typing import Any

from longformer_jax.errors import InputError


def check(condition: bool, field: str, value: object, expected: str) -> None:
    """Raises InputError unless `condition` holds."""
    if not condition:
        raise InputError(f"{field} is {value!r}; expected {expected}")


def build(cls: type, values: object, path: str) -> Any:
    """An instance of dataclass `cls` from a mapping; `path` is where it stands, "" at the root."""
    prefix = f"{path}." if path else ""
    if not isinstance(values, Mapping):
        raise InputError(f"{path} is {values!r}; expected a mapping")
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for key in values:
        check(key in fields, f"{prefix}{key}", values[key], f"no such key, but one of {', '.join(fields)}")
    for name, field in fields.items():
        if name not in values and field.default is field.default_factory is dataclasses.MISSING:
            raise InputError(f"{prefix}{name} is missing; expected a value")
    kinds = typing.get_type_hints(cls)
    arguments = {key: _convert(value, kinds[key], f"{prefix}{key}") for key, value in values.items()}
    try:
        return cls(**arguments)
    except InputError as error:
        raise InputError(f"{prefix}{error}") from None


def convert_fields(instance: Any) -> None:
    """Makes the fields of a frozen dataclass what their annotations say; raises InputError where one cannot be."""
    kinds = typing.get_type_hints(type(instance))
    for field in dataclasses.fields(instance):
        value = _convert(getattr(instance, field.name), kinds[field.name], field.name)
        object.__setattr__(instance, field.name, value)


def _convert(value: Any, kind: Any, path: str) -> Any:
    """`value` as an instance of the annotation `kind`; lists become tuples, integers floats where asked for."""
    if kind is Any or dataclasses.is_dataclass(kind) and isinstance(value, typing.cast(type, kind)):
        return value
    if isinstance(kind, types.UnionType):
        # A flag's None of a list is a list of it.
        if value in (None, [None], (None,)) and types.NoneType in typing.get_args(kind):
            return None
        of_lists = [option for option in typing.get_args(kind) if typing.get_origin(option) is tuple]
        kind = of_lists[0] if of_lists and isinstance(value, list | tuple) else typing.get_args(kind)[0]
    if dataclasses.is_dataclass(kind):
        return build(typing.cast(type, kind), value, path)
    if typing.get_origin(kind) is tuple:
        check(isinstance(value, list | tuple), path, value, "a list")
        item = typing.get_args(kind)[0]
        value = _words(value) if item is str else value
        return tuple(_convert(element, item, f"{path}[{i}]") for i, element in enumerate(value))
    number = {int: numbers.Integral, float: numbers.Real}.get(kind)
    if number and isinstance(value, number) and not isinstance(value, bool):  # NumPy's, too
        try:
            return kind(value)
        except OverflowError:
            raise InputError(f"{path} is {value}; expected a number that a float can be") from None
    check(
        type(value) is kind,
        path,
        value,
        {int: "an integer", float: "a number", bool: "true or false"}.get(kind, "text"),
    )
    return value


def _words(values: list[Any] | tuple[Any, ...]) -> list[Any]:
    """What a flag means by words with commas between them: ml_collections makes one text of them, or numbers."""
    words = values[0].split(",") if len(values) == 1 and isinstance(values[0], str) else values
    return [str(word) if type(word) is int else word for word in words]


def to_config_dict(value: Any) -> Any:
    """The ConfigDict of a dataclass; an optional field that is None keeps its type, so that a flag can set it."""
    from ml_collections import ConfigDict, FieldReference  # not above: dataclasses alone do not need it

    if isinstance(value, tuple) and value and dataclasses.is_dataclass(value[0]):
        return [to_config_dict(item) for item in value]
    if not dataclasses.is_dataclass(value):
        return value
    kinds = typing.get_type_hints(type(value))
    config = ConfigDict()
    for field in dataclasses.fields(value):
        item = to_config_dict(getattr(value, field.name))
        options = typing.get_args(kinds[field.name])
        if types.NoneType in options:
            item = FieldReference(item, field_type=typing.get_origin(options[0]) or options[0])
        config[field.name] = item
    return config
