"""Policy: domains, pools, channels and their set-up, pool assignment, the end, waiting."""
