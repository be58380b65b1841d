"""OpenAI's shapes of what the engine says."""
