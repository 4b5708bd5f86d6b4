"""LangChain's own tests of chat models, on SmolLM2-135M-Instruct at 8 bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests

from woqfx.generating import TextGenerator
from woqfx.langchain import ChatWoqfx


class TestUnit(ChatModelUnitTests):
    @pytest.fixture(autouse=True)
    def _checkpoint(self, tiny_checkpoint: Path) -> None:
        type(self).folder = str(tiny_checkpoint)

    folder = ""

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatWoqfx

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": self.folder}


@pytest.mark.slow
@pytest.mark.real_model
class TestIntegration(ChatModelIntegrationTests):
    generator: TextGenerator

    @pytest.fixture(autouse=True)
    def _generator(self, real_generator: TextGenerator) -> None:
        type(self).generator = real_generator

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatWoqfx

    @property
    def chat_model_params(self) -> dict[str, Any]:
        # Without a penalty, so small a model repeats itself and never ends a string.
        return {"generator": self.generator, "max_tokens": 64, "frequency_penalty": 0.6}

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def supports_anthropic_inputs(self) -> bool:
        return True

    @pytest.mark.xfail(reason="the model of 135 million parameters answers by itself when it may choose not to call")
    def test_agent_loop(self, model: BaseChatModel) -> None:
        super().test_agent_loop(model)

    @pytest.mark.xfail(reason="the model of 135 million parameters leaves out a key when no schema holds it to both")
    def test_json_mode(self, model: BaseChatModel) -> None:
        super().test_json_mode(model)
