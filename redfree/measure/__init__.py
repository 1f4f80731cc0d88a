"""What a phase takes: seconds and peak memory."""
