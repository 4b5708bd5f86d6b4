"""The application: routes, keys, limits, and errors in OpenAI's shape."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Header
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest

import woqfx
from woqfx.errors import SettingsError, WoqfxError
from woqfx.generating import TextGenerator
from woqfx.serve.admission import Admission
from woqfx.serve.body import BodyLimit
from woqfx.serve.chats import Chat
from woqfx.serve.completions import Completion
from woqfx.serve.failures import RefusedError, of_validation
from woqfx.serve.formats import event
from woqfx.serve.limits import Limits
from woqfx.serve.requests import ChatRequest, CompletionRequest
from woqfx.serve.running import ClientGoneError, Runner

_log = logging.getLogger(__name__)

_UNFORESEEN = RefusedError(500, "the server failed at this request: its log says how")


def create_app(
    generator: TextGenerator,
    *,
    name: str,
    limits: Limits | None = None,
    api_key: str | None = None,
    local: bool = False,
) -> FastAPI:
    """An application that serves one model under the name `name`, to clients that send `api_key` if there is one.

    `local` says that it listens to this machine alone: then requests for a host of another name, which a page of the
    web may have a browser send, are refused.
    """
    limits = limits or Limits()
    runner = Runner(generator, limits.requests)
    admission = Admission(name, limits, api_key, local)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        runner.close()

    app = FastAPI(title="woqfx", version=woqfx.__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_middleware(BodyLimit, limit=limits.body)
    app.include_router(_health())
    app.include_router(_router(runner, admission))
    app.add_exception_handler(RefusedError, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(WoqfxError, _ours)
    app.add_exception_handler(ClientGoneError, _gone)
    app.add_exception_handler(Exception, _unforeseen)
    return app


def _health() -> APIRouter:
    router = APIRouter()

    @router.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    return router


def _router(runner: Runner, admission: Admission) -> APIRouter:
    def authorized(
        authorization: Annotated[str | None, Header()] = None, host: Annotated[str | None, Header()] = None
    ) -> None:
        admission.check_host(host)
        admission.authorize(authorization)

    router = APIRouter(prefix="/v1", dependencies=[Depends(authorized)])
    model = {"id": admission.name, "object": "model", "created": int(time.time()), "owned_by": "woqfx"}

    @router.get("/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [model]}

    @router.get("/models/{name:path}")
    async def one_model(name: str) -> dict[str, Any]:
        admission.check_model(name)
        return model

    @router.post("/completions", response_model=None)
    async def completions(asked: CompletionRequest, http: HttpRequest) -> Response:
        return await _answer(lambda: Completion(asked, runner, admission), asked, http)

    @router.post("/chat/completions", response_model=None)
    async def chats(asked: ChatRequest, http: HttpRequest) -> Response:
        return await _answer(lambda: Chat(asked, runner, admission), asked, http)

    async def _answer(
        begin: Callable[[], Completion | Chat], asked: CompletionRequest | ChatRequest, http: HttpRequest
    ) -> Response:
        admission.check_model(asked.model)
        if asked.stream:
            events = _events(begin)
            first = await anext(events)  # raises what is wrong with the request while there is a status to say it by
            return StreamingResponse(_after(first, events), media_type="text/event-stream")
        with runner.place():
            work = await runner.elsewhere(begin)
            return JSONResponse(await work.whole(http))

    async def _events(begin: Callable[[], Completion | Chat]) -> AsyncGenerator[str]:
        with runner.place():
            work = await runner.elsewhere(begin)
            async with aclosing(work.stream()) as events:
                async for one in events:
                    yield one

    return router


async def _after(first: str, events: AsyncIterator[str]) -> AsyncIterator[str]:
    """The stream; an error in its middle is its last event, for the status is long sent."""
    yield first
    try:
        async for one in events:
            yield one
    except WoqfxError as error:
        yield event(RefusedError(500, str(error)).body())
    except Exception:
        _log.exception("a stream broke")
        yield event(_UNFORESEEN.body())


async def _refused(_: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, RefusedError)
    return error.response()


async def _invalid(_: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return of_validation(error).response()


async def _http(_: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return RefusedError(error.status_code, str(error.detail)).response()


async def _ours(_: HttpRequest, error: Exception) -> Response:
    """What the request asks for cannot be done: `SettingsError`. Anything else is the server's own trouble."""
    if isinstance(error, SettingsError):
        return RefusedError(400, str(error)).response()
    _log.error("%s", error)
    return RefusedError(500, str(error)).response()


async def _unforeseen(_: HttpRequest, __: Exception) -> Response:
    """Clients read OpenAI's shape; what it was goes to the server's log, where starlette writes it."""
    return _UNFORESEEN.response()


async def _gone(_: HttpRequest, __: Exception) -> Response:
    return Response(status_code=499)  # nginx's number for it; nobody reads it
