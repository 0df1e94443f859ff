"""One JSON Schema for all documents, made from the models that check them."""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue, models_json_schema
from pydantic_core import core_schema

from rackscale.spec.validate import KINDS


class _Generator(GenerateJsonSchema):
    def nullable_schema(self, schema: core_schema.NullableSchema) -> JsonSchemaValue:
        """A field that may be left out may not be null: a value that is missing is a mistake."""
        return self.generate_inner(schema["schema"])

    def dict_schema(self, schema: core_schema.DictSchema) -> JsonSchemaValue:
        """Keys that do not match their pattern are refused, not passed over."""
        found = super().dict_schema(schema)
        return {**found, "additionalProperties": False} if "patternProperties" in found else found

    def field_title_should_be_set(self, _schema: object) -> bool:
        """The field's name says as much."""
        return False

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        """Left out means left out, not null."""
        if schema.get("default", ...) is None:
            return self.generate_inner(schema["schema"])
        return super().default_schema(schema)


def json_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of one document, whatever its kind: `oneOf` by `kind`, with units, defaults, examples.

    It says what a single field may be; what holds between fields and documents is told by `check`.
    """
    refs, definitions = models_json_schema(
        [(model, "validation") for model in KINDS.values()],
        schema_generator=_Generator,
        ref_template="#/$defs/{model}",
    )
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "rackscale documents",
        "description": "A YAML document of rackscale: " + ", ".join(KINDS) + ".",
        "type": "object",
        "required": ["kind"],
        "properties": {"kind": {"enum": list(KINDS), "description": "What the document describes."}},
        "oneOf": [refs[(model, "validation")] for model in KINDS.values()],
        "$defs": definitions["$defs"],
    }
