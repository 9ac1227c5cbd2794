"""Forms made from the catalog's schemas. There is no code for a particular part here."""
