"""How agents come to run; each launcher can submit, tell what is active, and cancel."""
