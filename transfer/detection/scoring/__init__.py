"""What a detector found, scored and drawn."""
