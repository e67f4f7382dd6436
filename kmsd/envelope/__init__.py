"""Encrypted files: the AWS Encryption SDK's message format, and the worker processes that read and write it."""
