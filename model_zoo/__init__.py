"""What a backbone is, how a file becomes one, how one leaves."""
