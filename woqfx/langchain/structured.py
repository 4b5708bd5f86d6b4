"""Answers that are JSON of a schema, or any JSON object."""

from __future__ import annotations

from operator import itemgetter
from typing import Any, Literal, get_args

from langchain_core.language_models import BaseChatModel
from langchain_core.output_parsers import JsonOutputParser, PydanticOutputParser
from langchain_core.output_parsers.base import OutputParserLike
from langchain_core.output_parsers.openai_tools import JsonOutputKeyToolsParser, PydanticToolsParser
from langchain_core.runnables import Runnable, RunnableMap, RunnablePassthrough
from langchain_core.utils.function_calling import convert_to_json_schema, convert_to_openai_tool
from langchain_core.utils.pydantic import is_basemodel_subclass

from woqfx.errors import SettingsError

Method = Literal["json_schema", "function_calling", "json_mode"]
Schema = dict[str, Any] | type


def structured(model: BaseChatModel, schema: Schema, *, method: Method, include_raw: bool) -> Runnable[Any, Any]:
    """`model`, asked for what `schema` describes, and a parser behind it."""
    if method not in get_args(Method):
        raise SettingsError(f"method is {method!r}; there are {', '.join(get_args(Method))}")
    pydantic: Any = schema if isinstance(schema, type) and is_basemodel_subclass(schema) else None
    told = {"kwargs": {"method": method}, "schema": schema}
    bound: Runnable[Any, Any]
    parser: OutputParserLike[Any]
    if method == "function_calling":
        name = convert_to_openai_tool(schema)["function"]["name"]
        bound = model.bind_tools([schema], tool_choice=name, ls_structured_output_format=told)
        parser = (
            PydanticToolsParser(tools=[pydantic], first_tool_only=True)
            if pydantic
            else JsonOutputKeyToolsParser(key_name=name, first_tool_only=True)
        )
    else:
        bound = model.bind(response_format=response_format(schema, method), ls_structured_output_format=told)
        parser = PydanticOutputParser(pydantic_object=pydantic) if pydantic else JsonOutputParser()
    if not include_raw:
        return bound | parser
    parsed = RunnablePassthrough.assign(parsed=itemgetter("raw") | parser, parsing_error=lambda _: None)
    unparsed = RunnablePassthrough.assign(parsed=lambda _: None)
    return RunnableMap(raw=bound) | parsed.with_fallbacks([unparsed], exception_key="parsing_error")


def response_format(schema: Schema, method: Method) -> dict[str, Any]:
    """OpenAI's `response_format` of a schema."""
    if method == "json_mode":
        return {"type": "json_object"}
    return {"type": "json_schema", "json_schema": {"schema": convert_to_json_schema(schema)}}
