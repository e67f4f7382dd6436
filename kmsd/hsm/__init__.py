"""The root of trust: what the root key in a PKCS#11 token does for kmsd."""
