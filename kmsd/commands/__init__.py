"""kmsd's own verbs."""
