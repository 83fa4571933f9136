"""What a study declares."""
