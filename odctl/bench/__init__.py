"""A load generator for servers of language models that speak OpenAI's or Ollama's API. No torch, no agents."""
