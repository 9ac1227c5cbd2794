"""Language models that parts may ask."""
