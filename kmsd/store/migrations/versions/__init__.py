"""One revision for each schema that was released, numbered like it; what was released never changes."""
