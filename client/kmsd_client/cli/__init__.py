"""`kms`: the command line for people."""
