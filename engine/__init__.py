"""The engine: trains recipes. Imports no Qt; its light wing imports no torch."""
