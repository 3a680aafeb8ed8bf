"""The main job of picback, end to end; `make demo` runs it."""
