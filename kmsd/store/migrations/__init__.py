"""How a database's schema becomes the present one."""
