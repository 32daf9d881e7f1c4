"""A typed REST client without pydantic and aiohttp."""
