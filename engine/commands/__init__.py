"""The commands of the terminal, one module each. Each is imported only when it is called."""
