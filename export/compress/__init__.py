"""What makes an emulator level smaller than its model: one technique per file."""
