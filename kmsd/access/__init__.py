"""Who may do what: AWS's policy grammar and evaluation over Unix principals (POLICY.md)."""
