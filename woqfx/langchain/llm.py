"""`WoqfxLLM`: text in, text out."""

from __future__ import annotations

import asyncio
import uuid
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, Self

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun, Callbacks
from langchain_core.language_models import BaseLLM
from langchain_core.outputs import Generation, GenerationChunk, LLMResult

from woqfx.generating import Answer, Request, TokenScore
from woqfx.langchain.language_model import STRICT, ConfiguredModel, LocalModel, answers_of, usage_of


class TextModel(LocalModel, BaseLLM):
    """Answers by going on with a text; all prompts of a call run together."""

    model_config = STRICT

    def generate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        callbacks: Callbacks | list[Callbacks] | None = None,
        *,
        tags: list[str] | list[list[str]] | None = None,
        metadata: dict[str, Any] | list[dict[str, Any]] | None = None,
        run_name: str | list[str] | None = None,
        run_id: uuid.UUID | list[uuid.UUID | None] | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        """Answers for `prompts`. `kwargs` go into a copy, since LangChain's cache knows a call by its object alone."""
        asked = self._with(kwargs) if kwargs else self
        return BaseLLM.generate(
            asked, prompts, stop, callbacks, tags=tags, metadata=metadata, run_name=run_name, run_id=run_id
        )

    async def agenerate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        callbacks: Callbacks | list[Callbacks] | None = None,
        *,
        tags: list[str] | list[list[str]] | None = None,
        metadata: dict[str, Any] | list[dict[str, Any]] | None = None,
        run_name: str | list[str] | None = None,
        run_id: uuid.UUID | list[uuid.UUID | None] | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        """`generate`, without blocking."""
        asked = self._with(kwargs) if kwargs else self
        return await BaseLLM.agenerate(
            asked, prompts, stop, callbacks, tags=tags, metadata=metadata, run_name=run_name, run_id=run_id
        )

    @abstractmethod
    def _with(self, given: dict[str, Any]) -> Self:
        """A copy to which the parameters of one call belong."""

    def _generate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        return self._result(answers_of(self.load(), self._requests(prompts, stop, kwargs)))

    async def _agenerate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        requests = await asyncio.to_thread(self._requests, prompts, stop, kwargs)
        return self._result(await run_cancellable(self, requests))

    def _stream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[GenerationChunk]:
        generator, settings = self.load(), self._settings(stop, kwargs)
        with generator.stream(generator.text_prompt(self._put(prompt)), settings) as stream:
            for piece in stream:
                chunk = GenerationChunk(text=piece.text)
                if run_manager is not None:
                    run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk
            yield GenerationChunk(text="", generation_info=self._info(stream.answer))

    def _put(self, prompt: str) -> str:
        """The text that the model gets for a prompt."""
        return prompt

    def _requests(self, prompts: Sequence[str], stop: list[str] | None, given: dict[str, Any]) -> list[Request]:
        generator, settings = self.load(), self._settings(stop, given)
        return generator.requests([generator.text_prompt(self._put(prompt)) for prompt in prompts], settings)

    def _result(self, answers: Sequence[Answer]) -> LLMResult:
        usage = usage_of(answers)
        counts = {
            "prompt_tokens": usage["input_tokens"],
            "completion_tokens": usage["output_tokens"],
            "total_tokens": usage["total_tokens"],
        }
        return LLMResult(
            generations=[[Generation(text=answer.text, generation_info=self._info(answer))] for answer in answers],
            llm_output={"token_usage": counts, "model_name": self._identifying_params["model"]},
        )

    def _info(self, answer: Answer) -> dict[str, Any]:
        info: dict[str, Any] = {"finish_reason": answer.finish, "usage": dict(usage_of([answer]))}
        return {**info, **logprobs_of(self, answer.scores)}


class WoqfxLLM(ConfiguredModel, TextModel):
    """A quantized model as a LangChain LLM.

        llm = WoqfxLLM(model="out/", max_tokens=64)
        llm.invoke("The capital of France is", stop=["."])
        llm.batch([...]); [*llm.stream("...")]

    Parameters of a call (`temperature`, `max_tokens`, `seed`, ...) go before the object's; unknown ones are errors.
    """

    @property
    def _llm_type(self) -> str:
        return "woqfx"

    def _with(self, given: dict[str, Any]) -> Self:
        return self.model_copy(update={"generation_kwargs": {**self.generation_kwargs, **given}})


async def run_cancellable(model: LocalModel, requests: Sequence[Request]) -> list[Answer]:
    """Run `requests` in another thread; when the task is cancelled, so are they."""
    running = asyncio.ensure_future(asyncio.to_thread(answers_of, model.load(), requests))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        for request in requests:
            request.cancel()
        await asyncio.wait([running])
        raise


def logprobs_of(model: LocalModel, scores: Sequence[TokenScore]) -> dict[str, Any]:
    """Log-probabilities as OpenAI's interface has them; nothing if they were not asked for."""
    if not scores:
        return {}
    text = model.load().tokenizer.decode
    content = [
        {
            "token": text([score.token]),
            "logprob": score.logprob,
            "top_logprobs": [{"token": text([token]), "logprob": logprob} for token, logprob in score.top],
        }
        for score in scores
    ]
    return {"logprobs": {"content": content}}
