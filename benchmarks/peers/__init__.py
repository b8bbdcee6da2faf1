"""What else could do a training step: each peer is a script that measures itself in a process of its own."""
