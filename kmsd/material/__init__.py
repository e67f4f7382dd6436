"""Keys in use: how material is derived, wrapped, cached and turned into ciphertext."""
