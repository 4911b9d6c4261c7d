"""OpenAI-compatible HTTP over one LLM; importing it loads no web framework."""
