"""What many methods need once."""
