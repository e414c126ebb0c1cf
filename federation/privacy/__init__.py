"""What leaves a node under prototype strategies: bounded, noised, and its cost in ε told."""
