"""From a request to an answer: prompts, sampling, and the loop."""
