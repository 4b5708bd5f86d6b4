"""woqfx in LangChain: `WoqfxLLM` for text, `ChatWoqfx` for messages, and the original's `WeightOnlyQuantPipeline`.

pip install 'woqfx[langchain]'
"""

from __future__ import annotations

from woqfx.langchain.chat import ChatWoqfx
from woqfx.langchain.llm import WoqfxLLM
from woqfx.langchain.pipeline import WeightOnlyQuantPipeline
from woqfx.langchain.pipelines import pipeline

__all__ = ["ChatWoqfx", "WeightOnlyQuantPipeline", "WoqfxLLM", "pipeline"]
