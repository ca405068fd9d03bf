"""Values across the wire: JSON in, validated objects to the handler, validated results back to JSON.

Pydantic models, dataclasses, TypedDicts and any other type pydantic knows are validated both ways; `dict`, `Any` and no annotation
pass JSON as it is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final, Literal, Protocol, get_origin

from pydantic import BaseModel, ConfigDict, PydanticSchemaGenerationError, PydanticUserError, TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError, from_json, to_json

from handlers_sdk.errors import ConfigError, DispatcherError, IllegalTaskOutputError, InvalidInputError

Part = Literal["input", "output"]

_FIELDS_NAMED: Final = 5
_OBJECTS: Final[tuple[Any, ...]] = (dict, Mapping)


class EmptyModel(BaseModel):
    """The input of a task that declares none: any JSON object, its members as attributes."""

    model_config = ConfigDict(extra="allow")


class Codec(Protocol):
    """How values of one type travel. What it refuses is an InvalidInputError or an IllegalTaskOutputError, by the part the value plays."""

    def parse(self, value: Any, part: Part = "input") -> Any:
        """Parsed JSON to a value of the type."""

    def dump(self, value: Any, part: Part = "output") -> bytes:
        """A value of the type, or something valid as one, to JSON text."""

    def schema(self) -> dict[str, Any] | None:
        """The JSON Schema of the type, None when it says nothing."""


def codec_for(annotation: Any) -> Codec:
    """The codec of a type; ConfigError when pydantic cannot make sense of it."""
    if annotation in (Any, None, type(None)):
        return JsonCodec()
    if annotation in _OBJECTS or (get_origin(annotation) in _OBJECTS and annotation.__args__ == (str, Any)):
        return ObjectCodec()
    try:
        return TypedCodec(annotation)
    except (PydanticSchemaGenerationError, PydanticUserError) as error:
        raise ConfigError(f"{annotation!r} cannot be validated: {error.message}") from None


class JsonCodec:
    """JSON as it is."""

    def parse(self, value: Any, part: Part = "input") -> Any:
        """The value itself."""
        return value

    def dump(self, value: Any, part: Part = "output") -> bytes:
        """JSON text of plain values, and of the models, dataclasses, dates and UUIDs inside them."""
        return dump_json(value, part)

    def schema(self) -> dict[str, Any] | None:
        """Nothing is promised."""
        return None


class ObjectCodec(JsonCodec):
    """Any JSON object, as a dict."""

    def parse(self, value: Any, part: Part = "input") -> Any:
        """The dict; anything else is refused."""
        if not isinstance(value, dict):
            raise _refusal(part, f"{part}: a JSON object is required, not {_json_type(value)}")
        return value

    def dump(self, value: Any, part: Part = "output") -> bytes:
        """JSON text of a mapping; anything else is refused."""
        if not isinstance(value, Mapping):
            raise _refusal(part, f"{part}: a mapping is required, not {type(value).__name__}")
        return dump_json(value, part)


class TypedCodec:
    """A type pydantic validates. An instance of the type is taken as valid; its fields are still checked when written."""

    __slots__ = ("_adapter", "_to_json", "_validate")

    def __init__(self, annotation: Any) -> None:
        self._adapter: TypeAdapter[Any] = TypeAdapter(annotation)
        self._validate = self._adapter.validator.validate_python
        self._to_json = self._adapter.serializer.to_json

    def parse(self, value: Any, part: Part = "input") -> Any:
        """The validated object; the error names each field."""
        try:
            return self._validate(value)
        except ValidationError as error:
            raise _refusal(part, _named(part, error)) from None

    def dump(self, value: Any, part: Part = "output") -> bytes:
        """JSON text of the validated value; the error names each field."""
        try:
            text = self._to_json(self._validate(value), warnings="error", by_alias=True)
        except ValidationError as error:
            raise _refusal(part, _named(part, error)) from None
        except (PydanticSerializationError, ValueError) as error:
            raise _refusal(part, f"{part}: {error}") from None
        return _storable(text, part)

    def schema(self) -> dict[str, Any] | None:
        """JSON Schema, None for types that have none."""
        try:
            return self._adapter.json_schema()
        except PydanticUserError:
            return None


def parse_json(text: bytes) -> Any:
    """Parsed JSON; ValueError when it is not JSON."""
    return from_json(text, allow_inf_nan=False)


def dump_json(value: Any, part: Part = "output") -> bytes:
    """JSON text, UTF-8, that the dispatcher can store: NaN, infinities, NUL characters and lone surrogates are refused."""
    try:
        text = to_json(value)
        if b"NaN" in text or b"Infinity" in text:  # the words may stand in a string: only a strict writer knows
            json.dumps(from_json(text), allow_nan=False)
    except (PydanticSerializationError, ValueError) as error:
        raise _refusal(part, f"{part}: not JSON: {error}") from None
    return _storable(text, part)


def as_plain(value: Any, part: Part = "output") -> Any:
    """What a reader finds of a value that has travelled; refused as `dump_json` does."""
    return parse_json(dump_json(value, part))


def _refusal(part: Part, message: str) -> DispatcherError:
    return InvalidInputError(message) if part == "input" else IllegalTaskOutputError(message)


def _storable(text: bytes, part: Part) -> bytes:
    if b"\\u0000" in text and b"\\u0000" in text.replace(b"\\\\", b""):
        raise _refusal(part, f"{part}: holds a NUL character (\\u0000), which cannot be stored")
    return text


def _named(part: Part, error: ValidationError) -> str:
    found = error.errors(include_url=False, include_context=False, include_input=False)
    lines = [f"{'.'.join([part, *map(str, one['loc'])])}: {one['msg']}" for one in found[:_FIELDS_NAMED]]
    return "; ".join(lines) + (f"; and {len(found) - _FIELDS_NAMED} more" if len(found) > _FIELDS_NAMED else "")


def _json_type(value: Any) -> str:
    names = {type(None): "null", bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "an array"}
    return names.get(type(value), type(value).__name__)
