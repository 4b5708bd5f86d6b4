"""`WoqfxLLM`: text in, text out."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseLLM
from langchain_core.outputs import Generation, GenerationChunk, LLMResult

from woqfx.generating import Answer, Request, TokenScore
from woqfx.langchain.language_model import ConfiguredModel, LocalModel, answers_of, usage_of


class TextModel(LocalModel, BaseLLM):
    """Answers by going on with a text; all prompts of a call run together."""

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
