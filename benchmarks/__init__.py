"""What the project claims about itself, as commands: the demo, and the measurements behind each published number."""
