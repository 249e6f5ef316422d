"""Pydantic's validation errors in Russian, for request bodies and for settings alike."""

from collections.abc import Mapping
from typing import Annotated, Any, get_args

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError
from pydantic_core.core_schema import ErrorType

# By pydantic's error type; the placeholders are its `ctx`. https://docs.pydantic.dev/latest/errors/validation_errors/
_REASONS: Mapping[str, str] = {
    "missing": "обязательное поле не задано",
    "extra_forbidden": "такого поля нет",
    "string_type": "нужна строка",
    "string_unicode": "в строке одиночные суррогаты: это не текст Юникода",
    "string_too_short": "пустая строка не годится",
    "bool_type": "нужно true или false",
    "bool_parsing": "нужно true или false",
    "int_type": "нужно целое число",
    "int_from_float": "нужно целое число",
    "int_parsing": "нужно целое число",
    "int_parsing_size": "число слишком велико",
    "float_type": "нужно число",
    "float_parsing": "нужно число",
    "finite_number": "нужно конечное число",
    "dict_type": "нужен объект JSON",
    "list_type": "нужен массив JSON",
    "model_type": "нужен объект JSON",
    "model_attributes_type": "нужен объект JSON",
    "greater_than": "нужно число больше {gt}",
    "greater_than_equal": "нужно число не меньше {ge}",
    "less_than_equal": "нужно число не больше {le}",
    "literal_error": "допустимо только {expected}",
}


_PYDANTICS_OWN = frozenset(get_args(ErrorType))


def reason(error: Mapping[str, Any]) -> str:
    """Say in Russian what is wrong.

    Args:
        error: one item of pydantic's `errors()`. The messages of our own validators (`PydanticCustomError`) are Russian
            already.
    """
    if error["type"] not in _PYDANTICS_OWN:
        return str(error["msg"])
    context = {
        name: f"{value:g}" if isinstance(value, float) else str(value).replace(" or ", " или ")
        for name, value in error.get("ctx", {}).items()
    }
    return _REASONS.get(error["type"], "такое значение не подходит").format(**context)


def _check_unicode(text: str) -> str:
    """Pydantic checks this itself only where a string has a constraint."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise PydanticCustomError("not_unicode", _REASONS["string_unicode"]) from None
    return text


Text = Annotated[str, AfterValidator(_check_unicode)]
"""A string that can be sent: no lone surrogates."""
