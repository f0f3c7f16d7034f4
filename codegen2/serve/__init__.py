"""The server for editors: one worker that owns the engine, and a dialect a module on top of it. Imports nothing."""
