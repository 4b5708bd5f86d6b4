"""Errors as OpenAI's clients read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


class RefusedError(Exception):
    """A request that is answered with an HTTP status, and what is wrong with it."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code

    def body(self) -> dict[str, Any]:
        """The JSON of the answer."""
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """The answer."""
        headers = {"Retry-After": "1"} if self.status == 429 else None
        return JSONResponse(self.body(), self.status, headers=headers)


class ParameterError(ValueError):
    """What is wrong with one parameter, found by looking at others too, or at what this server does."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name


def of_validation(error: RequestValidationError) -> RefusedError:
    """All that is wrong with a request's fields, in one message."""
    problems = [_problem(one) for one in error.errors()]
    message = "; ".join(f"{where}: {what}" if where else what for where, what in problems)
    return RefusedError(400, message, param=problems[0][0] or None)


def _problem(found: Mapping[str, Any]) -> tuple[str, str]:
    """The parameter, if it is one, and what is wrong with it."""
    reason = found.get("ctx", {}).get("error")
    if found["type"] == "json_invalid":
        return "", f"the body is no JSON: {reason}"
    if isinstance(reason, ParameterError):
        return reason.name, str(reason)
    where = ".".join(str(part) for part in found["loc"] if part != "body")
    return where, str(reason) if isinstance(reason, ValueError) else found["msg"]
