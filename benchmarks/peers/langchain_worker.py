"""A LangChain model in a process of its own: langchain-huggingface's, or woqfx's. Answers requests, and times itself.

Runs in the peer's environment too: imports nothing of woqfx unless asked for it. A request is a line of JSON on
standard input, an answer a line on standard output; `benchmarks.langchain` holds the other end.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

PROMPT = "The capital of France is"
NEW_TOKENS = 16


def theirs(folder: str) -> tuple[Any, Any, Any]:
    """HuggingFacePipeline and ChatHuggingFace on the dense model, and its tokenizer."""
    from langchain_huggingface import ChatHuggingFace, HuggingFacePipeline

    kwargs = {"max_new_tokens": NEW_TOKENS, "do_sample": False}
    llm = HuggingFacePipeline.from_model_id(folder, task="text-generation", pipeline_kwargs=kwargs, batch_size=8)
    return llm, ChatHuggingFace(llm=llm), llm.pipeline.tokenizer


def ours(folder: str) -> tuple[Any, Any, Any]:
    """WoqfxLLM and ChatWoqfx on the quantized model, and its tokenizer."""
    from woqfx.langchain import ChatWoqfx, WoqfxLLM

    llm = WoqfxLLM(model=folder, max_tokens=NEW_TOKENS, temperature=0)
    return llm, ChatWoqfx(generator=llm.load(), max_tokens=NEW_TOKENS, temperature=0), llm.load().tokenizer


def facts(llm: Any, chat: Any, tokenizer: Any) -> dict[str, str]:
    """What each question gives, in a word or two."""
    from langchain_core.messages import HumanMessage, SystemMessage

    whole = llm.invoke(PROMPT)
    answer = whole.removeprefix(PROMPT)
    stop = answer[4:14]
    result = llm.generate([PROMPT]).generations[0][0]
    question = [HumanMessage("Hello")]
    tool = {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}}

    def after_leaving() -> str:
        for _ in llm.stream(PROMPT):
            break
        time.sleep(0.05)
        left = [thread for thread in threading.enumerate() if thread is not threading.main_thread()]
        return f"{len(left)} thread left" if left else "ended"

    def failing() -> str:
        model = llm.pipeline.model if hasattr(llm, "pipeline") else llm.load().model
        model.forward = _broken
        start = time.monotonic()
        try:
            list(llm.stream(PROMPT))
        except Exception as error:
            return f"{type(error).__name__} after {time.monotonic() - start:.0f} s"
        finally:
            del model.forward
        return "no error"

    return {
        "invoke leaves out the prompt": _yes(not whole.startswith(PROMPT)),
        "stream gives what invoke gives": _yes("".join(llm.stream(PROMPT)) == whole),
        "invoke ends before a stop text of several tokens": _yes(_cut(llm.invoke(PROMPT, stop=[stop]), answer, stop)),
        "stream ends before it": _yes(_cut("".join(llm.stream(PROMPT, stop=[stop])), answer, stop)),
        "max_new_tokens=2 of a call counts": _yes(_tokens(tokenizer, llm.invoke(PROMPT, max_new_tokens=2)) <= 2),
        "finish reason and usage are told": _yes(bool((result.generation_info or {}).get("finish_reason"))),
        "tokens are counted by the model's own tokenizer": _tried(
            lambda: _yes(
                llm.get_num_tokens("electroencephalography né") == _tokens(tokenizer, "electroencephalography né")
            )
        ),
        "a stream that is left": _tried(after_leaving),
        "an error of the model while it streams": failing(),
        "chat: ainvoke": _tried(lambda: _yes(bool(asyncio.run(chat.ainvoke(question)).content))),
        "chat: a system message last": _tried(lambda: _yes(bool(chat.invoke([*question, SystemMessage("Be brief.")])))),
        "chat: a tool that must be called is called": _tried(
            lambda: _yes(bool(chat.bind_tools([tool], tool_choice="now").invoke("What time is it?").tool_calls))
        ),
    }


def batch(llm: Any, prompts: list[str]) -> float:
    """The seconds that a batch takes."""
    start = time.monotonic()
    llm.batch(prompts)
    return time.monotonic() - start


def main() -> None:
    """Answer the requests "facts" and [prompts]."""
    kind, folder = sys.argv[1:]
    answers, sys.stdout = os.fdopen(os.dup(1), "w"), sys.stderr
    llm, chat, tokenizer = {"theirs": theirs, "ours": ours}[kind](folder)
    for line in sys.stdin:
        asked = json.loads(line)
        result = facts(llm, chat, tokenizer) if asked == "facts" else batch(llm, asked)
        print(json.dumps(result), file=answers, flush=True)


def _tokens(tokenizer: Any, text: str) -> int:
    return len(tokenizer(text.removeprefix(PROMPT), add_special_tokens=False)["input_ids"])


def _cut(given: str, answer: str, stop: str) -> bool:
    return given.removeprefix(PROMPT) == answer[: answer.index(stop)]


def _yes(fact: bool) -> str:
    return "yes" if fact else "no"


def _tried(work: Callable[[], str]) -> str:
    try:
        return work()
    except Exception as error:  # of whatever kind: that is what is looked at
        return f"no: {type(error).__name__}"


def _broken(*_: Any, **__: Any) -> Any:
    raise RuntimeError("out of order")


if __name__ == "__main__":
    main()
