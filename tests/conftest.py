"""What holds for every test: the models that Ollama has on this machine are nobody's."""

from __future__ import annotations

import os

os.environ["OLLAMA_MODELS"] = ""
