"""What a target cannot take."""
