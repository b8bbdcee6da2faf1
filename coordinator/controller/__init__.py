"""Where policies are trained and judged: a simulated fleet around measured costs, and what a policy is worth in it."""
