"""The language server: inline completions in editors that need no plugin then."""
