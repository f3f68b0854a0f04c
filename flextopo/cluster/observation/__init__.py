"""What a learned selector sees of a decision."""
