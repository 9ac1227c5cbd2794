"""The parts themselves: one file a method, in a folder a slot."""
