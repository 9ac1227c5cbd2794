"""What every part must do, checked over the whole catalog with no code for a particular part."""
