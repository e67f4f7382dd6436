"""The socket side: who may connect, how much they may ask, and how bytes become requests and replies."""
