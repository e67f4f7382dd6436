"""Who is calling: what the kernel says about the process at the other end of a socket, and what that means here."""
