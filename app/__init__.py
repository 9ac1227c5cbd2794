"""The window. Imports no torch and names no method: it lives on the catalog, recipes and the log."""
