"""Shut in what a model wrote: who starts it, who checks it, and what Linux gives for that."""
