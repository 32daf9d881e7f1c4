"""Bodies of requests and answers: pydantic models, the truth of the REST contract. Inputs are strict and closed."""
